"""The correction for hubs against the formulas of the papers, written densely."""

import numpy as np
import pytest

from hf_vse.embed import hub_correction
from hf_vse.embed.hub_correction import TEMPERATURE, QueryBank
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.vectors import exact_search


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def space():
    """A gallery of 40, a bank of 90 queries and 30 more queries."""
    rng = np.random.default_rng(0)
    return [unit(rng.normal(size=(count, 6))) for count in (40, 90, 30)]


def dense_inverted_softmax(gallery, bank, queries, temperature):
    """Probability of the query given the item, up to a factor of the query: (queries, items) float64."""
    gallery, bank, queries = (each.astype(np.float64) for each in (gallery, bank, queries))
    return np.exp(queries @ gallery.T / temperature) / np.exp(bank @ gallery.T / temperature).sum(axis=0)


@pytest.mark.parametrize("tile", [(7, 11), (1000, 5000)])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_inverted_softmax_equals_the_dense_formula(space, tile, temperature, monkeypatch):
    monkeypatch.setattr(hub_correction, "BANK_ROWS", tile[0])
    monkeypatch.setattr(hub_correction, "GALLERY_ROWS", tile[1])
    gallery, bank, queries = space
    corrected = QueryBank.fit(gallery, bank, temperature).rescore(queries @ gallery.T, "inverted_softmax")
    expected = temperature * np.log(len(bank) * dense_inverted_softmax(gallery, bank, queries, temperature))
    np.testing.assert_allclose(corrected, expected, atol=1e-5)
    assert (corrected.argmax(axis=1) != (queries @ gallery.T).argmax(axis=1)).any()


@pytest.mark.parametrize("tile", [(7, 11), (1000, 5000)])
@pytest.mark.parametrize("top", [1, 3, 40])
def test_qbnorm_corrects_queries_whose_first_item_is_active(space, tile, top, monkeypatch):
    monkeypatch.setattr(hub_correction, "BANK_ROWS", tile[0])
    monkeypatch.setattr(hub_correction, "GALLERY_ROWS", tile[1])
    gallery, bank, queries = space
    bank = bank[:25]
    fitted = QueryBank.fit(gallery, bank, top=top)
    active = {int(item) for row in bank @ gallery.T for item in np.argsort(-row)[:top]}
    assert set(np.flatnonzero(fitted.active)) == active
    scores = queries @ gallery.T
    corrected = fitted.rescore(scores)
    inverted = dense_inverted_softmax(gallery, bank, queries, TEMPERATURE)
    touched = [int(row.argmax()) in active for row in scores]
    assert top > 1 or 0 < sum(touched) < len(touched)
    for query, is_touched in enumerate(touched):
        reference = inverted[query] if is_touched else scores[query]
        assert np.argsort(-corrected[query]).tolist() == np.argsort(-reference).tolist()
        assert is_touched or np.array_equal(corrected[query], scores[query])


def test_a_hub_loses_its_place():
    """An image near to all captions stands before many captions' own images; a bank of other captions removes it."""
    rng = np.random.default_rng(1)
    gallery, direction = rng.normal(size=(50, 40)), rng.normal(size=40)
    captions = gallery[np.arange(200) % 50] + 1.2 * rng.normal(size=(200, 40)) + direction
    gallery[17] = 3 * direction
    gallery, captions = unit(gallery), unit(captions)
    bank, queries, own = captions[:100], captions[100:], np.arange(100) % 50
    raw = queries @ gallery.T
    assert (raw.argmax(axis=1) == 17).mean() > 0.5
    for kind in ("qbnorm", "inverted_softmax"):
        corrected = QueryBank.fit(gallery, bank).rescore(raw, kind)
        assert (corrected.argmax(axis=1) == 17).mean() < 0.1
        assert (corrected.argmax(axis=1) == own).mean() > (raw.argmax(axis=1) == own).mean() + 0.3


