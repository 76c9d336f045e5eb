"""Records from folders, files and galleries, and what is refused."""

import json
import shutil

import numpy as np
import pytest

from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.link.labels import LEFT_OUT, read_labels, true_clusters, truth_of
from hf_vse.link.pooling import mean_of_texts, pooled_vectors
from hf_vse.link.records import embed_records, read_records
from hf_vse.search.gallery import GalleryIndex
from tests.link.scenes_encoder import Scenes


def metadata(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_folder_its_lines_and_its_gallery_give_the_same_vectors(catalogues, tmp_path):
    encoder, folder = Scenes(), catalogues / "a"
    rows = metadata(folder)
    images = encode_images(encoder, [{"image": str(folder / row["file_name"])} for row in rows]).embeds.numpy()
    texts = encode_texts(encoder, [caption for row in rows for caption in row["captions"]]).numpy()
    texts = mean_of_texts(texts, np.array([len(row["captions"]) for row in rows]))
    GalleryIndex.build(folder, encoder, tmp_path / "gallery", progress=False)
    for source in (folder, folder / "metadata.jsonl", tmp_path / "gallery"):
        records = read_records(source)
        assert records.names == [row["file_name"] for row in rows] and records.image(3).size == (64, 64)
        assert records.values("entity") == [row["entity"] for row in rows]
        for weight in (0, 0.3, 1) if source != folder else (0.5,):
            found = embed_records(records, encoder, weight)
            np.testing.assert_allclose(found.embeds, pooled_vectors(images, texts, weight), atol=1e-6)


def test_a_record_may_lack_image_or_text(catalogues, tmp_path):
    one, other = metadata(catalogues / "a")[:2]
    shutil.copy(catalogues / "a" / one["file_name"], tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    lines = [
        {"file_name": one["file_name"], "title": "a red star", "id": 7},
        {"file_name": one["file_name"], "id": "image alone"},
        {"title": ["a red star", " "], "id": "text alone"},
        {"file_name": "broken.png", "title": "a red star", "id": "broken with text"},
        {"file_name": "broken.png", "id": "broken"},
        {"id": "nothing"},
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, lines)))
    records = read_records(tmp_path / "records.jsonl", name="id", text="title")
    with pytest.raises(ValueError, match="2 of 6 images are missing or broken.*max_broken_share"):
        embed_records(records, Scenes())
    found = embed_records(records, Scenes(), max_broken_share=0.5)
    assert found.names == ["7", "image alone", "text alone", "broken with text"]
    assert found.left_out == ["broken", "nothing"]
    image = encode_images(Scenes(), [{"image": str(tmp_path / one["file_name"])}]).embeds.numpy()
    text = encode_texts(Scenes(), ["a red star"]).numpy()
    expected = np.concatenate([pooled_vectors(image, text, 0.5), image, text, text])
    np.testing.assert_allclose(found.embeds, expected, atol=1e-6)
    assert found.image(2) is None and found.image(3) is None
    assert embed_records(records, Scenes(), 0, max_broken_share=0.5).names == found.names


@pytest.mark.parametrize(
    ("lines", "options", "says"),
    [
        ("", {}, "records.jsonl is empty"),
        ('{"id": 1}\n{"id": 1}', {}, "2 records are named '1'.*--name"),
        ('{"id": 1}', {"name": "sku"}, "record 0 has sku None, no name"),
        ('{"id": 1, "captions": {"en": "x"}}', {}, "captions is .*no sentence"),
        ('{"id": 1}', {"text": "title"}, "no record of .* has a text in 'title'.*--text"),
        ('{"file_name": "../x.png"}', {}, "line 1: file_name is '../x.png', which points outside"),
        ("[1]", {}, "line 1 holds list"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, lines, options, says):
    (tmp_path / "records.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=says):
        read_records(tmp_path / "records.jsonl", **options)


def test_places_and_fields_that_are_not_there_are_refused(catalogues, tmp_path):
    for name in ("nowhere", "nowhere.jsonl"):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read_records(tmp_path / name)
    records = read_records(catalogues / "a")
    with pytest.raises(ValueError, match="has 'brand'; there are captions, entity, file, objects"):
        records.values("brand")
    with pytest.raises(ValueError, match="captions of 00000.png is .*single values"):
        records.values("captions")
    (tmp_path / "records.jsonl").write_text('{"id": 1}')
    with pytest.raises(ValueError, match="no record of .* has an image that can be read, or a text"):
        embed_records(read_records(tmp_path / "records.jsonl"), Scenes())


def test_a_gallery_of_another_model_is_refused(catalogues, tmp_path):
    GalleryIndex.build(catalogues / "b", Scenes(), tmp_path / "gallery", progress=False)
    other = Scenes()
    other.digest = "another"
    with pytest.raises(ValueError, match="use one model for both"):
        embed_records(read_records(tmp_path / "gallery"), other)


FIRST, SECOND = {"x": 0, "y": 1, "z": 2, "gone": LEFT_OUT}, {"p": 0, "q": 1}


def labels(folder, text, second=SECOND):
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    return read_labels(folder / "labels.csv", FIRST, second)


def test_labels_are_truth_from_both_sides(tmp_path):
    pairs = labels(tmp_path, "comment,a,b\n,x,p\n,x,q\n,y,\ngone,gone,q\n")
    assert truth_of(pairs, 0) == {0: {0, 1}, 1: set()}
    assert truth_of(pairs, 1) == {0: {0}}  # a match of q has no vector
    named, clusters = true_clusters(labels(tmp_path, "a,b\nx,z\ny,\nx,gone\n", FIRST))
    assert named.tolist() == [0, 1, 2] and clusters[0] == clusters[2] != clusters[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has the columns : name two of them a and b"),
        ("left,right\nx,p\n", "has the columns left, right"),
        ("a,b\n", "has no line"),
        ("a,b\nx,p\nw,p\n", "line 3: a is 'w', which no record is named"),
        ("a,b\nx\nx,p\n", "says of a 'x' that it has a match and that it has none"),
        ("a,b\n,q\nx,q\n", "says of b 'q' that it has a match and that it has none"),
        ("a,b\n,\n", "line 2 names no record"),
        ('a,b\n"x,p\n', "not a valid CSV file"),
    ],
)
def test_wrong_labels_are_refused_in_one_line(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        labels(tmp_path, text)


def test_labels_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="labels .*nowhere.csv does not exist"):
        read_labels(tmp_path / "nowhere.csv", FIRST, SECOND)
