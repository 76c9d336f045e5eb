"""Data sets and galleries in engines as catalogues give the vectors of the folder that they were made of."""

import numpy as np
import pytest
from datasets import load_dataset, load_from_disk

from hf_vse.link.records import embed_records, read_records
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.locations import open_store
from hf_vse.search.store import move_gallery
from tests.link.scenes_encoder import Scenes
from tests.search.conftest import engine, milvus, postgresql  # noqa: F401


@pytest.fixture(scope="module")
def split(catalogues, tmp_path_factory):
    """Saved, so that it holds the images, and read again."""
    place = tmp_path_factory.mktemp("split") / "saved"
    load_dataset("imagefolder", data_dir=str(catalogues / "b")).save_to_disk(place)
    return load_from_disk(place)


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_a_data_set_has_the_records_of_its_folder(kind, split, catalogues, tmp_path):
    place = tmp_path / ("saved" if kind == "saved" else "b.parquet")
    split.save_to_disk(place) if kind == "saved" else split["train"].to_parquet(place)
    found, expected = read_records(place), read_records(catalogues / "b")
    assert found.texts == expected.texts and found.values("entity") == expected.values("entity")
    assert np.array_equal(found.image(3), expected.image(3))
    encoder = Scenes()
    np.testing.assert_array_equal(embed_records(found, encoder).embeds, embed_records(expected, encoder).embeds)


def test_one_of_several_splits_is_named(split, tmp_path):
    parts = split["train"].select(range(8)).train_test_split(3, shuffle=False)
    parts.save_to_disk(tmp_path / "saved")
    assert len(read_records(f"{tmp_path / 'saved'}#test")) == 3
    with pytest.raises(ValueError, match="has the splits train, test: name one, as .*saved#train"):
        read_records(tmp_path / "saved")
    with pytest.raises(ValueError, match="has no split 'other': choose one of train, test"):
        read_records(f"{tmp_path / 'saved'}#other")


def test_a_gallery_in_an_engine_has_the_records_of_the_folder(engine, catalogues, tmp_path):  # noqa: F811
    encoder = Scenes()
    GalleryIndex.build(catalogues / "b", encoder, tmp_path / "gallery", progress=False)
    move_gallery(open_store(tmp_path / "gallery"), open_store(engine))
    found, expected = read_records(engine), read_records(catalogues / "b")
    assert found.names == expected.names and found.texts == expected.texts
    np.testing.assert_allclose(
        embed_records(found, encoder).embeds, embed_records(expected, encoder).embeds, atol=1e-6
    )
    assert np.array_equal(found.image(3), expected.image(3))
    other = Scenes()
    other.digest = "another"
    with pytest.raises(ValueError, match="use one model for both"):
        embed_records(found, other)
