"""What a person says of links is kept, read again, and chooses the threshold of the next run."""

import csv
import json

import numpy as np
import pytest

from hf_vse.cli.main import main
from hf_vse.link.judging import (
    Judgements,
    judged_file,
    proposed,
    questions,
    read_links,
    write_description,
)
from hf_vse.link.labels import read_labels, true_clusters, truth_of
from hf_vse.link.output import least_certain, write_links
from hf_vse.link.records import embed_records, read_records
from hf_vse.link.run import link_records
from tests.link.conftest import ENCODER
from tests.link.scenes_encoder import Scenes

MODES = ["one_to_one", "one_to_many", "clusters"]


@pytest.fixture(scope="module")
def records(catalogues):
    return [embed_records(read_records(catalogues / name), Scenes()) for name in "ab"]


def linked(records, mode, path, threshold=0.8):
    """A linkage, and the same as it is read from the file."""
    given = records[:1] if mode == "clusters" else records
    linkage = link_records(*given, mode=mode, threshold=threshold)
    write_description(linkage, path, None, "captions")
    write_links(linkage, path)
    return linkage, read_links(path)


@pytest.mark.parametrize("mode", MODES)
def test_links_are_read_as_they_were_written(records, mode, tmp_path):
    linkage, found = linked(records, mode, tmp_path / "links.csv")
    assert (found.mode, found.threshold, found.chosen) == (mode, 0.8, "given")
    for name in ("links", "runners_up", "clusters"):
        np.testing.assert_array_equal(getattr(found, name), getattr(linkage, name), err_msg=name)
    for name in ("scores", "runner_up_scores"):
        np.testing.assert_allclose(getattr(found, name), getattr(linkage, name), atol=1e-6)
    for one, other in ((found.asking, linkage.asking), (found.others, linkage.others)):
        assert (one.names, one.texts, one.items) == (other.names, other.texts, other.items)
        assert one.image(3).tobytes() == other.image(3).tobytes()
    expected = least_certain(linkage, 1000).tolist()
    if mode == "clusters":
        pairs = [frozenset((row, proposed(linkage, row))) for row in expected]
        expected = [row for place, row in enumerate(expected) if pairs.index(pairs[place]) == place]
        assert len(expected) < len(pairs)
    assert sorted(questions(found)) == sorted(expected)


def test_records_that_were_left_out_do_not_move_the_others(catalogues, tmp_path):
    lines = [{"id": "nothing"}, {"id": "red", "captions": ["a red star"]}, {"id": "blue", "captions": ["a blue kite"]}]
    catalogue = tmp_path / "records.jsonl"
    catalogue.write_text("\n".join(map(json.dumps, lines)))
    first = embed_records(read_records(catalogue), Scenes())
    second = embed_records(read_records(catalogues / "b"), Scenes())
    _, found = linked([first, second], "one_to_one", tmp_path / "links.csv", threshold=-1.0)
    assert found.asking.names == ["red", "blue"] and found.asking.texts == [["a red star"], ["a blue kite"]]
    assert found.asking.image(0) is None and found.others.image(int(found.links[0])) is not None


@pytest.mark.parametrize("mode", MODES)
def test_judgements_are_kept_and_tell_the_truth(records, mode, tmp_path):
    """A person who knows the entities, and cannot say of some pairs."""
    path = tmp_path / "links.csv"
    _, linkage = linked(records, mode, path)
    judgements, said = Judgements(judged_file(path), linkage), {}
    entities = linkage.asking.values("entity"), linkage.others.values("entity")
    for place, row in enumerate(questions(linkage)):
        other = proposed(linkage, row)
        same = entities[0][row] == entities[1][other]
        said[row] = other, "unsure" if place % 10 == 9 else "yes" if same else "no"
        judgements.judge(row, *said[row])
    assert {answer for _, answer in said.values()} == {"yes", "no", "unsure"}
    again = Judgements(judged_file(path), read_links(path))
    assert list(again.of.items()) == list(said.items()) and again.text() == judged_file(path).read_text()
    first = next(iter(said))
    again.judge(first, said[first][0], "unsure")  # another answer to the first question
    assert list(Judgements(judged_file(path), linkage).of) == list(said)
    again.judge(first, *said[first])

    catalogues = records * 2 if mode == "clusters" else records
    names = [
        {name: row for row, name in enumerate(each.names)} for each in catalogues[:: 2 if mode == "clusters" else 1]
    ]
    pairs = read_labels(judged_file(path), *names[:2])
    sure = {row: answer for row, answer in said.items() if answer[1] != "unsure"}
    if mode != "clusters":
        expected = {row: {other} if answer == "yes" else set() for row, (other, answer) in sure.items()}
        assert truth_of(pairs, int(mode == "one_to_many")) == expected
    else:
        named, truth = true_clusters(pairs)
        of = dict(zip(named.tolist(), truth.tolist(), strict=True))
        assert set(of) == {row for pair in ((row, other) for row, (other, _) in sure.items()) for row in pair}
        assert all((of[row] == of[other]) == (answer == "yes") for row, (other, answer) in sure.items())
    options = {"mode": mode, "pairs": pairs}
    tuned = link_records(*(records[:1] if mode == "clusters" else records), **options)
    assert "highest F1 on" in tuned.chosen and tuned.judged["vectors"]["f1"] > 0


