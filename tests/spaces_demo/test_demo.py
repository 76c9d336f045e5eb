"""The demo as visitors meet it: one server, a browser, and programs that call its API."""

import base64
import json
import re
from contextlib import suppress
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
import torch

from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.spaces_demo.conftest import DEMO, PHOTOGRAPHS, open_tab, png, visits, wait_until
from tests.spaces_demo.test_parts import bomb

httpx = pytest.importorskip("httpx")
gradio_client = pytest.importorskip("gradio_client")
pytest.importorskip("gradio")
pytest.importorskip("faiss")

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")


@pytest.fixture(scope="module")
def client(server):
    return gradio_client.Client(server.url, verbose=False)


@pytest.fixture(scope="module")
def reference(server, model_folder, gallery_rows):
    """Cosine similarity of sentences and of all photographs, straight from the model."""
    model = VSEModel.from_pretrained(model_folder).eval()
    processor = VSEProcessor.from_pretrained(model_folder)
    sound = [row for row in gallery_rows if len(row["captions"]) > 1]
    images = [PIL.Image.open(BytesIO(row["image"]["bytes"])) for row in sound]
    captions = [row["captions"] for row in sound]
    with torch.inference_mode():
        image_embeds = model.get_image_features(**processor(images=images)).pooler_output.numpy()

    def scores(sentence: str) -> np.ndarray:
        with torch.inference_mode():
            return image_embeds @ model.get_text_features(**processor(text=sentence)).pooler_output[0].numpy()

    return scores, images, captions


# --- programs -------------------------------------------------------------------------------------------------


def test_api_answers_as_the_model_does(client, reference, tmp_path):
    scores, images, captions = reference
    sentence = "a small red circle above a ring"
    expected = scores(sentence)
    found = client.predict(sentence, 4, api_name="/search_by_text")
    best = np.argsort(-expected)[:4]
    assert [each["photograph"] for each in found] == best.tolist()
    assert np.allclose([each["score"] for each in found], expected[best], atol=1e-4)
    assert found[0]["captions"] == captions[best[0]]
    images[5].save(tmp_path / "five.png")
    file = gradio_client.handle_file(tmp_path / "five.png")
    assert client.predict(file, 3, api_name="/similar")[0]["photograph"] == 5
    assert client.predict(sentence, file, 0.0, 3, api_name="/combined")[0]["photograph"] == 5
    all_of_text = client.predict(sentence, file, 1.0, 3, api_name="/combined")
    assert [each["photograph"] for each in all_of_text] == best[:3].tolist()
    sentences = client.predict(file, 6, api_name="/search_by_image")
    assert len(sentences) == 6 and sentences == sorted(sentences, key=lambda each: -each["score"])
    shares = client.predict(file, "circle, star, ring", "a {}", api_name="/zero_shot")
    assert shares.keys() == {"circle", "star", "ring"} and abs(sum(shares.values()) - 1) < 1e-5
    both = client.predict(sentence, 4, api_name="/compare")
    assert both["model"] == found and both["compared_with"] != found
    jpeg = client.predict(2, api_name="/thumbnail")["image"].removeprefix("data:image/jpeg;base64,")
    assert PIL.Image.open(BytesIO(base64.b64decode(jpeg))).size == (32, 32)


def test_api_describes_model_and_itself(client, server):
    about = client.predict(api_name="/about")
    assert about["model"] == "org/vse-tiny" and about["text_tower"] == "GRU" and about["loss"] == "nce"
    assert about["photographs"] == PHOTOGRAPHS and about["broken_photographs"] == 1
    assert about["recalls"]["test"] == dict.fromkeys(RECALLS[:-1], 12.34) | {"rsum": 345.6}
    assert str(server.folder.parent) not in json.dumps(about)
    documented = set(re.findall(r"^\| `(/\w+)`", (DEMO / "README.md").read_text(), flags=re.MULTILINE))
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == documented


@pytest.mark.parametrize(
    ("endpoint", "arguments", "message"),
    [
        ("/search_by_text", (" ", 3), "type one first"),
        ("/search_by_text", ("x" * 301, 3), "at most 300"),
        ("/zero_shot", ("photograph", "dog", "{}"), "at least two labels"),
        ("/similar", ("bomb", 3), "at most 40 million"),
        ("/similar", (None, 3), "There is no photograph yet"),
        ("/thumbnail", (-1,), "photographs 0 to 10"),
    ],
)
def test_api_refuses_in_one_line(client, tmp_path, endpoint, arguments, message):
    files = {"bomb": bomb(), "photograph": png(PIL.Image.new("RGB", (40, 40)))}
    given = []
    for each in arguments:
        if each in files:
            (tmp_path / "file.png").write_bytes(files[each])
            each = gradio_client.handle_file(tmp_path / "file.png")
        given.append(each)
    with pytest.raises(Exception, match=message) as refused:
        client.predict(*given, api_name=endpoint)
    assert "\n" not in str(refused.value)


