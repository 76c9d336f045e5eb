"""One vector for a record that has a photograph, a text, or both (CLIPPINGS, arXiv 2304.03464)."""

import numpy as np

from hf_vse.embed.matrices import SHORTEST, as_vectors, mean_of_rows


def pooled_vectors(image_embeds: np.ndarray, text_embeds: np.ndarray, image_weight: float = 0.5) -> np.ndarray:
    """unit(w image + (1 - w) text); a record that lacks one of the two is the other alone, whatever the weight.

    Args:
        image_embeds, text_embeds: (records, dim) unit vectors; zero where a record has none.
        image_weight: w, from 0 to 1.

    Returns:
        (records, dim) float32 unit vectors.

    Raises:
        ValueError: shapes that differ, a weight outside of 0 to 1, or a record without a vector.
    """
    image_embeds, text_embeds = as_vectors("image_embeds", image_embeds), as_vectors("text_embeds", text_embeds)
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds {image_embeds.shape} and text_embeds {text_embeds.shape} differ: give one of each for "
            "every record, zeros where it has none"
        )
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight must lie between 0 and 1, got {image_weight}")
    alone = ~(image_embeds.any(axis=1) & text_embeds.any(axis=1))
    weights = np.full((len(image_embeds), 2), (image_weight, 1 - image_weight), np.float32)
    weights[alone] = 1
    pooled = weights[:, :1] * image_embeds + weights[:, 1:] * text_embeds
    lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
    if not (lengths > SHORTEST).all():
        row = int(np.flatnonzero(~(lengths[:, 0] > SHORTEST))[0])
        raise ValueError(f"record {row} has no vector: neither image nor text, or two that are opposite; leave it out")
    return (pooled / lengths).astype(np.float32, copy=False)


def mean_of_texts(embeds: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The unit mean of the texts of each record; zero for a record without one.

    Args:
        embeds: (texts, dim) unit vectors, those of a record one after the other.
        counts: (records,) how many texts each record has.
    """
    return mean_of_rows(embeds, np.repeat(np.arange(len(counts)), counts), len(counts))
