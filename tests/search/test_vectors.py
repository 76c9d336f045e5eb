"""Every kind of index against a full sort."""

from typing import get_args

import numpy as np
import pytest

from hf_vse.search.plan import IndexKind, Plan, choose_plan, code_bytes
from hf_vse.search.vectors import VectorIndex, exact_search

COUNT, DIM = 3000, 24
pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray]:
    """Gallery and queries in clusters, the queries apart from the gallery as sentences are from photographs."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, DIM))
    gallery = centres[rng.integers(60, size=COUNT)] + 0.6 * rng.normal(size=(COUNT, DIM))
    queries = centres[rng.integers(60, size=300)] + 0.6 * rng.normal(size=(300, DIM)) + 0.3
    return tuple(
        (each / np.linalg.norm(each, axis=1, keepdims=True)).astype(np.float32) for each in (gallery, queries)
    )


@pytest.fixture(scope="module")
def built(made):
    """An index of each kind."""
    indexes = {}
    for kind in get_args(IndexKind):
        indexes[kind] = VectorIndex(made[0], choose_plan(COUNT, DIM, kind))
        indexes[kind].build(made[1][:200], recall=0.9, progress=False)
    return indexes


def sorted_rows(gallery: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    return np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :k]


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(
        np.mean([np.isin(of_exact, of_found).mean() for of_exact, of_found in zip(exact, found, strict=True)])
    )


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw", "pq"])
def test_each_kind_reaches_its_recall_on_new_queries_and_survives_saving(kind, made, built, tmp_path):
    (gallery, queries), index = made, built[kind]
    scores, rows = index.search(queries[200:], k=10)
    exact = sorted_rows(gallery, queries[200:], 10)
    assert recall(rows, exact) >= (1.0 if kind == "exact" else 0.85)
    np.testing.assert_allclose(scores, (queries[200:, None] * gallery[rows]).sum(2), atol=1e-5)
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    if kind != "exact":
        assert index.plan.recall >= 0.9 and index.plan.measured_on == "200 given queries"
        assert index.plan.effort > 1 or kind == "hnsw", "this test needs a harder data set to mean something"
    index.save(tmp_path / "index.faiss")
    again = VectorIndex(gallery, index.plan)
    again.load(tmp_path / "index.faiss")
    np.testing.assert_array_equal(again.search(queries, k=7)[1], index.search(queries, k=7)[1])


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw", "pq"])
@pytest.mark.parametrize("count", [12, 1500])
def test_filters_find_only_what_is_allowed_and_never_too_little(kind, count, made, built, monkeypatch):
    monkeypatch.setattr("hf_vse.search.vectors.SMALL_SUBSET", 10)  # so that the index itself filters
    (gallery, queries), index = made, built[kind]
    allowed = np.zeros(COUNT, bool)
    allowed[np.random.default_rng(1).permutation(COUNT)[:count]] = True
    rows = index.search(queries[200:], k=10, allowed=allowed)[1]
    assert rows.shape == (100, 10) and allowed[rows].all()
    chosen = np.flatnonzero(allowed)
    assert recall(rows, chosen[sorted_rows(gallery[chosen], queries[200:], 10)]) > 0.9


def test_exact_search_in_blocks_equals_a_full_sort(made, monkeypatch):
    monkeypatch.setattr("hf_vse.search.vectors.BLOCK", 700)
    gallery, queries = made
    scores, rows = exact_search(gallery, queries, 12)
    np.testing.assert_array_equal(rows, sorted_rows(gallery, queries, 12))
    np.testing.assert_allclose(scores, np.sort(queries @ gallery.T, axis=1)[:, :-13:-1], atol=1e-6)


def test_without_faiss_everything_is_compared(monkeypatch):
    monkeypatch.setattr("hf_vse.search.plan.find_spec", lambda name: None)
    plan = choose_plan(1_000_000, 512)
    assert plan.kind == "exact" and "pip install 'hf_vse[index]'" in plan.reason


def test_the_plan_follows_size_and_memory():
    assert choose_plan(50_000, 512).kind == "exact"
    assert choose_plan(200_000, 512, memory=2**33).kind == "hnsw"
    assert choose_plan(1_000_000, 512, memory=2**33).kind == "ivf"
    large = choose_plan(1_000_000, 512, memory=2**30)
    assert (large.kind, large.factory) == ("pq", "IVF4096,PQ64np") and "1.9 GiB, more than 1.0" in large.reason
    assert choose_plan(100_000_000, 64, memory=2**40).factory == "IVF32768_HNSW32,Flat"
    assert code_bytes(1024) == 128 and 30 % code_bytes(30) == 0
    with pytest.raises(ValueError, match="kind must be auto, exact, ivf, hnsw, pq; got 'lsh'"):
        choose_plan(10, 4, "lsh")
    with pytest.raises(ValueError, match="needs at least 256 vectors"):
        choose_plan(10, 4, "pq")


def crowded(count: int = 4000, dim: int = 16) -> np.ndarray:
    """Vectors so near to each other that their codes hardly tell them apart."""
    rng = np.random.default_rng(0)
    near = rng.normal(size=dim) + 0.02 * rng.normal(size=(count, dim))
    return (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)


def test_more_candidates_are_compared_where_codes_tell_too_little(caplog):
    index = VectorIndex(crowded(), choose_plan(4000, 16, "pq"))
    index.build(recall=0.95, progress=False)
    assert index.plan.rerank > 20 and index.plan.recall >= 0.95 and not caplog.records
    assert Plan.of_dict(index.plan.to_dict(), "plan") == index.plan
    old = {name: value for name, value in index.plan.to_dict().items() if name != "rerank"}
    assert Plan.of_dict(old, "plan").rerank == 20


def test_an_effort_that_gains_nothing_is_not_taken(caplog, monkeypatch):
    monkeypatch.setattr("hf_vse.search.vectors.RERANKED", (1,))
    gallery = crowded()
    index = VectorIndex(gallery, choose_plan(len(gallery), gallery.shape[1], "pq"))
    index.build(gallery[::20], recall=0.95, progress=False)
    assert "does not reach 0.950 at any effort" in caplog.text and index.plan.effort < index.faiss.nlist
    exact = sorted_rows(gallery, gallery[::20], 10)
    taken = recall(index.search(gallery[::20], 10)[1], exact)
    index.plan = index.plan.measured(index.faiss.nlist, 0.0, "")
    assert recall(index.search(gallery[::20], 10)[1], exact) - taken < 0.01
