import numpy as np
import pytest

from hf_vse.link.pooling import mean_of_texts, pooled_vectors


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_record_is_the_weighted_sum_or_what_it_has():
    images, texts = unit(np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32).reshape(8, 5)), None
    images, texts = images[:4].copy(), images[4:].copy()
    images[1], texts[2] = 0, 0
    pooled = pooled_vectors(images, texts, 0.3)
    for row, (image, text) in enumerate(zip(images, texts, strict=True)):
        expected = text if row == 1 else image if row == 2 else 0.3 * image + 0.7 * text
        np.testing.assert_allclose(pooled[row], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(pooled_vectors(images, texts, 0)[1:3], [texts[1], images[2]], atol=1e-6)


def test_what_has_no_vector_is_refused():
    one = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match="record 1 has no vector"):
        pooled_vectors(one * [[1], [0]], one * [[1], [0]])
    with pytest.raises(ValueError, match="record 0 has no vector"):
        pooled_vectors(one, -one)
    with pytest.raises(ValueError, match="image_weight must lie between 0 and 1, got 2"):
        pooled_vectors(one, one, 2)
    with pytest.raises(ValueError, match="differ"):
        pooled_vectors(one, one[:1])


def test_the_mean_of_texts_has_length_one_or_zero():
    texts = unit(np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32))
    found = mean_of_texts(texts, np.array([1, 0, 3]))
    np.testing.assert_allclose(found, [texts[0], np.zeros(3), unit(texts[1:].sum(0, keepdims=True))[0]], atol=1e-6)