def test_no_file_of_the_host_is_served(server):
    paths = ["/etc/passwd", *map(str, server.secrets), *map(str, (server.folder / "hf" / "vse_demo").iterdir())]
    assert len(paths) > 5
    with httpx.Client(base_url=server.url) as web:
        assert web.get("/config").status_code == 200
        for path in [*paths, "../../../../etc/passwd", "app.py", "..%2f..%2fetc%2fpasswd"]:
            for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/"):
                assert web.get(route + path).status_code in (403, 404), route + path
        assert web.get(f"/gradio_api/file={server.url}/config").status_code == 403
        assert web.get(f"/gradio_api/proxy={server.url}/config").status_code == 403
        for path in [*paths, f"{server.url}/config"]:  # as the photograph of a query
            data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, 3]
            event = web.post("/gradio_api/call/similar", json={"data": data}).json()["event_id"]
            answer = web.get(f"/gradio_api/call/similar/{event}").text
            assert answer.startswith("event: error") and "this demo fetches nothing from elsewhere" in answer
            assert path not in answer  # nothing about the host in the answer either


def test_large_requests_are_refused(server):
    with httpx.Client(base_url=server.url) as web:
        upload = web.post("/gradio_api/upload", files={"files": ("large.png", b"0" * (10 * 2**20 + 1))})
        assert upload.status_code == 413
        data = {"data": ["x" * (2 * 2**20 + 1), 3]}
        assert web.post("/gradio_api/call/search_by_text", json=data).status_code == 413
        chunks = web.post("/gradio_api/call/search_by_text", content=iter([b"{}"]))
        assert chunks.status_code == 413


# --- people ---------------------------------------------------------------------------------------------------


@pytest.fixture
def visit(chromium, server):
    yield from visits(chromium, server.url)


def search(page, label: str, text: str) -> None:
    box = page.get_by_label(label)
    box.fill(text)
    box.press("Enter")


def tile_captions(page) -> list[str]:
    return page.locator(".photos:visible .caption-label").all_text_contents()


def wait_for_note(page, text: str) -> None:
    page.locator(".note:visible", has_text=text).first.wait_for()


def close_preview(page) -> None:
    """As often as it takes: the page may show the preview before it listens to the key."""
    from playwright.sync_api import Error

    preview = page.locator(".preview")
    preview.wait_for()

    def closed() -> bool:
        with suppress(Error):  # it may close meanwhile
            preview.press("Escape", timeout=500)
        return preview.count() == 0

    wait_until(closed, 20)


def test_sentence_finds_photographs(visit, reference):
    scores, _, captions = reference
    page = visit()
    sentence = captions[7][0]
    search(page, "What should the photograph show?", sentence)
    place = 1 + int((scores(sentence) > scores(sentence)[7]).sum())
    wait_for_note(page, f"is {'first' if place == 1 else f'number {place}'} of {PHOTOGRAPHS}")
    found = tile_captions(page)
    order = np.argsort(-scores(sentence))
    assert [each.split("\n")[1] for each in found] == [captions[row][0] for row in order]
    assert [each.split("\n")[0].endswith("✓") for each in found] == [row == 7 for row in order]
    page.locator(".photos:visible .thumbnail-lg").nth(2).click()
    enlarged = page.locator(".preview .caption")
    assert enlarged.text_content().split("\n")[1:] == captions[order[2]]
    close_preview(page)
    enlarged.wait_for(state="detached")
    page.locator("button.gallery-item").first.click()  # an example
    wait_for_note(page, "A caption of the gallery")
    assert page.get_by_label("What should the photograph show?").input_value() in sum(captions, [])


def test_light_falls_on_what_speaks_for_the_sentence(visit, reference):
    scores, _, captions = reference
    page = visit()
    sentence = captions[7][0]
    search(page, "What should the photograph show?", sentence)
    wait_for_note(page, "A caption of the gallery")
    page.locator(".photos:visible .thumbnail-lg").nth(2).click()
    close_preview(page)
    page.get_by_text("Why this photograph?").click()
    number = page.get_by_role("spinbutton", name="Which one")
    page.wait_for_function("box => box.value === '3'", arg=number.element_handle())
    page.get_by_role("button", name="Show what speaks for the sentence").click()
    lit = page.locator(".lit")
    lit.wait_for()
    score = re.match(r"Photograph 3: similarity (-?\d\.\d\d); of its cells alone", lit.text_content())
    assert float(score[1]) == pytest.approx(np.sort(scores(sentence))[-3], abs=0.03)  # of a thumbnail
    assert lit.locator("img").get_attribute("src").startswith("data:image/jpeg;base64,")
    number.fill("48")
    number.press("Enter")
    page.get_by_role("button", name="Show what speaks for the sentence").click()
    page.get_by_text("11 photographs were found: choose one of them.").wait_for()


def test_errors_are_friendly(visit, tmp_path):
    page = visit()
    search(page, "What should the photograph show?", "  ")
    page.get_by_text("There is no sentence yet: type one first.").wait_for()
    open_tab(page, "Find sentences")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(tmp_path / "broken.png")
    page.get_by_text("This file is not a readable picture: try a JPEG, PNG or WebP.").wait_for()


