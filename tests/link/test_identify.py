"""`identify` tells known things from strangers on generated catalogues, as loops over all things do."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hf_vse.cli.main import main
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.link.identify import (
    Known,
    choose_threshold,
    embed_things,
    identify,
    known_photographs,
    labels_of,
    stranger_scores,
)
from hf_vse.link.records import read_records
from hf_vse.search.gallery import GalleryIndex
from tests.link.conftest import ENCODER
from tests.link.scenes_encoder import Scenes


@pytest.fixture(scope="module")
def things(catalogues):
    return embed_things(read_records(catalogues / "a"), Scenes(), 0.5)


@pytest.fixture(scope="module")
def known(catalogues, things):
    return known_photographs(things, read_records(catalogues / "b"), Scenes(), None)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_the_views_of_a_thing_pool_to_one_vector(catalogues, things):
    records, encoder = read_records(catalogues / "a"), Scenes()
    assert len(records) == 137 and len(things.labels) == 125  # twelve have a second view
    labels = records.values("entity")
    for thing in {labels.index(each) for each in labels if labels.count(each) > 1} | {0, 1}:
        rows = [row for row, each in enumerate(labels) if each == labels[thing]]
        images = encode_images(encoder, [{"image": str(records.files[row])} for row in rows]).embeds.numpy()
        texts = [unit(encode_texts(encoder, records.texts[row]).numpy().mean(0)) for row in rows]
        expected = unit(0.5 * unit(images.mean(0)) + 0.5 * unit(np.mean(texts, axis=0)))
        found = things.labels.index(labels[thing])
        np.testing.assert_allclose(things.embeds[found], expected, atol=1e-6)
        assert [int(row) for row in np.flatnonzero(things.owner == found)] == rows


def test_photographs_get_what_a_loop_over_things_finds(things, known):
    found = identify(things, known.embeds, 0.9)
    assert 5 < (found.things >= 0).sum() < len(known.embeds) - 5
    for row, query in enumerate(known.embeds):
        scores = [float(query @ each) for each in things.embeds]
        best, second = np.argsort(scores)[::-1][:2]
        sure = scores[best] >= 0.9
        assert found.things[row] == (best if sure else -1)
        assert found.runners_up[row] == (second if sure else best)
        assert found.runner_up_scores[row] == pytest.approx(scores[second if sure else best], abs=1e-6)
        assert found.scores[row] == (pytest.approx(scores[best], abs=1e-6) if sure else -np.inf)
        views = np.flatnonzero(things.owner == best)
        assert found.views[row] == max(views, key=lambda view: query @ things.views.embeds[view])
    others = [
        max(float(query @ each) for thing, each in enumerate(things.embeds) if thing != own)
        for query, own in zip(known.embeds, known.owner, strict=True)
    ]
    np.testing.assert_allclose(stranger_scores(things, known), others, atol=1e-6)


def test_known_things_are_recognised_better_than_by_chance(things, known):
    rng = np.random.default_rng(0)
    right = (identify(things, known.embeds, -2).things == known.owner)[known.owner >= 0].mean()
    chance = (identify(things, rng.permutation(known.embeds), -2).things == known.owner)[known.owner >= 0].mean()
    assert right > 0.3 > 0.1 > chance
    chosen = choose_threshold(things, known)
    assert chosen.judged["f1"] > 0.25 and chosen.judged_on == 63 and "highest F1 on 62" in chosen.how


def test_a_threshold_keeps_the_stated_rate():
    """With vectors drawn alike, strangers that nobody chose by are accepted as often as was stated."""
    rng = np.random.default_rng(0)
    centres = unit(rng.normal(size=(300, 8)).astype(np.float32))
    views = unit(centres[:, None] + 0.15 * rng.normal(size=(300, 4, 8))).astype(np.float32)
    records = read_nothing(views[:200, 0])
    photographs = np.ones(200, bool)
    gallery = replace_things(records, photographs, views[:200, 0])
    chosen = choose_threshold(gallery, false_accept_rate=0.1)
    strangers = views[200:, 1:].reshape(-1, 8)
    assert 0.03 < (identify(gallery, strangers, chosen.threshold).things >= 0).mean() < 0.2
    assert "from 200 photographs of the gallery" in chosen.how and chosen.judged is None
    known = Known(views[:, 1:3].reshape(-1, 8), np.repeat(np.where(np.arange(300) < 200, np.arange(300), -1), 2))
    by_known = choose_threshold(gallery, known, false_accept_rate=0.1)
    assert 0.05 < by_known.judged["false_accept_rate"] < 0.15 and by_known.judged_on == 300
    strict = choose_threshold(gallery, known, false_accept_rate=0.01)
    assert strict.threshold > by_known.threshold and strict.judged["recall"] < by_known.judged["recall"]
    given = choose_threshold(gallery, known, threshold=0.5)
    assert given.threshold == 0.5 and given.judged_on == 600
    tuned = choose_threshold(gallery, known)
    assert tuned.judged["f1"] > max(given.judged["f1"], 0.5) and tuned.judged["top1"] > 0.5
    with pytest.raises(ValueError, match="nothing tells how alike strangers are"):
        choose_threshold(replace(gallery, photographs=~photographs))


def read_nothing(embeds):
    from pathlib import Path

    from hf_vse.link.records import Records

    names = [str(row) for row in range(len(embeds))]
    return Records(Path("x"), names, [{} for _ in names], [[] for _ in names], [None] * len(names), embeds=embeds)


def replace_things(records, photographs, embeds):
    from hf_vse.link.identify import Things

    return Things(records.names, embeds, records, np.arange(len(embeds)), photographs)


def test_things_are_named_by_field_folder_or_file(catalogues, tmp_path):
    records = read_records(catalogues / "a")
    assert labels_of(records) == records.values("entity")
    assert labels_of(records, "objects")[0] == str(records.items[0]["objects"])
    with pytest.raises(ValueError, match="has 'brand'; there are"):
        labels_of(records, "brand")
    for name, folder in (("00000.png", "red_star"), ("00001.png", "red_star"), ("00002.png", "kite")):
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(catalogues / "a" / name, tmp_path / folder)
    folders = read_records(tmp_path)
    assert labels_of(folders) == ["kite", "red_star", "red_star"]
    named = embed_things(folders, Scenes(), 0.5, label_is_text=True)
    alone = embed_things(folders, Scenes(), 1.0)
    text = encode_texts(Scenes(), ["red star"]).numpy()[0]
    np.testing.assert_allclose(named.embeds[1], unit(0.5 * alone.embeds[1] + 0.5 * text), atol=1e-6)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "kite/00002.png", "entity": "k"}\n')
    with pytest.raises(ValueError, match="red_star/00000.png of .* has no 'entity'.*--label"):
        labels_of(read_records(tmp_path))


def test_a_gallery_and_its_folder_have_the_same_things(catalogues, tmp_path, things, known):
    GalleryIndex.build(catalogues / "a", Scenes(), tmp_path / "gallery", progress=False)
    found = embed_things(read_records(tmp_path / "gallery"), Scenes(), 0.5)
    assert found.labels == things.labels and found.views.image(0).size == (64, 64)
    np.testing.assert_allclose(found.embeds, things.embeds, atol=1e-6)
    one, other = (identify(each, known.embeds, 0.9) for each in (found, things))
    assert (one.things == other.things).all() and (one.views == other.views).all()


def test_things_with_other_kinds_of_views_are_told(catalogues, tmp_path, caplog):
    shutil.copy(catalogues / "a" / "00000.png", tmp_path)
    lines = [{"file_name": "00000.png", "entity": "seen"}, {"captions": ["a red star"], "entity": "read"}]
    lines.append({"file_name": "00000.png", "entity": "seen too"})
    (tmp_path / "records.jsonl").write_text("\n".join(json.dumps({"id": n} | line) for n, line in enumerate(lines)))
    things = embed_things(read_records(tmp_path / "records.jsonl", "id"), Scenes(), 0.5)
    assert things.photographs.tolist() == [True, False, True] and "1 of 3 things (first: read) lack" in caplog.text
    np.testing.assert_allclose(things.embeds[1], encode_texts(Scenes(), ["a red star"])[0], atol=1e-6)


def command(*words):
    return main(["identify", *map(str, words), "--model", ENCODER, "--quiet"])


def test_the_command_writes_a_table_and_a_sheet(catalogues, tmp_path, capsys, things):
    photos = [catalogues / "b" / f"0000{number}.png" for number in range(3)]
    output, sheet, broken = tmp_path / "found.csv", tmp_path / "sheet.png", tmp_path / "broken.png"
    embeds = encode_images(Scenes(), [{"image": str(photo)} for photo in photos]).embeds.numpy()
    threshold = float(np.median((embeds @ things.embeds.T).max(axis=1))) - 1e-4
    found = identify(things, embeds, threshold)
    words = (catalogues / "a", *photos, "--output", output, "--sheet", sheet, "--threshold", threshold)
    assert command(*words, "--image_weight", 0.5, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    labels = [things.labels[each] if each >= 0 else None for each in found.things]
    assert [line["label"] for line in record["photos"]] == labels and None in labels and any(labels)
    with output.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["label"] or None for line in lines] == labels and sheet.stat().st_size > 5000
    assert [line["photo"] for line in lines] == list(map(str, photos))
    broken.write_bytes(b"no image")
    assert command(catalogues / "a", broken, photos[0], "--threshold", 2) == 1
    said = capsys.readouterr()
    assert "1 photographs cannot be read" in said.err and f"{photos[0]}  unknown   (" in said.out
    assert command(catalogues / "a", "--labelled", catalogues / "b", "--false_accept_rate", 0.05) == 0
    assert "judged on 63 known photographs" in capsys.readouterr().out


def test_the_command_refuses_in_one_line_and_writes_nothing(catalogues, tmp_path, capsys):
    own = tmp_path / "own.csv"
    own.write_text("my,table\n1,2\n")
    a, photo = catalogues / "a", catalogues / "b" / "00000.png"
    (tmp_path / "others").mkdir()
    shutil.copy(photo, tmp_path / "others")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for words, says, code in (
        ((a, photo, "--output", own), "own.csv is there and holds no identified photographs", 1),
        ((a, photo, "--sheet", tmp_path / "s.jpg"), "must end in .png", 1),
        ((a, tmp_path / "none.png"), "none.png' is not a file and no folder", 1),
        ((tmp_path / "nowhere", photo), "nowhere is not a folder", 1),
        ((a, photo, "--label", "brand"), "has 'brand'; there are", 1),
        ((a, photo, "--labelled", tmp_path / "others"), "shows a thing of the gallery", 1),
        ((tmp_path / "others", photo), "nothing tells how alike strangers are", 1),
        ((a,), "give photographs to identify", 2),
        ((a, "--labelled", a, "--output", own), "are of photographs", 2),
        ((a, photo, "--threshold", "1", "--false_accept_rate", "0.1"), "exclude each other", 2),
        ((a, photo, "--false_accept_rate", "0"), "between 0 and 1", 2),
    ):
        assert command(*words) == code, words
        assert says in capsys.readouterr().err.strip().splitlines()[-1]
    assert main(["identify", str(a), str(photo)]) == 1 and "give --model" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
