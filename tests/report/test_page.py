"""The page as a person gets it: one file, everything in it, looked at in a browser."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from datasets import Image

from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.composition.probe import Foil, FoilScores, summary, winoground_scores
from hf_vse.evaluation.intervals import holm
from hf_vse.evaluation.judge import Judgement, compare_judgements, judge
from hf_vse.evaluation.record import evaluation_of, read_evaluation
from hf_vse.report import figures
from hf_vse.report.page import metric_label, metric_rows, named, write_report
from tests.conftest import make_pairs

HOSTILE = "a red </script><script>document.title = 'hacked'</script> circle & $x$ <b>left</b>"


class Page(HTMLParser):
    """Addresses, elements and texts of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses: list[str] = []
        self.elements: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href") and value]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def dataset():
    pairs = make_pairs(24, captions=3).cast_column("image", Image(decode=False))

    def change(row, index):
        image = {"bytes": b"no picture", "path": None} if index == 5 else row["image"]
        return {"image": image, "captions": [HOSTILE, *row["captions"][1:]] if index == 0 else row["captions"]}

    return pairs.map(change, with_indices=True, features=pairs.features)


@pytest.fixture(scope="module")
def judgements(tiny_model, dataset) -> list[Judgement]:
    found = []
    for name in ("first/tiny", "second/tiny"):
        encoder = load_encoder(str(tiny_model), device="cpu")
        encoder.name = name
        with torch.no_grad():
            encoder.model.visual_projection.weight.add_(0.1 * len(found))
        found.append(judge(encoder, dataset, source="mine", split="test", diagnostics=True, progress=False))
    return found


def whole(judgements) -> dict:
    return evaluation_of(
        {each.record["model"]: each.record for each in judgements}, {}, compare_judgements(judgements)
    )


@pytest.fixture(scope="module")
def written(judgements, dataset, tiny_model, tmp_path_factory) -> Path:
    shown = [load_encoder(str(tiny_model), device="cpu"), None]
    return write_report(tmp_path_factory.mktemp("report"), judgements, whole(judgements), dataset, shown)


def test_page_needs_no_other_file(written):
    page = Page(written.read_text(encoding="utf-8"))
    outside = {address for address in page.addresses if not address.startswith(("#", "data:image/"))}
    assert outside == {"report.json"} and {"link", "iframe"}.isdisjoint(page.elements)
    assert page.elements.count("svg") == 4 and page.elements.count("img") > 60
    assert not re.search(r"https?://(?!www\.w3\.org)", written.read_text(encoding="utf-8"))


def test_page_shows_what_the_record_says(written, judgements):
    text = " ".join(Page(written.read_text(encoding="utf-8")).texts)
    for judgement in judgements:
        assert judgement.record["model"] in text
        for name in ("i2t_r1", "t2i_r10", "rsum"):
            assert f"{judgement.record['metrics'][name]:.1f}" in text
    assert "do not compare the numbers" in text and "1 broken images left out" in text
    kept = json.loads((written.parent / "report.json").read_text(encoding="utf-8"))
    assert kept["metrics"] == {judgement.record["model"]: judgement.record for judgement in judgements}
    assert read_evaluation(written.parent / "report.json") == kept
    inside = re.search(r'<script type="application/json" id="record">(.*?)</script>', written.read_text("utf-8"), re.S)
    assert json.loads(inside[1]) == kept


def test_page_shows_where_a_model_looks(written, judgements):
    page = written.read_text(encoding="utf-8")
    lit = page[page.index("Where it looks") : page.index("Images and the sentences found for them")]
    assert lit.count("<img") == 2 * 4 and lit.count("first/tiny") == 4 and "second/tiny" not in lit
    assert judgements[0].texts.captions[17] in lit
    plain, shown = re.findall(r'src="(data:[^"]+)"', lit)[:2]
    assert plain != shown


def test_equal_captions_stand_beside_the_usual_recalls(tiny_model, tmp_path):
    pairs = make_pairs(12, captions=2)
    pairs = pairs.map(
        lambda row, index: {"captions": [f"Scene {index % 3}", f"scene {index % 3} "]}, with_indices=True
    )
    judgement = judge(load_encoder(str(tiny_model), device="cpu"), pairs, progress=False)
    text = " ".join(Page(write_report(tmp_path / "new", [judgement], whole([judgement])).read_text("utf-8")).texts)
    assert judgement.record["equal_captions"] == {"captions": 24, "images": 12, "sentences": 3}
    for name in ("i2t_r1", "t2i_r5", "rsum"):
        assert f"{judgement.record['metrics_equal_captions'][name]:.1f}" in text
    assert f"{judgement.record['chance_equal_captions']['t2i_r1']:.1f}" in text  # 33.3, against 8.3
    assert "24 of 24 captions are, word for word" in " ".join(text.split())


