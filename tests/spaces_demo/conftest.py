"""The demo is a folder of its own: its modules are found as they are when app.py runs."""

import contextlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import CLIPImageProcessorPil

from hf_vse.cli.main import main
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.conftest import make_pairs
from tests.hub.fake_hub import TOKEN, FakeHub, Repository
from tests.processes import run_fork

DEMO = Path(__file__).parents[2] / "spaces_demo"
sys.path.insert(0, str(DEMO))
PHOTOGRAPHS = 11
API = "/gradio_api"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
META = {"_type": "gradio.FileData"}
WITH_PHOTOGRAPH = {  # endpoint: arguments, with None for the photograph
    "search_by_image": [None, 3],
    "similar": [None, 3],
    "combined": ["a dog", None, 0.5, 3],
    "zero_shot": [None, "dog, cat", "{}"],
}
WITHOUT_PHOTOGRAPH = {"search_by_text": ["a dog", 3], "compare": ["a dog", 3], "thumbnail": [1], "about": []}


def png(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def save_model(folder: Path, tokenizer, tiny_resnet: dict, seed: int) -> Path:
    torch.manual_seed(seed)
    text = {"model_type": "vse_gru_text", "vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    config = VSEConfig(vision_config=tiny_resnet, text_config=text, projection_dim=16, loss_type="nce")
    VSEModel(config).eval().save_pretrained(folder)
    VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer, tiny_resnet) -> Path:
    return save_model(tmp_path_factory.mktemp("demo") / "vse-tiny", tokenizer, tiny_resnet, seed=0)


@pytest.fixture(scope="session")
def gallery_rows() -> list[dict]:
    """Eleven photographs, and in their middle a broken one."""
    pairs = make_pairs(PHOTOGRAPHS, size=32)
    rows = [{"image": {"bytes": png(row["image"]), "path": None}, "captions": row["captions"]} for row in pairs]
    return [*rows[:4], {"image": {"bytes": b"no picture", "path": None}, "captions": ["a broken one"]}, *rows[4:]]


@pytest.fixture(scope="session")
def parquet(tmp_path_factory, gallery_rows) -> Path:
    file = tmp_path_factory.mktemp("photographs") / "secret_gallery.parquet"
    columns = Features({"image": Image(decode=False), "captions": List(Value("string"))})
    Dataset.from_list(gallery_rows, features=columns).cast_column("image", Image()).to_parquet(file)
    return file


@dataclass
class Server:
    process: subprocess.Popen
    url: str
    folder: Path  # its temporary files, cache and log
    secrets: list[Path]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


def push(hub: FakeHub, folder: Path, words: list[str]) -> int:
    hub.take_over(folder / "cache")
    os.environ["HF_TOKEN"] = TOKEN
    return main(["push", *words])


@pytest.fixture(scope="package")
def published(tmp_path_factory, model_folder, parquet) -> Iterator[FakeHub]:
    """A Hub with the model, its page, and the photographs; the first two as `hf-vse push` leaves them."""
    record = {"dataset": "somebody/photographs", "loss_type": "nce", "stages": [], "environment": {}, "recipe": {}}
    metrics = {f"{side}_{level}": 12.34 for side in ("i2t", "t2i") for level in ("r1", "r5", "r10", "medr", "meanr")}
    split = {"images": 11, "captions": 55, "broken_images": 0, "metrics": metrics | {"rsum": 345.6}, "chance": {}}
    (model_folder / "metrics.json").write_text(json.dumps(record | {"metrics": {"test": split}}))
    with FakeHub() as hub:
        folder = tmp_path_factory.mktemp("publisher")
        words = [str(model_folder), "org/vse-tiny", "--space", "org/page", "--dataset", "org/photographs"]
        printed = run_fork(folder / "log", push, hub, folder, [*words, "--json"])
        assert json.loads(printed.splitlines()[-1]) == {
            "model": f"{hub.url}/org/vse-tiny", "space": f"{hub.url}/spaces/org/page"
        }  # fmt: skip
        photographs = hub.repositories.setdefault("datasets/org/photographs", Repository({}))
        photographs.files["data/test-00000-of-00001.parquet"] = parquet.read_bytes()
        yield hub


@pytest.fixture(scope="package")
def server(tmp_path_factory, published, model_folder, parquet, tokenizer, tiny_resnet) -> Iterator[Server]:
    """The published page, running from its repository as a Space does."""
    folder = tmp_path_factory.mktemp("server")
    other = save_model(folder / "vse-other", tokenizer, tiny_resnet, seed=1)
    (folder / "tmp").mkdir()
    space = published.repositories["spaces/org/page"]
    for name, content in space.files.items():
        (folder / "space" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "space" / name).write_bytes(content)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | published.environment(folder / "hf") | space.variables
    environment |= {"VSE_COMPARE": str(other), "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(folder / "tmp")}
    environment |= {"OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder / "space", env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            server = Server(
                process,
                f"http://127.0.0.1:{port}",
                folder,
                [model_folder / "config.json", parquet, folder / "space" / "app.py"],
            )
            wait_until(lambda: process.poll() is not None or "Running on" in server.log, 120)
            assert process.poll() is None, server.log[-3000:]
            yield server
        finally:
            process.terminate()
            assert process.wait(30) == 0
    assert not list((folder / "tmp").glob("vse_demo_*"))  # no upload is left


def demo(environment: dict[str, str], words: list[str]) -> int:
    os.environ |= environment
    return main(["demo", *words])


@contextlib.contextmanager
def served(folder: Path, *words: object) -> Iterator[str]:
    """The address of a page that `hf-vse demo` serves; its log is in the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {"TMPDIR": str(folder / "tmp"), "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hf_vse.cli", "demo", *map(str, words), "--port", str(port)]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: process.poll() is not None or "Running on" in log.read_text(), 240)
        assert process.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}"
        assert not re.findall(r"^(\S*(?:Error|Exception)\b)", log.read_text(), flags=re.MULTILINE)
    finally:
        process.terminate()
        process.wait(30)


def wait_until(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def web(server):
    httpx = pytest.importorskip("httpx")
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def ask(web, endpoint: str, data: list, **more) -> str:
    """The event that answers a question."""
    asked = web.post(f"{API}/call/{endpoint}", json={"data": data} | more)
    assert asked.status_code == 200, asked.text
    return web.get(f"{API}/call/{endpoint}/{asked.json()['event_id']}").text


def good_answer(web) -> bool:
    return ask(web, "search_by_text", ["a small red circle", 2]).startswith("event: complete")


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def visits(chromium, url: str, first: str = ".photos img") -> Iterator[Callable]:
    """Opens the page as a new visitor; afterwards nothing may have failed or left this machine.

    Args:
        first: what is there when the page is.
    """
    contexts, failures, outside = [], [], []

    def open_page(width: int = 1280, height: int = 900):
        context = chromium.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda line: failures.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("response", lambda answer: failures.append(answer.url) if answer.status >= 400 else None)
        page.on("request", lambda sent: outside.append(sent.url) if not is_own(sent.url) else None)
        page.goto(url)
        page.locator(first).first.wait_for()
        return page

    def is_own(address: str) -> bool:
        return address.startswith((f"{url}/", "data:", "blob:"))

    yield open_page
    for context in contexts:
        context.close()
    assert not failures and not outside


def open_tab(page, name: str) -> None:
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.is_visible():
        tab.click()
    else:  # on a phone most of them are in a menu
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