def test_photograph_finds_sentences_and_photographs_like_it(visit, reference, tmp_path):
    _, images, captions = reference
    images[3].resize((320, 320)).save(tmp_path / "three.png")
    page = visit()
    open_tab(page, "Find sentences")
    page.locator("[role=tabpanel]:visible input[type=file]").set_input_files(tmp_path / "three.png")
    sentences = page.locator("ol.sentences li")
    sentences.first.wait_for()
    assert sentences.count() == 8 and len(tile_captions(page)) == 8
    assert set(page.locator("ol.sentences .words").all_text_contents()) <= set(sum(captions, []))
    before, everywhere = tile_captions(page), page.locator(".photos .caption-label").all_text_contents()
    page.get_by_text("Add a sentence").click()
    page.get_by_label("Weight of the sentence").first.wait_for()
    search(page, "…and it should also show", "a large blue star")
    changed = "old => [...document.querySelectorAll('.photos .caption-label')].map(e => e.textContent).join() !== old"
    page.wait_for_function(changed, arg=",".join(everywhere))
    assert tile_captions(page) != before
    page.locator(".strip:visible .thumbnail-item").nth(1).click()
    page.locator(".photo:visible img[src^='data:image/jpeg']").wait_for()


def test_labels_add_up_and_say_which_is_best(visit):
    page = visit()
    open_tab(page, "Labels")
    page.locator(".strip:visible .thumbnail-item").first.click()
    shares = page.locator("[data-testid=label-output-value]:visible, .output-class:visible")
    shares.first.wait_for()
    search_box = page.get_by_label("Labels, separated by commas")
    search_box.fill("circle, ring, star")
    search_box.press("Enter")
    page.wait_for_function("() => [...document.querySelectorAll('.confidence-set')].length === 3")
    shown = page.locator(".confidence-set:visible .confidence").all_text_contents()
    assert 98 <= sum(int(share.strip("% ")) for share in shown) <= 102


def test_two_models_side_by_side_and_about(visit):
    page = visit()
    open_tab(page, "Compare")
    page.get_by_role("heading", name="vse-other").wait_for()
    search(page, "One sentence, two models", "a small red circle")
    page.wait_for_function("() => document.querySelectorAll('.tabitem:not([style*=none]) .caption-label').length > 17")
    left, right = (page.locator(".photos:visible").nth(side).locator(".caption-label") for side in (0, 1))
    assert left.count() == right.count() == 9 and left.all_text_contents() != right.all_text_contents()
    open_tab(page, "About")
    table = page.locator("table.recalls").first
    table.wait_for()
    assert "12.3" in table.text_content() and "345.6" in table.text_content()
    assert "1 photographs that cannot be read" in page.locator("table.facts").first.text_content()
    assert "AutoModel.from_pretrained" in page.locator("[role=tabpanel]:visible pre").text_content()


def test_own_pictures_belong_to_one_visitor(visit, server, tmp_path):
    file = tmp_path / "mine.png"
    PIL.Image.new("RGB", (64, 48), "red").save(file)
    anna, ben = visit(), visit()
    open_tab(anna, "My pictures")
    anna.locator("[role=tabpanel]:visible input[type=file]").set_input_files([file, file])
    wait_for_note(anna, "2 pictures of yours")
    assert not [each for each in (server.folder / "tmp").rglob("mine*") if each.is_file()]
    search(anna, "Sort your pictures by a sentence", "a red square")
    anna.wait_for_function(
        "() => document.querySelectorAll('.tabitem:not([style*=none]) .caption-label').length === 2"
    )
    for page, own in ((anna, 2), (ben, 0)):
        open_tab(page, "Find photographs")
        search(page, "What should the photograph show?", "a red zebra")
        wait_for_note(page, "zebra")
        found = tile_captions(page)
        assert len(found) == min(12, PHOTOGRAPHS + own)
        assert sum(each.endswith("yours") for each in found) in ((1, 2) if own else (0,))
    assert "pictures forgotten" not in server.log
    anna.context.close()
    wait_until(lambda: "a visitor left, pictures forgotten: 2" in server.log, 20)


def test_phone_has_no_sideways_scrolling(visit):
    page = visit(390, 844)
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 390
    search(page, "What should the photograph show?", "a small red circle above a large blue star")
    page.locator(".photos:visible .caption-label").first.wait_for()
    assert page.evaluate(wide) == 390
    for name in ("Find sentences", "My pictures", "Labels", "Compare", "About"):
        open_tab(page, name)
        if name in ("Find sentences", "Labels"):
            page.locator(".strip:visible .thumbnail-item").first.click()
            page.locator(".photo:visible img[src^='data:image/jpeg']").wait_for()
        assert page.evaluate(wide) == 390, name


def test_nothing_failed_on_the_server(server):
    """Runs last; refusals are no failures."""
    assert not re.findall(r"^(\S*(?:Error|Exception)\b)", server.log, flags=re.MULTILINE)