def test_captions_are_text_and_never_markup(written):
    page = Page(written.read_text(encoding="utf-8"))
    assert page.elements.count("script") == 1 and "b" not in page.elements
    assert HOSTILE in "".join(page.texts)


def test_one_model_without_photographs_or_reasons(tiny_model, dataset, tmp_path):
    sound = dataset.select(range(6, 12))
    judgement = judge(load_encoder(str(tiny_model), device="cpu"), sound, progress=False)
    page = Page(write_report(tmp_path / "new", [judgement], whole([judgement])).read_text(encoding="utf-8"))
    assert page.elements.count("svg") == 1 and "img" not in page.elements
    with pytest.raises(ValueError, match="judgements is empty"):
        write_report(tmp_path, [], {})


def test_many_comparisons_are_adjusted_and_published_foils_have_their_scores(judgements, tmp_path):
    first, second = judgements
    third = replace(first, record=first.record | {"model": "third/tiny"})
    compared = compare_judgements([first, second, third])
    tested = [each["metrics"]["rsum"] for each in compared]
    plain, adjusted = ([each[key] for each in tested] for key in ("p_value", "adjusted_p_value"))
    assert adjusted == list(holm(dict(enumerate(plain))).values())
    assert len(compared) == 3 and all(more >= once for once, more in zip(plain, adjusted, strict=True))
    scores = winoground_scores(torch.randn(12, 2, 2))
    items = [(Foil(0, "a", ("b",), "winoground"), FoilScores(1.0, (0.5,), 0.0, (0.0,)))]
    probed = {"kinds": {"winoground": summary(items) | {"examples": []}}, "note": "", "winoground": scores}
    found = [replace(each, record=each.record | {"composition": probed}) for each in (first, second, third)]
    page = write_report(tmp_path, found, {"comparisons": compared}).read_text(encoding="utf-8")
    assert "p, adjusted" in page and "the 3 pairs of models" in page
    assert "group score" in page and f"{scores['group']['accuracy']:.1f}" in page


def test_models_of_one_name_keep_their_whole_names(judgements):
    assert list(named(judgements)) == ["first/tiny", "second/tiny"]
    assert list(named(judgements[:1])) == ["tiny"]


def test_names_of_models_are_text_in_plots_too(judgements):
    records = {"<b>one</b> $x$": judgements[0].record, "two & three": judgements[1].record}
    drawn = figures.to_svg(figures.recall_figure(records))
    assert "<b>" not in drawn and "&lt;b&gt;one&lt;/b&gt; $x$" in drawn
    assert drawn == figures.to_svg(figures.recall_figure(records))


def test_metric_names_are_words():
    words = {"t2i_hit_r5": "text to image hit R@5", "i2t_meanr": "image to text mean rank", "rsum": "rsum"}
    assert {name: metric_label(name) for name in words} == words
    rows = metric_rows({"a": {"x": {"metrics": {"i2t_r1": 1.0, "t2i_r1": 2.0, "rsum": 3.0}}}}, "x")
    assert [row["numbers"] for row in rows] == [{"r1": 1.0, "rsum": 3.0}, {"r1": 2.0}]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page_without_a_network(written):
    sync_api = pytest.importorskip("playwright.sync_api")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    quiet += ["--disable-background-networking", "--disable-component-update"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=quiet)
        page = browser.new_page(viewport={"width": 1180, "height": 900})
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(written.as_uri())
        title = page.title()
        page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        page.wait_for_function("[...document.images].every(image => image.complete)")
        unread = page.evaluate("[...document.images].filter(image => !image.naturalWidth).length")
        width = page.evaluate("document.documentElement.scrollWidth")
        plots = page.evaluate("[...document.querySelectorAll('figure svg')].map(each => each.clientHeight)")
        browser.close()
    assert [url for url in asked if not url.startswith("data:")] == [written.as_uri()]
    assert complaints == [] and unread == 0 and width <= 1180
    assert "hacked" not in title and len(plots) == 4 and min(plots) > 150
