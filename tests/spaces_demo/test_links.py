"""A person judges links in the page; what is said is kept, and chooses the threshold of the next run."""

import csv
import json

import pytest

from hf_vse.cli.main import main
from hf_vse.data.scene_catalogues import write_catalogues
from hf_vse.link.judging import Judgements, judged_file, proposed, questions, read_links
from tests.link.conftest import ENCODER
from tests.spaces_demo.conftest import open_tab, served, visits

pytest.importorskip("gradio")
pytest.importorskip("faiss")

import gradio as gr  # noqa: E402

from hf_vse.cli import demo  # noqa: E402
from hf_vse.cli.demo_links import ORDERS, Judging  # noqa: E402


@pytest.fixture
def links(tmp_path):
    """Links of two small catalogues of scenes, one record of which is a text with odd letters and no photograph."""
    write_catalogues(tmp_path / "catalogues", 12)
    a, b = tmp_path / "catalogues" / "a.jsonl", tmp_path / "catalogues" / "b"
    lines = (tmp_path / "catalogues" / "a" / "metadata.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        record["file_name"] = f"a/{record['file_name']}"
    records.append({"file": "text alone", "captions": ["a red <b>star</b>"], "price": 3.5})
    a.write_text("\n".join(map(json.dumps, records)))
    words = ["link", a, b, "--model", ENCODER, "--output", tmp_path / "links.csv", "--threshold", 0.95, "--quiet"]
    assert main(list(map(str, words))) == 0
    return tmp_path / "links.csv"


def answers(path) -> list[dict[str, str]]:
    with judged_file(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_answers_lead_from_question_to_question(links):
    judging = Judging.of(str(links))
    linkage, asked = judging.linkage, questions(judging.linkage)
    row, progress, shown, second = judging.start(ORDERS[0])
    assert row == asked[0] and f"0 of {len(asked)} judged" in progress and "20 more until half" in progress
    assert linkage.asking.names[row] in shown and linkage.others.names[proposed(linkage, row)] in shown
    following, progress, _, _ = judging.answer("yes", ORDERS[0], row)
    assert following == asked[1] and f"1 of {len(asked)} judged</b>: 1 yes; 19 more" in progress
    with_runner_up = next(row for row in asked[2:] if linkage.links[row] >= 0 and linkage.runners_up[row] >= 0)
    judging.answer("runner_up", ORDERS[0], with_runner_up)
    assert judging.judgements.of[with_runner_up] == (linkage.runners_up[with_runner_up], "yes")
    before = list(judging.judgements.of)
    _, _, shown, second = judging.back(following)
    assert "You said: yes" in shown and second["interactive"]
    assert judging.back(before[-1])[0] == before[0]
    without = next(row for row in asked if linkage.links[row] < 0)
    assert not judging.shown(without)[3]["interactive"] and "not linked" in judging.shown(without)[2]
    for call, says in (
        (lambda: judging.answer("runner_up", ORDERS[0], without), "There is no runner-up"),
        (lambda: judging.answer("yes", ORDERS[0], 10_000), "There is no such question"),
        (lambda: judging.answer("yes", "alphabetically", row), "The order is one of"),
        (lambda: judging.back(before[0]), "There is no earlier answer"),
    ):
        with pytest.raises(gr.Error, match=says):
            call()
    assert Judging.of(str(links)).judgements.of == judging.judgements.of
    for row in asked:
        last = judging.answer("no", ORDERS[1], row)
    assert last[0] == -1 and "All are judged" in last[2] and f"{len(asked)} of {len(asked)} judged" in last[1]
    with pytest.raises(gr.Error, match="All are judged: go back"):
        judging.answer("yes", ORDERS[0], -1)


def test_both_orders_ask_the_same_questions(links):
    judging = Judging.of(str(links))
    first, random = (judging.rows(order) for order in ORDERS)
    assert first != random and sorted(first) == sorted(random)
    assert Judging.of(str(links)).rows(ORDERS[1]) == random  # the same after a restart


def test_texts_are_text_and_photographs_are_where_they_are(links):
    judging = Judging.of(str(links))
    row = judging.linkage.asking.names.index("text alone")
    shown = judging.records(row)
    assert "a red &lt;b&gt;star&lt;/b&gt;" in shown and "<b>star" not in shown and "price: 3.5" in shown
    assert shown.count("no photograph") == 1 and shown.count("data:image/jpeg;base64,") >= 1


def test_links_alone_need_no_model(links, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(links.parent)
    alone = demo.parse(["--links", "links.csv"])
    assert alone.links_alone and demo.places_of(alone) == {"links": str(links)}
    assert not demo.parse(["--links", "links.csv", "--model", "m"]).links_alone
    assert main(["demo", "--links", "nothing.csv"]) == 1
    assert "links nothing.csv does not exist: give a file that `hf-vse link` has written" in capsys.readouterr().err


def keys(page, letters: str) -> None:
    """Answers with the keyboard, each when the next question is there."""
    for letter in letters:
        before = page.locator(".progress + p").inner_text()
        page.keyboard.press(letter)
        page.wait_for_function("old => document.querySelector('.progress + p').innerText !== old", arg=before)


@pytest.mark.parametrize("width", [1280, 390])
def test_a_person_judges_and_the_next_run_is_tuned(chromium, links, width, capsys, tmp_path):
    linkage = read_links(links)
    asked = questions(linkage)
    with served(tmp_path, "--links", links) as url:
        for visit in visits(chromium, url, first=".records article"):
            page = visit(width, 844)
            names = page.locator(".records h4").all_inner_texts()
            assert names[:2] == [linkage.asking.names[asked[0]], linkage.others.names[proposed(linkage, asked[0])]]
            page.get_by_role("button", name="Same").click()
            page.get_by_text(f"1 of {len(asked)} judged").wait_for()
            keys(page, "nu")
            said = answers(links)
            assert [line["a"] for line in said] == [linkage.asking.names[row] for row in asked[:3]]
            assert [line["judged"] for line in said] == ["yes", "no", "unsure"]
            page.reload()
            page.get_by_text(f"3 of {len(asked)} judged").wait_for()
            assert page.locator(".records h4").first.inner_text() == linkage.asking.names[asked[3]]
            page.keyboard.press("b")
            page.get_by_text("You said: unsure").wait_for()
            keys(page, "y")
            assert [line["judged"] for line in answers(links)] == ["yes", "no", "yes"]
            with page.expect_download() as download:
                page.get_by_role("button", name="Download the answers").click()
            assert download.value.suggested_filename == "links.judged.csv"
            assert download.value.path().read_bytes() == judged_file(links).read_bytes()
            page.get_by_label("At random").click()
            random = next(row for row in Judging.of(str(links)).rows(ORDERS[1]) if row not in asked[:3])
            page.locator(".records h4", has_text=linkage.asking.names[random]).first.wait_for()
            assert page.evaluate("() => document.documentElement.scrollWidth") == width
    entities = linkage.asking.items, linkage.others.items
    judgements = Judgements(judged_file(links), linkage)
    for row in asked:
        other = proposed(linkage, row)
        same = entities[0][row].get("entity") == entities[1][other]["entity"]
        judgements.judge(row, other, "yes" if same else "no")
    facts = json.loads((links.parent / "links.csv.json").read_text())
    words = [facts["a"], facts["b"], "--model", ENCODER, "--output", links, "--labels", judged_file(links), "--json"]
    assert main(["link", *map(str, words), "--quiet"]) == 0
    assert "highest F1 on" in json.loads(capsys.readouterr().out)["chosen"]


def test_links_are_a_tab_beside_a_search(chromium, links, model_folder, parquet, tmp_path):
    words = ["--links", links, "--model", model_folder, "--dataset", parquet]
    with served(tmp_path, *words) as url:
        for visit in visits(chromium, url):
            page = visit()
            page.keyboard.press("y")  # not here
            open_tab(page, "Judge links")
            page.locator(".records article").first.wait_for()
            assert not judged_file(links).exists()
            keys(page, "y")
            assert [line["judged"] for line in answers(links)] == ["yes"]