def test_the_column_judged_changes_what_a_line_says(tmp_path):
    rows, path = {name: row for row, name in enumerate("uvwxyz")}, tmp_path / "labels.csv"

    def read(*lines):
        path.write_text("\n".join(["a,b,judged", *lines]))
        return read_labels(path, rows, rows)

    assert read("u,v,", "w,,", ",x,yes") == [(0, 1), (2, None), (None, 3)]
    assert set(read("u,v,no")) == {(0, None), (None, 1)}
    assert set(read("u,v,no", "u,w,yes")) == {(0, 2), (None, 1)}  # it has a match in another pair
    assert set(read("u,v,no", "u,w,no", "z,v,yes")) == {(5, 1), (0, None), (None, 2)}
    assert read("u,v,unsure", "u,w,yes") == [(0, 2)]
    assert read("u,,no") == [(0, None)]
    for lines, says in (
        (["u,v,perhaps"], "line 2: judged is 'perhaps': write one of yes, no, unsure"),
        (["u,v,unsure"], "has no line that tells anything"),
        (["u,nobody,unsure"], "b is 'nobody', which no record is named"),
        (["u,v,yes", "u,,yes"], "says of a 'u' that it has a match and that it has none"),
    ):
        with pytest.raises(ValueError, match=says):
            read(*lines)


def test_what_is_wrong_is_one_line(records, tmp_path):
    path = tmp_path / "links.csv"
    with pytest.raises(FileNotFoundError, match="links.csv does not exist: give a file that"):
        read_links(path)
    linkage, _ = linked(records, "one_to_one", path)
    described, links = tmp_path / "links.csv.json", path.read_text()
    facts = described.read_text()
    for name, content, says in (
        (path, "my,table\n1,2\n", "links.csv holds no links"),
        (path, "\n".join([links.split("\n")[0], "nobody,,,,"]), "names 'nobody', which its catalogues do not have"),
        (described, "{}", "json has no 'a': run `hf-vse link` again"),
        (described, facts.replace("one_to_one", "twins"), "mode is 'twins'"),
    ):
        name.write_text(content)
        with pytest.raises(ValueError, match=says):
            read_links(path)
        path.write_text(links)
        described.write_text(facts)
    described.unlink()
    with pytest.raises(FileNotFoundError, match="json does not exist, which says where the records are"):
        read_links(path)
    own = judged_file(path)
    for content, says in (
        ("a,b\n1,2\n", "holds no judgements of links: move it away"),
        ("a,b,judged\nnobody,,no\n", "line 2: a is 'nobody', which these links do not have"),
        (f"a,b,judged\n{linkage.asking.names[0]},{linkage.others.names[0]},so\n", "line 2: judged is 'so'"),
    ):
        own.write_text(content)
        with pytest.raises(ValueError, match=says):
            Judgements(own, linkage)
        assert own.read_text() == content


def test_the_command_takes_the_answers(catalogues, tmp_path, capsys, records):
    output = tmp_path / "links.csv"
    words = ["link", catalogues / "a", catalogues / "b", "--model", ENCODER, "--output", output, "--quiet"]
    described = tmp_path / "links.csv.json"
    described.write_text('{"mine": 1}')
    assert (
        main(list(map(str, words))) == 1 and "holds something else: give another --output" in capsys.readouterr().err
    )
    assert described.read_text() == '{"mine": 1}' and not output.exists()
    described.unlink()
    assert main(list(map(str, words))) == 0 and f"hf-vse demo --links {output}" in capsys.readouterr().out
    linkage = read_links(output)
    judgements = Judgements(judged_file(output), linkage)
    entities = linkage.asking.values("entity"), linkage.others.values("entity")
    for row in questions(linkage):
        other = proposed(linkage, row)
        judgements.judge(row, other, "yes" if entities[0][row] == entities[1][other] else "no")
    assert main([*map(str, words), "--labels", str(judgements.path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["chosen"] == f"highest F1 on {len(judgements.of) // 2} labelled records"
    assert record["threshold"] < linkage.threshold and record["links"] > (linkage.links >= 0).sum()
    with output.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(records[0])
