"""The page says which thing of a gallery a photograph shows, as `hf-vse identify` does."""

import html
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hf_vse.cli.main import main
from hf_vse.data.scene_catalogues import write_catalogues
from hf_vse.embed.run import encode_images
from hf_vse.link.identify import choose_threshold, embed_things, has_labels, identify
from hf_vse.link.records import read_records
from tests.link.scenes_encoder import Scenes
from tests.spaces_demo.conftest import open_tab, served, visits

pytest.importorskip("gradio")
pytest.importorskip("faiss")

from hf_vse.cli import demo  # noqa: E402
from hf_vse.cli.demo_things import VIEWS, Recognition, labelled_gallery, open_things  # noqa: E402


@pytest.fixture(scope="module")
def catalogues(tmp_path_factory):
    folder = tmp_path_factory.mktemp("things") / "catalogues"
    write_catalogues(folder, 12)
    return folder


@pytest.fixture(scope="module")
def gallery(catalogues, model_folder):
    """A gallery with labels, by a model that knows nothing."""
    words = ["index", catalogues / "a", catalogues.parent / "index", "--model", model_folder, "--quiet"]
    assert main(list(map(str, words))) == 0
    return catalogues.parent / "index"


@pytest.fixture(scope="module")
def things(catalogues):
    """Two things, with two and three objects, of many views each."""
    return embed_things(read_records(catalogues / "a"), Scenes(), 1.0, label="objects")


def bars(shown: str) -> list[tuple[str, str]]:
    found = re.findall(r'<span class="score">([\d.-]+)</span><span class="words">([^<]*)</span>', shown)
    return [(html.unescape(name), score) for score, name in found]


def captions(shown: str, heading: str) -> list[tuple[float, str]]:
    """Scores and names of the photographs below a heading."""
    part = shown.split(f"<h3>{heading}</h3>")[1].split("<h3>")[0]
    return [(float(score), name) for score, name in re.findall(r"<figcaption><b>([\d.-]+)</b> ([^<]*)<", part)]


def test_the_answer_is_that_of_identify(things, catalogues):
    photos = [{"image": str(path)} for path in sorted((catalogues / "b").glob("*.png"))]
    queries = encode_images(Scenes(), photos).embeds.numpy()
    threshold = float(np.median((queries @ things.embeds.T).max(axis=1)))
    chosen = choose_threshold(things, threshold=threshold)
    found, kinds = identify(things, queries, threshold), set()
    for row, query in enumerate(queries):
        shown = Recognition(things, chosen).answer(query)
        known = found.things[row] >= 0
        best = things.labels[found.things[row] if known else found.runners_up[row]]
        verdict = re.search(r'<p class="verdict( unknown)?">([^<]*)</p>', shown)
        assert (verdict[1] is None, verdict[2]) == ((True, best) if known else (False, "unknown"))
        expected = [(best, found.scores[row])] if known else []
        expected += [(things.labels[found.runners_up[row]], found.runner_up_scores[row])]
        assert bars(shown) == [(name, f"{score:.3f}") for name, score in expected]
        views = captions(shown, f"References of {best}" if known else f"The nearest is not near enough: {best}")
        rows = np.flatnonzero(things.owner == things.labels.index(best))
        order = rows[np.argsort(-(things.views.embeds[rows] @ query), kind="stable")][:VIEWS]
        assert [name for _, name in views] == [things.views.names[each] for each in order]
        assert order[0] == found.views[row] and views[0][0] == pytest.approx(
            things.views.embeds[order[0]] @ query, abs=0.006
        )
        assert ("The runner-up" in shown) == known and f"Threshold {threshold:.3f}</b> (the line): given." in shown
        kinds.add(known)
    assert kinds == {True, False}


def test_labels_and_names_are_text(things):
    odd = replace(things, labels=["<b>a</b>", *things.labels[1:]])
    shown = Recognition(odd, choose_threshold(odd, threshold=-1))
    for text in (shown.answer(odd.embeds[0]), shown.about_things()):
        assert "<b>a</b>" not in text and "&lt;b&gt;a&lt;/b&gt;" in text


