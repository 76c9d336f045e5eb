import numpy as np
import pytest

from hf_vse.search import vectors
from hf_vse.search.gallery import GalleryIndex


@pytest.fixture(params=["faiss", "matrix product"])
def embeds(request, monkeypatch):
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        monkeypatch.setattr(vectors, "find_spec", lambda name: None)
    made = np.random.default_rng(0).normal(size=(50, 8))
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_search_finds_the_best_in_order(embeds):
    queries = embeds[[3, 7]]
    scores, items = GalleryIndex(embeds, [f"{row}.jpg" for row in range(50)]).search(queries, k=5)
    order = np.argsort(-(queries @ embeds.T), axis=1)[:, :5]
    assert items == [[f"{row}.jpg" for row in found] for found in order]
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ embeds.T, order, axis=1), rtol=1e-5)
    assert [found[0] for found in items] == ["3.jpg", "7.jpg"]


def test_saved_gallery_answers_the_same(embeds, tmp_path):
    index = GalleryIndex(embeds, [{"file": row} for row in range(50)], model="a")
    index.save(tmp_path)
    loaded = GalleryIndex.load(tmp_path)
    assert loaded.model == "a" and loaded.search(embeds[:4], k=3)[1] == index.search(embeds[:4], k=3)[1]


def test_other_model_and_wrong_shapes_are_refused(embeds, tmp_path):
    index = GalleryIndex(embeds, model="a")
    with pytest.raises(ValueError, match="made by 'a', the query by 'b'"):
        index.search(embeds, model="b")
    with pytest.raises(ValueError, match=r"queries must be \(queries, 8\)"):
        index.search(embeds[:, :3])
    with pytest.raises(ValueError, match="2 items for 50 vectors"):
        GalleryIndex(embeds, ["x", "y"])
    with pytest.raises(FileNotFoundError, match="holds no gallery"):
        GalleryIndex.load(tmp_path)


def test_conditions_choose_items(embeds):
    items = [
        {"year": 2000 + row, "place": "lake" if row % 2 else "city", "tags": [str(row), "x"]} for row in range(50)
    ]
    index = GalleryIndex(embeds, items)
    for where, chosen in (
        (["year>=2040", "place=lake"], [41, 43, 45, 47, 49]),
        (["tags=7"], [7]),
        (["place~CIT", "year<2004"], [0, 2]),
        (["place!=lake", "year<=2002"], [0, 2]),
        (lambda item: item["year"] == 2013, [13]),
        (["year>3000"], []),
    ):
        scores, found = index.search(embeds[:2], k=10, where=where)
        order = sorted(chosen, key=lambda row: -(embeds[row] @ embeds[0]))
        assert found[0] == [items[row] for row in order]
        np.testing.assert_allclose(scores[0], embeds[order] @ embeds[0], atol=1e-6)
    with pytest.raises(ValueError, match="'yaer>1': no item has 'yaer'; there are place, tags, year"):
        index.search(embeds, where=["yaer>1"])
    with pytest.raises(ValueError, match="condition 'year' is not of the form FIELD OP VALUE"):
        index.search(embeds, where=["year"])
