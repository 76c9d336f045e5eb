"""Galleries from photographs: what is encoded, and when again."""

import os
import shutil

import numpy as np
import pytest
import torch

from hf_vse.data.pairs import undecoded_images
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images
from hf_vse.search.build import build_gallery
from hf_vse.search.gallery import GalleryIndex
from tests.conftest import make_feature_pairs, make_pairs


@pytest.fixture
def encoder(tiny_model, monkeypatch):
    """An encoder that remembers which images it was given."""
    monkeypatch.setattr("hf_vse.embed.store.SHARD", 5)
    encoder = load_encoder(str(tiny_model), device="cpu")
    encoder.seen = set()
    prepare = encoder.prepare_images

    def counting(images):
        encoder.seen.update(image.tobytes() for image in images)
        return prepare(images)

    encoder.prepare_images = counting
    return encoder


def vectors(encoder, values) -> np.ndarray:
    return encode_images(encoder, [{"image": value} for value in values]).embeds.numpy()


def test_a_folder_becomes_a_gallery_and_only_changes_are_encoded_again(encoder, photographs, tmp_path):
    first = build_gallery(photographs, encoder, tmp_path / "index", progress=False)
    assert (len(first), len(encoder.seen)) == (12, 12)
    assert first.items[1] == {"file": "city/02.png", **first.items[1]} and first.items[1]["year"] == 2002
    assert "year" not in first.items[-1]  # the last two have no line in metadata.jsonl
    files = [str(photographs / item["file"]) for item in first.items]
    np.testing.assert_allclose(first.embeds, vectors(encoder, files), atol=1e-6)

    encoder.seen.clear()
    shutil.copy(photographs / "city/00.png", photographs / "city/new.png")
    (photographs / "lake/01.png").unlink()
    shutil.copy(photographs / "city/04.png", photographs / "lake/03.png")
    os.utime(photographs / "lake/03.png", (1, 1))
    second = build_gallery(photographs, encoder, tmp_path / "index", progress=False)
    assert (len(second), len(encoder.seen)) == (12, 2)
    rows = {item["file"]: row for row, item in enumerate(second.items)}
    np.testing.assert_allclose(second.embeds[rows["lake/03.png"]], second.embeds[rows["city/04.png"]], atol=1e-6)
    [version] = (tmp_path / "index" / "versions").iterdir()
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == ["gallery.json", "versions"]
    assert sorted(path.name.split("-")[0] for path in version.iterdir()) == ["items", "vectors"]

    encoder.seen.clear()
    with torch.no_grad():
        encoder.model.visual_projection.weight.add_(1.0)
    del encoder.digest
    build_gallery(photographs, encoder, tmp_path / "index", progress=False)
    assert len(encoder.seen) == 10, "two of the twelve are copies"


def test_an_interrupted_build_continues(encoder, photographs, tmp_path):
    counting = encoder.prepare_images

    def failing(images):
        if len(encoder.seen) >= 5:
            raise KeyboardInterrupt
        return counting(images)

    encoder.prepare_images = failing
    with pytest.raises(KeyboardInterrupt):
        build_gallery(photographs, encoder, tmp_path / "index", batch_size=5, progress=False)
    with pytest.raises(FileNotFoundError, match="holds no gallery"):
        GalleryIndex.load(tmp_path / "index")
    encoder.prepare_images = counting
    encoder.seen.clear()
    assert len(build_gallery(photographs, encoder, tmp_path / "index", progress=False)) == 12
    assert len(encoder.seen) == 7


def test_broken_images_are_left_out_and_named(encoder, photographs, tmp_path):
    (photographs / "city/00.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 12 images are missing or broken \(first: city/00.png"):
        build_gallery(photographs, encoder, tmp_path / "index", progress=False)
    index = build_gallery(photographs, encoder, tmp_path / "index", max_broken_share=0.1, progress=False)
    assert len(index) == 11 and index.facts["broken"] == ["city/00.png"]
    assert "city/00.png" not in [item["file"] for item in index.items]
    for file in photographs.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 12 images can be read"):
        build_gallery(photographs, encoder, tmp_path / "empty", max_broken_share=1.0, progress=False)


def test_a_data_set_keeps_its_other_columns(encoder, tmp_path):
    pairs = make_pairs(12)
    index = GalleryIndex.build(pairs, encoder, tmp_path / "index", kind="ivf", progress=False)
    assert index.items[3] == {"row": 3, "image_id": 3, **{key: pairs[3][key] for key in ("captions", "caption_ids")}}
    assert index.plan.kind == "ivf" and index.plan.measured_on == "12 given queries"
    values = [row["image"] for row in undecoded_images(pairs)]
    np.testing.assert_allclose(index.embeds, vectors(encoder, values), atol=1e-6)
    with pytest.raises(ValueError, match="no column image among captions"):
        build_gallery(pairs.select_columns(["captions"]), encoder, tmp_path / "other")
    with pytest.raises(ValueError, match="reads photographs, the data set has image_features"):
        build_gallery(make_feature_pairs(4), encoder, tmp_path / "other", progress=False)


def test_queries_by_sentence_by_image_and_by_both(encoder, photographs, tmp_path):
    index = build_gallery(photographs, encoder, tmp_path / "index", progress=False)
    file = photographs / index.items[4]["file"]
    scores, found = index.search(encoder.query(image=str(file)), k=3, model=encoder)
    assert found[0][0] == index.items[4] and scores[0, 0] == pytest.approx(1, abs=1e-5)
    of_text, of_image = encoder.query("a red circle"), encoder.query(image=str(file))
    for weight in (0.0, 0.3, 1.0):
        both = weight * of_image + (1 - weight) * of_text
        np.testing.assert_allclose(
            encoder.query("a red circle", str(file), weight), both / np.linalg.norm(both), atol=1e-6
        )
    assert encoder.query(["a", "b red"]).shape == (2, 16)
    for options, message in (
        ({}, "nothing to search for"),
        ({"text": " "}, "a query is empty"),
        ({"image": str(tmp_path / "none.png")}, "query image .*none.png: file does not exist"),
        ({"text": "a", "image": str(file), "image_weight": 2}, "image_weight must lie between 0 and 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.query(**options)


def test_a_gallery_refuses_other_weights_of_the_same_name(encoder, photographs, tmp_path):
    index = build_gallery(photographs, encoder, tmp_path / "index", progress=False)
    moved = VSEEncoder(encoder.model, encoder.processor, name="the same weights elsewhere")
    index.search(moved.query("red"), model=moved)
    with torch.no_grad():
        moved.model.visual_projection.weight.add_(1.0)
    other = VSEEncoder(moved.model, moved.processor, name=encoder.name)
    with pytest.raises(ValueError, match="with other weights or another preparation; use one model for both"):
        index.search(other.query("red"), model=other)
