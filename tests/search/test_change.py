"""A large gallery that changes equals one that is made of what there is now; what has not changed is not written."""

import json

import numpy as np
import pytest

from hf_vse.search import change, segments, vectors
from hf_vse.search.build import build_gallery
from hf_vse.search.filters import item_fields, matching
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.locations import open_store
from hf_vse.search.store import GalleryRow, keys_of_vectors, named_rows
from tests.search.plain import PlainEncoder, fill

DIM, COUNT = 16, 600
FACTS = {"model": "m", "digest": "d"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(change, "GROWS_ABOVE", 0)
    monkeypatch.setattr(segments, "SEGMENT_ROWS", 200)


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(count, DIM))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def rows_of(first: int, stop: int, year: int = 2000) -> list[GalleryRow]:
    items = [
        {"file": f"{row:04}.png", "year": year + row % 50, "tags": ["x", str(row % 7)]} for row in range(first, stop)
    ]
    return named_rows([f"{item['file']} {year}" for item in items], items)


def filled(folder, kind: str, rows: list[GalleryRow], embeds: np.ndarray, gone: list[GalleryRow] = ()):
    store = open_store(folder)
    store.begin(FACTS, DIM, COUNT, kind, 0.99)
    for start in range(0, len(rows), 100):
        store.upsert(rows[start : start + 100], embeds[start : start + 100])
    store.delete([row.name for row in gone])
    store.finish(FACTS)
    return GalleryIndex.load(folder)


def check(gallery: GalleryIndex, rows: list[GalleryRow], embeds: np.ndarray) -> None:
    """Equal to comparing every vector."""
    known = {row.name: place for place, row in enumerate(rows)}
    found = [(row, each) for part, some in gallery.stored() for row, each in zip(part, some, strict=True)]
    assert len(found) == len(gallery) == len(known)
    for row, each in found:
        assert row == rows[known[row.name]]._replace(place=row.place) and (each == embeds[known[row.name]]).all()
    items = list(gallery.items)
    assert gallery.facts["fields"] == item_fields(items)
    queries = unit_vectors(8, seed=9).astype(np.float32)
    for where in ((), ["year>=2040"], ["tags=3", "year<2030"], ["year=2071"]):
        allowed = matching(items, where, gallery.fields)
        scores = np.where(allowed, queries @ np.asarray(gallery.embeds, np.float32).T, -np.inf)
        k = min(10, allowed.sum())
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        own, answers = gallery.search(queries, 10, where=where)
        places = {item["file"]: row for row, item in enumerate(items)}
        chosen = np.array([[places[item["file"]] for item in each] for each in answers]).reshape(8, k)
        np.testing.assert_allclose(own, np.take_along_axis(scores, chosen.astype(int), axis=1), atol=1e-3)
        if gallery.plan.kind == "exact":
            np.testing.assert_allclose(own, np.take_along_axis(scores, best, axis=1), atol=1e-3)
        assert k == 0 or np.mean([np.isin(*each) for each in zip(best, chosen, strict=True)]) >= 0.85, where


def inodes(folder) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("versions/*/*")}


