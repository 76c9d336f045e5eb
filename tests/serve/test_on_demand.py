"""A server of a gallery with a text tower answers as one with the model, and opens the model for photographs alone."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from starlette.testclient import TestClient

from hf_vse.search.locations import open_store
from hf_vse.search.model import open_model
from hf_vse.search.on_demand import ModelOnDemand
from hf_vse.search.text_tower import open_text_tower
from hf_vse.serve.app import make_app
from hf_vse.serve.limits import Limits
from tests.search.test_text_tower import FORBIDDEN

SENTENCES = ["a small red circle", "Two BLUE stars", "left"]


@pytest.fixture
def gallery(fast_gallery):
    return open_store(fast_gallery)


def served(gallery, encoder, limits=None) -> TestClient:
    return TestClient(make_app(gallery, encoder, limits), raise_server_exceptions=False)


def asked_of(web, photograph: Path):
    yield from (web.get("/search", params={"q": SENTENCES, "k": k, "where": "year>=2003"}) for k in (2, 12))
    file = {"image": photograph.read_bytes()}
    yield web.post("/search", files=file)
    yield web.post("/search", data={"q": SENTENCES, "image_weight": "0.3"}, files=file)


def test_answers_are_those_of_the_model(gallery):
    opened, photograph = [], Path(gallery.facts["root"]) / "lake/03.png"

    def open_now():
        opened.append(open_model(gallery, device="cpu"))
        return opened[-1]

    with served(gallery, ModelOnDemand(open_text_tower(gallery), open_now)) as fast:
        assert fast.get("/search", params={"q": "circle"}).status_code == 200 and not opened
        with ThreadPoolExecutor(4) as threads:
            by_file = [threads.submit(fast.post, "/search", files={"image": photograph.read_bytes()}) for _ in "four"]
            assert {each.result().status_code for each in by_file} == {200} and len(opened) == 1
        found = list(asked_of(fast, photograph))
    with served(gallery, opened[0]) as whole:
        for of, wanted in zip(found, asked_of(whole, photograph), strict=True):
            assert of.status_code == wanted.status_code == 200
            for own, other in zip(of.json()["queries"], wanted.json()["queries"], strict=True):
                assert [each["item"] for each in own["results"]] == [each["item"] for each in other["results"]]
                scores = [[each["score"] for each in results] for results in (own["results"], other["results"])]
                assert scores[0] == pytest.approx(scores[1], abs=2e-4) and len(set(scores[0])) > 1


def test_sentences_are_answered_while_the_model_opens_or_cannot_be_opened(gallery, caplog):
    photograph, go = (Path(gallery.facts["root"]) / "lake/03.png").read_bytes(), Event()

    def open_late():
        go.wait(30)
        raise FileNotFoundError("/secret is gone")

    tower = open_text_tower(gallery)
    with served(gallery, ModelOnDemand(tower, open_late), Limits(timeout=1)) as web, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(web.post, "/search", files={"image": photograph})
        assert web.get("/search", params={"q": "circle"}).status_code == 200
        assert waiting.result().status_code == 504, "the model does not come in time"
        go.set()
        refused = web.post("/search", files={"image": photograph})
        assert refused.status_code == 503 and "cannot be opened" in refused.json()["error"]
        assert "/secret" not in refused.text and "/secret is gone" in caplog.text
        assert web.get("/search", params={"q": "circle"}).status_code == 200


@pytest.mark.parametrize("options", [(), ("--device", "cpu")])
def test_the_command_imports_no_torch_for_sentences(fast_gallery, options):
    """The server is asked where it would begin to wait for requests."""
    code = f"""
import sys
import hf_vse.serve.run
from starlette.testclient import TestClient
from hf_vse.cli.main import main

def ask(app, *rest):
    with TestClient(app) as web:
        found = web.get("/search", params={{"q": ["a small red circle", "left"]}}).json()
        assert all(len(query["results"]) > 3 for query in found["queries"])
        assert web.get("/health").status_code == web.get("/metrics").status_code == 200

hf_vse.serve.run.run_server = ask
code = main(["serve", {str(fast_gallery)!r}, "--port", "0", *{options!r}])
print(code, *(name for name in {FORBIDDEN!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code, *imported = done.stdout.split()
    assert code == "0", done.stderr
    assert ("torch" in imported) if options else not imported, imported