def test_known_photographs_choose_and_judge(catalogues, gallery, tmp_path, monkeypatch, model_folder):
    from hf_vse.embed.load import load_encoder

    monkeypatch.setattr("hf_vse.cli.demo_things.cache", lambda: tmp_path)
    stated = {"label": None, "label_is_text": False, "image_weight": 0.5, "threshold": None, "false_accept_rate": None}
    encoder = load_encoder(str(model_folder))
    given = open_things(encoder, str(gallery), labelled=str(catalogues / "b"), **stated)
    assert "highest F1 on" in given.about_threshold() and "Judged on" in given.about_threshold()
    assert "known photographs: accuracy 0." in given.about_threshold()
    without = open_things(encoder, str(gallery), labelled=None, **stated)
    assert "false-accept rate 0.01, from" in without.about_threshold() and "Judged" not in without.about_threshold()
    assert (tmp_path / "vectors").is_dir()  # of the sentences: the next start encodes none


def test_a_place_is_offered_where_there_are_labels(catalogues, tmp_path, caplog):
    assert has_labels(read_records(catalogues / "a"))
    for name in ("00000.png", "00001.png"):
        shutil.copy(catalogues / "a" / name, tmp_path)
    assert not labelled_gallery(str(tmp_path)) and not caplog.text  # each photograph is itself
    lines = ['{"file_name": "00000.png", "entity": "star"}', '{"file_name": "00001.png"}']
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert not labelled_gallery(str(tmp_path)) and "00001.png of" in caplog.text and "no 'entity'" in caplog.text
    for folder in ("kite", "star"):
        (tmp_path / "folders" / folder).mkdir(parents=True)
        shutil.copy(catalogues / "a" / "00000.png", tmp_path / "folders" / folder)
    assert labelled_gallery(str(tmp_path / "folders"))
    (tmp_path / "one" / "kite").mkdir(parents=True)
    shutil.copy(catalogues / "a" / "00000.png", tmp_path / "one" / "kite")
    assert not labelled_gallery(str(tmp_path / "one"))


def test_the_command_says_what_the_page_has(gallery, catalogues, monkeypatch, capsys):
    def places(*words):
        return demo.places_of(demo.parse([str(word) for word in words]))

    monkeypatch.chdir(gallery.parent)
    things = places("index")["things"]
    assert things["gallery"] == str(gallery) and not things["asked"] and things["threshold"] is None
    assert places("index", "--max_images", 3) == places() == {}  # the page shows a part of the gallery
    asked = places("index", "--max_images", 3, "--label", "objects", "--labelled", "catalogues/b")["things"]
    assert asked["asked"] and asked["label"] == "objects" and asked["labelled"] == str(catalogues / "b")
    for words, says in (
        (["--label", "objects"], "--label is of the things of a gallery: name one that"),
        (["index", "--threshold", "1", "--false_accept_rate", "0.1"], "exclude each other"),
    ):
        assert main(["demo", *words]) == 2 and says in capsys.readouterr().err


def test_a_visitor_sees_what_the_command_writes(chromium, catalogues, gallery, tmp_path, capsys):
    photo = catalogues / "b" / "00002.png"
    words = [gallery, photo, "--image_weight", "1", "--json", "--quiet"]
    assert main(["identify", *map(str, words)]) == 0
    record = json.loads(capsys.readouterr().out)
    (line,) = record["photos"]
    with served(tmp_path, gallery, "--image_weight", 1) as url:
        for visit in visits(chromium, url):
            for width in (1280, 390):
                page = visit(width, 900)
                open_tab(page, "Recognise")
                said = page.locator("[role=tabpanel]:visible")
                assert f"{record['things']} things, {record['views']} views" in said.inner_text()
                said.locator("input[type=file]").set_input_files(photo)
                page.locator(".verdict").wait_for()
                assert page.locator(".verdict").inner_text() == (line["label"] or "unknown")
                found = page.locator("ol.threshold li").all_inner_texts()
                best = line["label"] or line["runner_up"]
                score = line["runner_up_score"] if line["score"] is None else line["score"]
                assert found[0].split() == [f"{score:.3f}", best] and len(found) == (1 if line["label"] is None else 2)
                assert f"Threshold {record['threshold']:.3f}" in said.inner_text()
                assert record["chosen"] in said.inner_text()
                if line["view"] is not None:
                    assert page.locator(".references img").first.get_attribute("alt") == line["view"]
                assert page.evaluate("() => document.documentElement.scrollWidth") == width
