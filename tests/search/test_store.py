"""What holds for every store of galleries, through the commands and without them."""

import numpy as np
import pytest

from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.locations import open_store
from hf_vse.search.store import in_order, move_gallery, named_rows
from tests.search.conditions import ITEMS, REFUSED, TABLE
from tests.search.plain import PlainEncoder

DIM = 8


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def with_items(location: str):
    """A store that holds the items of the table of conditions."""
    store, encoder = open_store(location), PlainEncoder()
    store.build_of_vectors(unit_vectors(len(ITEMS)), ITEMS, encoder, made_of="table", progress=False)
    return store


def test_the_table_of_conditions_is_answered_alike(location):
    store, query = with_items(location), unit_vectors(1, seed=1)
    scores = unit_vectors(len(ITEMS)) @ query[0]
    for where, rows in TABLE:
        found_scores, found = store.search(query, k=20, where=where)
        expected = sorted(rows, key=lambda row: -scores[row])
        assert found == [[ITEMS[row] for row in expected]], where
        np.testing.assert_allclose(found_scores[0], scores[expected], atol=1e-6)
    for condition, reason in REFUSED.items():
        with pytest.raises(ValueError, match="condition") as refused:
            store.search(query, where=[condition])
        assert reason in str(refused.value)


def test_a_gallery_moves_with_its_vectors_untouched(location, tmp_path):
    encoder, embeds = PlainEncoder(), unit_vectors(30)
    items = [{"file": f"{row % 3}/{row}.png", "year": 2000 + row} for row in range(30)]
    first = open_store(tmp_path / "first")
    bank = ["a dog", "a cat"]
    first.build_of_vectors(embeds, items, encoder, made_of="x", progress=False, query_bank=bank)
    move_gallery(first, open_store(location))
    move_gallery(open_store(location), open_store(tmp_path / "back"))
    there, back = open_store(location), GalleryIndex.load(tmp_path / "back")
    order = sorted(range(30), key=lambda row: items[row]["file"].split("/"))
    assert back.items == [items[row] for row in order]
    np.testing.assert_array_equal(back.embeds, embeds[order])
    query = unit_vectors(3, seed=2)
    for options in ({}, {"where": ["year>=2010"]}, {"correction": "qbnorm"}, {"correction": "inverted_softmax"}):
        expected = first.search(query, 4, encoder, **options)
        for other in (there, back):
            scores, found = other.search(query, 4, encoder, **options)
            assert found == expected[1], options
            np.testing.assert_allclose(scores, expected[0], atol=1e-6)
    with pytest.raises(ValueError, match="use one model for both"):
        there.search(query, 4, PlainEncoder("b"))


def test_names_stay_when_others_come_and_go():
    items = [{"file": "b.png"}, {"file": "a.png"}, {"row": 2}, {"row": 3}, {"file": "a.png"}]
    rows = named_rows(["1", "2", "same", "same", "2"], items)
    assert len({row.name for row in rows}) == 5
    fewer = named_rows(["2", "same"], [items[1], {"row": 0}])
    assert [row.name for row in fewer] == [rows[1].name, rows[2].name]
    assert fewer[0].version() == rows[1].version() != rows[1]._replace(key="3").version()
    assert (
        fewer[1].version().split(".")[0] == rows[2].version().split(".")[0] and fewer[1].version() != rows[2].version()
    )
    assert [row.item for row in sorted(rows[:2], key=in_order)] == [items[1], items[0]]