@pytest.mark.parametrize("kind", ["exact", "hnsw", "ivf", "pq"])
def test_a_change_adds_a_segment_and_leaves_the_rest(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SMALL_SUBSET", 200)
    monkeypatch.setattr(change, "SMALL_SUBSET", 60)
    rows, embeds = rows_of(0, COUNT), unit_vectors(COUNT)
    check(filled(tmp_path, kind, rows, embeds), rows, embeds)
    before = inodes(tmp_path)
    assert len(before) == 2 * 3 + (kind != "exact")
    for turn in range(3):  # 10 are others, 10 are new, 10 are gone; then the index grows
        new = rows_of(10 * turn, 10 * turn + 10, 2020) + rows_of(COUNT, COUNT + 15)
        gone = rows[200:210]
        others = {row.name for row in [*new, *gone]}
        kept = [place for place, row in enumerate(rows) if row.name not in others]
        made = unit_vectors(len(new), seed=1 + turn)
        rows, embeds = [rows[place] for place in kept] + new, np.concatenate([embeds[kept], made])
        check(filled(tmp_path, kind, new, made, gone), rows, embeds)
        now = inodes(tmp_path)
        added = sorted(name.split("-")[0] for name in now.keys() - before.keys())
        assert added == (["dead.safetensors"] if turn == 0 else []) + ["items", "vectors"]
        rewritten = [name for name in before if before[name] != now.get(name)]
        assert rewritten in ([], ["dead.safetensors"], ["dead.safetensors", "index.faiss"]), "what was there is linked"
        before = now
    gallery = GalleryIndex.load(tmp_path)
    assert (np.asarray(gallery.vectors.embeds)[gallery.rows] == gallery.embeds[:]).all()
    gallery.learn_hubs(unit_vectors(5, seed=8))
    gallery.save(tmp_path.parent / f"{tmp_path.name}-copy")
    copy = GalleryIndex.load(tmp_path.parent / f"{tmp_path.name}-copy")
    check(copy, rows, embeds)
    np.testing.assert_array_equal(copy.hubs.active, gallery.hubs.active[gallery.rows])
    np.testing.assert_array_equal(copy.hubs.normalizer, gallery.hubs.normalizer[gallery.rows])


def test_too_many_dead_rows_and_the_gallery_is_written_anew(tmp_path):
    rows, embeds = rows_of(0, COUNT), unit_vectors(COUNT)
    filled(tmp_path, "hnsw", rows, embeds)
    before = inodes(tmp_path)
    gallery = filled(tmp_path, "hnsw", [], embeds[:0], rows[100:300])
    check(gallery, rows[:100] + rows[300:], np.concatenate([embeds[:100], embeds[300:]]))
    assert gallery.alive is None and not set(before.values()) & set(inodes(tmp_path).values())
    with pytest.raises(ValueError, match="would hold no items"):
        filled(tmp_path, "hnsw", [], embeds[:0], rows)
    assert len(GalleryIndex.load(tmp_path)) == 400


def test_a_row_that_is_written_twice_is_there_once(tmp_path):
    rows, embeds = rows_of(0, COUNT), unit_vectors(COUNT)
    later = unit_vectors(300, seed=5)
    gallery = filled(tmp_path, "exact", rows + rows[:300], np.concatenate([embeds, later]))
    check(gallery, rows, np.concatenate([later, embeds[300:]]))


def test_nothing_new_and_nothing_is_written(tmp_path):
    photographs = fill(tmp_path / "photographs", [f"{row:02}.png" for row in range(12)])
    encoder, folder = PlainEncoder(), tmp_path / "index"
    build_gallery(photographs, encoder, folder, progress=False)
    before, header = inodes(folder), (folder / "gallery.json").read_text()
    build_gallery(photographs, encoder, folder, progress=False)
    assert inodes(folder) == before and (folder / "gallery.json").read_text() == header
    fill(photographs, ["03.png"], "another")
    fill(photographs, ["20.png"])
    (photographs / "07.png").unlink()
    gallery = build_gallery(photographs, encoder, folder, progress=False)
    now = inodes(folder)
    assert before.items() <= now.items() and len(json.loads((folder / "gallery.json").read_text())["segments"]) == 2
    files = [photographs / item["file"] for item in gallery.items]
    assert sorted(files) == sorted(photographs.iterdir())
    np.testing.assert_array_equal(gallery.embeds, PlainEncoder().vectors_of(files))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(change, "GROWS_ABOVE", 10**9)
        whole = build_gallery(photographs, encoder, tmp_path / "whole", progress=False)
    assert gallery.facts == whole.facts


def test_vectors_without_images_have_keys(tmp_path):
    embeds = unit_vectors(COUNT)
    GalleryIndex(embeds, model="m").save(tmp_path)
    gallery = GalleryIndex.load(tmp_path)
    assert gallery.embeds.dtype == np.float16 and gallery.items == list(range(COUNT))
    assert [row.key for rows, _ in gallery.stored() for row in rows] == keys_of_vectors(embeds)
