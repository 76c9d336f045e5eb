"""`link` finds the known links of generated catalogues, better than chance and than strings."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from hf_vse.cli.main import main
from hf_vse.link.labels import read_labels, truth_of
from hf_vse.link.output import check_links_file, least_certain
from hf_vse.link.records import embed_records, read_records
from hf_vse.link.run import link_records
from tests.link.conftest import ENCODER
from tests.link.scenes_encoder import Scenes


@pytest.fixture(scope="module")
def records(catalogues):
    return [embed_records(read_records(catalogues / name), Scenes()) for name in "ab"]


@pytest.fixture(scope="module")
def known(catalogues, records):
    """Known pairs of the two catalogues, and of the first with itself."""
    names = [{name: row for row, name in enumerate(each.names)} for each in records]
    pairs = read_labels(catalogues / "pairs.csv", *names)
    return pairs, read_labels(catalogues / "duplicates.csv", names[0], names[0])


@pytest.mark.parametrize("mode", ["one_to_one", "one_to_many"])
def test_known_links_are_found_far_better_than_by_chance(records, known, mode):
    found = link_records(*records, mode=mode, pairs=known[0])
    judged = found.judged["vectors"]
    assert judged["f1"] > 0.65 and judged["accuracy"] > 0.65 and judged["ari"] > 0.5
    rng = np.random.default_rng(0)
    shuffled = [replace(each, embeds=rng.permutation(each.embeds)) for each in records]
    assert link_records(*shuffled, mode=mode, pairs=known[0], threshold=-1).judged["vectors"]["f1"] < 0.1
    assert "that did not choose the threshold" in found.judged_on and "highest F1" in found.chosen


def test_known_links_are_found_better_than_by_strings(records, known):
    pytest.importorskip("rapidfuzz")
    judged = link_records(*records, pairs=known[0], strings=True).judged
    assert 0 < judged["strings"]["f1"] < judged["vectors"]["f1"] - 0.2


def test_links_are_those_of_a_loop_over_all_pairs(records):
    first, second = records
    scores = first.embeds @ second.embeds.T
    found = link_records(first, second, threshold=0.8)
    taken, expected = set(), {}
    for row in np.argsort(-scores, axis=None, kind="stable"):
        a, b = divmod(int(row), scores.shape[1])
        if scores[a, b] >= 0.8 and a not in expected and b not in taken:
            expected[a] = b
            taken.add(b)
    assert {a: int(b) for a, b in enumerate(found.links) if b >= 0} == expected and len(expected) > 20
    for a, b in expected.items():
        assert found.scores[a] == pytest.approx(scores[a, b], abs=1e-6)
    for a in range(len(first)):
        rest = np.delete(scores[a], [expected[a]] if a in expected else [])
        assert found.runner_up_scores[a] == pytest.approx(rest.max(), abs=1e-6)
        assert found.runners_up[a] != expected.get(a)
        assert scores[a, found.runners_up[a]] == pytest.approx(rest.max(), abs=1e-6)


def test_one_to_many_gives_each_of_the_second_its_best(records):
    first, second = records
    scores = second.embeds @ first.embeds.T
    found = link_records(first, second, mode="one_to_many", threshold=0.7)
    np.testing.assert_array_equal(found.links, np.where(scores.max(1) >= 0.7, scores.argmax(1), -1))
    assert len(set(found.links[found.links >= 0])) < (found.links >= 0).sum()


def test_judged_numbers_are_of_records_that_did_not_choose(records, known):
    found = link_records(*records, pairs=known[0])
    fixed = link_records(*records, pairs=known[0], threshold=found.threshold)
    truth = truth_of(known[0], 0)
    everybody = sum(int(fixed.links[a]) in b if fixed.links[a] >= 0 else not b for a, b in truth.items()) / len(truth)
    assert fixed.judged["vectors"]["accuracy"] == pytest.approx(everybody)
    assert found.judged["vectors"] != fixed.judged["vectors"]
    np.testing.assert_array_equal(found.links, fixed.links)


def test_duplicates_are_found(records, known):
    found = link_records(records[0], mode="clusters", pairs=known[1], threshold=0.97)
    entities = records[0].values("entity")
    assert found.judged["vectors"]["ari"] == pytest.approx(adjusted_rand_score(entities, found.clusters), abs=1e-9)
    chosen = link_records(records[0], mode="clusters", pairs=known[1])
    assert chosen.judged["vectors"]["f1"] > 0.5 and chosen.judged["vectors"]["ari"] > 0.5
    assert "labelled clusters that did not choose the threshold" in chosen.judged_on


def test_a_stated_rate_of_strangers_is_linked(records, known):
    """Records without a match are many here, so the rate is kept roughly."""
    found = link_records(*records, false_accept_rate=0.1)
    strangers = [a for a, b in truth_of(known[0], 0).items() if not b]
    assert (found.links[strangers] >= 0).mean() < 0.35 and "false-accept rate 0.1" in found.chosen
    assert link_records(*records).threshold > found.threshold  # the default is 0.01


def test_blocks_keep_apart_what_differs(records):
    found = link_records(*records, threshold=0, block="objects")
    counts = [each.values("objects") for each in records]
    pairs = [(counts[0][a], counts[1][b]) for a, b in enumerate(found.links) if b >= 0]
    assert len(pairs) > 40 and all(a == b for a, b in pairs)
    assert any(counts[0][a] != counts[1][b] for a, b in enumerate(link_records(*records, threshold=0).links) if b >= 0)


def test_options_that_exclude_each_other_are_refused(records, known):
    for options, says in (
        ({"mode": "clusters"}, "give another mode"),
        ({"threshold": 1, "false_accept_rate": 0.1}, "exclude each other"),
        ({"strings": True}, "give labels too"),
    ):
        with pytest.raises(ValueError, match=says):
            link_records(*records, **options)
    with pytest.raises(ValueError, match="give another mode"):
        link_records(records[0], threshold=1)


def test_the_least_certain_are_nearest_to_another_decision(records):
    found = link_records(*records, threshold=0.8)
    rows = least_certain(found, 200)
    linked = found.links >= 0
    margin = np.minimum(found.scores - 0.8, found.scores - found.runner_up_scores)
    distance = np.where(linked, margin, np.abs(0.8 - found.runner_up_scores))
    assert len(rows) == len(found.links) and (np.diff(distance[rows]) >= 0).all() and linked.any() and not linked.all()


def link(*words, output):
    return main(["link", *map(str, words), "--model", ENCODER, "--output", str(output), "--quiet"])


def test_the_command_writes_links_and_a_sheet(catalogues, tmp_path, capsys, records, monkeypatch):
    monkeypatch.setattr("hf_vse.cli.link.DOUBTFUL", 2)
    output, sheet = tmp_path / "links.csv", tmp_path / "sheet.png"
    words = [catalogues / "a", catalogues / "b", "--labels", catalogues / "pairs.csv", "--sheet", sheet, "--json"]
    kept = ("--embeddings", tmp_path / "kept")
    assert link(*words, *kept, output=output) == 0
    record = json.loads(capsys.readouterr().out)
    with output.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["a"] for line in lines] == records[0].names and sheet.stat().st_size > 5000
    linked = [line for line in lines if line["b"]]
    assert len(linked) == record["links"] == record["others_linked"] and record["without"] == len(lines) - len(linked)
    assert all(float(line["score"]) >= record["threshold"] - 1e-6 for line in linked)
    assert all(line["score"] == "" and float(line["runner_up_score"]) < 1 for line in lines if not line["b"])
    assert record["metrics"]["vectors"]["f1"] > 0.6
    before = output.read_bytes()
    assert link(*words, *kept, output=output) == 0 and output.read_bytes() == before
    capsys.readouterr()
    assert link(catalogues / "a", "--threshold", 0.99, *kept, output=output) == 0
    said = capsys.readouterr().out
    assert "clusters" in said and "have an earlier duplicate" in said
    assert output.read_text().startswith("a,b,score,runner_up,runner_up_score,cluster\n")
    assert link(catalogues / "a", catalogues / "b", "--one_to_many", "--threshold", "auto", *kept, output=output) == 0
    with output.open(newline="") as file:
        assert [line["b"] for line in csv.DictReader(file)] == records[1].names


def test_the_command_refuses_in_one_line_and_writes_nothing(catalogues, tmp_path, capsys):
    own = tmp_path / "own.csv"
    own.write_text("my,table\n1,2\n")
    a, b, new = catalogues / "a", catalogues / "b", tmp_path / "links.csv"
    (tmp_path / "labels.csv").write_text("a,b\nnobody,\n")
    for words, output, says, code in (
        ((a, b), own, "own.csv is there and holds no links", 1),
        ((a, b, "--sheet", tmp_path / "s.jpg"), new, "must end in .png", 1),
        ((a, b, "--block", "brand"), new, "has 'brand'; there are", 1),
        ((a, b, "--labels", tmp_path / "labels.csv"), new, "line 2: a is 'nobody'", 1),
        ((a, tmp_path / "nowhere"), new, "nowhere is not a folder", 1),
        ((a, "--one_to_many"), new, "give a second catalogue", 2),
        ((a, b, "--threshold", "high"), new, "neither auto nor a number", 2),
        ((a, b, "--threshold", "1", "--false_accept_rate", "0.1"), new, "exclude each other", 2),
        ((a, b, "--false_accept_rate", "1"), new, "between 0 and 1", 2),
        ((a, b, "--strings"), new, "give --labels FILE too", 2),
        ((a, b, "--one_to_many", "--assignment", "optimal"), new, "goes with one-to-one", 2),
    ):
        assert link(*words, output=output) == code
        said = capsys.readouterr().err.strip().splitlines()
        assert says in said[-1]
    assert main(["link", str(a), str(b), "--output", str(new)]) == 1 and "give --model" in capsys.readouterr().err
    assert own.read_text() == "my,table\n1,2\n" and sorted(p.name for p in tmp_path.iterdir()) == [
        "labels.csv",
        "own.csv",
    ]
    assert check_links_file(new) == new
