import numpy as np
import pytest

from hf_vse.search.compression import Compression


def unit_vectors(rng, count: int, dim: int, spread: np.ndarray) -> np.ndarray:
    vectors = rng.normal(size=(count, dim)) * spread
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def gallery_and_queries():
    """Vectors of 64 dimensions, most of whose variance lies in 16 directions, none of them an axis."""
    rng = np.random.default_rng(0)
    spread = np.where(np.arange(64) < 16, 1.0, 0.05)
    turn = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    vectors = unit_vectors(rng, 600, 64, spread) @ turn.astype(np.float32)
    return vectors[:500], vectors[500:]


def error(compression: Compression, gallery: np.ndarray, queries: np.ndarray) -> float:
    scores = compression.scores(queries, compression.encode(gallery))
    return float(np.abs(scores - queries @ gallery.T).max())


def test_all_dimensions_keep_similarities_and_rounding_costs_what_it_should(gallery_and_queries):
    gallery, queries = gallery_and_queries
    sizes = {"float32": 256, "float16": 128, "int8": 64, "binary": 8}
    errors = {}
    for precision, size in sizes.items():
        compression = Compression.fit(gallery, precision=precision)
        codes = compression.encode(gallery)
        assert codes.nbytes == size * len(gallery) and compression.bytes_per_vector == size
        errors[precision] = error(compression, gallery, queries)
    assert errors["float32"] < 1e-6 < errors["float16"] < 1e-3 < errors["int8"] < 0.02 < errors["binary"] < 0.6


def test_rotation_keeps_what_plain_truncation_loses(gallery_and_queries):
    gallery, queries = gallery_and_queries
    rotated = error(Compression.fit(gallery, dim=16, precision="float32"), gallery, queries)
    truncated = error(Compression.fit(gallery, dim=16, precision="float32", rotate=False), gallery, queries)
    assert rotated < 0.1 < 0.5 < truncated
    assert error(Compression.fit(gallery, dim=16), gallery, queries) < rotated + 0.02


def test_plain_truncation_keeps_the_first_dimensions(gallery_and_queries):
    gallery, _ = gallery_and_queries
    kept = gallery[:, :20] / np.linalg.norm(gallery[:, :20], axis=1, keepdims=True)
    compression = Compression.fit(gallery, dim=20, precision="float32", rotate=False)
    np.testing.assert_allclose(compression.encode(gallery), kept, atol=1e-6)


def test_signs_of_any_number_of_dimensions(gallery_and_queries):
    gallery, _ = gallery_and_queries
    compression = Compression.fit(gallery, dim=13, precision="binary")
    decoded = compression.decode(compression.encode(gallery))
    assert compression.encode(gallery).shape == (500, 2)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(decoded > 0, compression.project(gallery) >= 0)


def test_saved_compression_gives_the_same_codes(gallery_and_queries, tmp_path):
    gallery, queries = gallery_and_queries
    compression = Compression.fit(gallery[:100], dim=16)
    compression.save(tmp_path / "compression.safetensors")
    loaded = Compression.load(tmp_path / "compression.safetensors")
    codes = [each.encode(gallery).astype(np.int64) for each in (loaded, compression)]
    assert np.abs(codes[0] - codes[1]).max() <= 1  # a value on the edge of a step may fall to either side
    assert (codes[0] == codes[1]).mean() > 0.999
    assert error(loaded, gallery, queries) == pytest.approx(error(compression, gallery, queries), rel=1e-3)
    with pytest.raises(FileNotFoundError, match="Compression.save"):
        Compression.load(tmp_path / "nothing")


def test_many_rows_are_read_in_chunks(gallery_and_queries, monkeypatch):
    gallery, queries = gallery_and_queries
    whole = Compression.fit(gallery, dim=16)
    scores = whole.scores(queries, whole.encode(gallery))
    monkeypatch.setattr("hf_vse.search.compression.ROWS_AT_ONCE", 64)
    parts = Compression.fit(gallery, dim=16)
    np.testing.assert_allclose(parts.scores(queries, parts.encode(gallery)), scores, atol=0.02)


def test_compression_says_what_is_wrong(gallery_and_queries):
    gallery, _ = gallery_and_queries
    with pytest.raises(ValueError, match="dim must lie in 1 .. 64, the size of the vectors, got 65"):
        Compression.fit(gallery, dim=65)
    with pytest.raises(ValueError, match="precision must be one of float32, float16, int8, binary, got 'int4'"):
        Compression.fit(gallery, precision="int4")
    with pytest.raises(ValueError, match="embeds have 10 dimensions, the compression was fitted on 64"):
        Compression.fit(gallery).encode(gallery[:, :10])