@pytest.mark.parametrize("kind", ["qbnorm", "inverted_softmax"])
def test_candidates_found_are_corrected_as_in_the_whole_gallery(space, kind):
    gallery, bank, queries = space
    fitted = QueryBank.fit(gallery, bank[:25])
    scores, rows = exact_search(gallery, queries, 10)
    found = fitted.rescore_found(scores, rows, kind)
    whole = fitted.rescore(queries @ gallery.T, kind)
    np.testing.assert_allclose(found, np.take_along_axis(whole, rows, axis=1), atol=1e-6)
    rows[0, 4:] = -1
    short = fitted.rescore_found(scores, rows, kind)
    assert np.isneginf(short[0, 4:]).all() and np.array_equal(short[1:], found[1:])
    assert fitted.rescore_found(np.empty((3, 0)), np.empty((3, 0), int), kind).shape == (3, 0)


def test_small_temperatures_neither_overflow_nor_lose_items(space):
    gallery, bank, queries = space
    fitted = QueryBank.fit(gallery, bank, temperature=1e-4)
    np.testing.assert_allclose(fitted.normalizer, (bank @ gallery.T).max(axis=0), atol=1e-3)
    assert np.isfinite(fitted.rescore(queries @ gallery.T)).all()


def test_a_bank_is_saved_and_loaded(space, tmp_path):
    gallery, bank, queries = space
    fitted = QueryBank.fit(gallery, bank, temperature=0.07, top=2)
    fitted.save(tmp_path / "bank.safetensors")
    loaded = QueryBank.load(tmp_path / "bank.safetensors")
    assert loaded.temperature == 0.07 and loaded.active.dtype == bool
    scores = queries @ gallery.T
    np.testing.assert_allclose(loaded.rescore(scores), fitted.rescore(scores), rtol=1e-6)
    with pytest.raises(FileNotFoundError, match="none is not a file; write one with QueryBank.save"):
        QueryBank.load(tmp_path / "none")


def test_bad_input_is_refused(space):
    gallery, bank, queries = space
    fitted = QueryBank.fit(gallery, bank)
    rows = np.zeros((2, 3), int)
    cases = [
        (lambda: QueryBank.fit(gallery, bank[:, :3]), "gallery_embeds have 6 dimensions and bank_embeds 3"),
        (lambda: QueryBank.fit(gallery, bank[:0]), "bank_embeds must be a non-empty"),
        (lambda: QueryBank.fit(gallery, bank, temperature=0), "temperature must be positive, got 0"),
        (lambda: QueryBank.fit(gallery, bank, top=41), "top must lie in 1 .. 40"),
        (lambda: fitted.rescore(queries), r"scores must be \(queries, 40\).*got \(30, 6\)"),
        (
            lambda: fitted.rescore(queries @ gallery.T, "csls"),
            "kind must be one of qbnorm, inverted_softmax, got 'csls'",
        ),
        (lambda: fitted.rescore_found(np.zeros((2, 2)), rows), "two matrices .queries, k., got"),
        (lambda: fitted.rescore_found(np.zeros((2, 3)), rows + 40), "rows must lie in 0 .. 39, or be -1; got 40, 40"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


def test_gallery_gives_a_hub_its_earned_place(tmp_path):
    rng = np.random.default_rng(5)
    items = unit(rng.normal(size=(60, 12)))
    items[0] = unit(items[1:].mean(axis=0, keepdims=True) + 0.02)[0]  # near to everything
    queries = unit(items[1:] + 0.6 * unit(rng.normal(size=(59, 12))) + items[0])
    gallery = GalleryIndex(items.astype(np.float32), model="mine")
    with pytest.raises(ValueError, match="correction='qbnorm' needs to know the hubs"):
        gallery.search(queries, correction="qbnorm")
    gallery.learn_hubs(unit(rng.normal(size=(200, 12)) + 3 * items[0]))
    gallery.save(tmp_path)
    gallery = GalleryIndex.load(tmp_path)
    plain, corrected = (
        np.array(gallery.search(queries, k=3, correction=kind)[1])[:, 0] for kind in (None, "inverted_softmax")
    )
    assert (plain == 0).sum() > 20 and (corrected == 0).sum() < (plain == 0).sum() // 2
    whole = gallery.hubs.rescore(queries @ items.T, "inverted_softmax")
    scores, found = gallery.search(queries, k=6, correction="inverted_softmax")
    assert np.array(found).tolist() == np.argsort(-whole, axis=1)[:, :6].tolist()
    np.testing.assert_allclose(scores, -np.sort(-whole, axis=1)[:, :6], atol=1e-6)
    assert len(gallery.search(queries, k=2, correction="qbnorm", where=lambda item: item > 57)[1][0]) == 2
