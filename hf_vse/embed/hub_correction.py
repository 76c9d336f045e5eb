"""Hub correction: scores corrected at query time by how close each item is to a bank of typical queries.

In high dimensions a few items, the hubs, are near to almost every query. A bank of typical queries, such as captions
of the training set, shows which: an item's normaliser is the soft maximum of its scores with all of them.

- `inverted_softmax` (Smith et al., ICLR 2017, arXiv 1702.03859, equation 8): the probability of the query given the
  item instead of that of the item given the query.
- `qbnorm` (Bogolin et al., CVPR 2022, arXiv 2112.12777, the dynamic inverted softmax): the same, but only for queries
  whose first item is in the activation set, the items that some query of the bank finds first. Other queries keep
  their order, so that a bank which does not fit does less harm.

Corrected scores are s - t log(mean over the bank of exp(b / t)), in the unit of similarity: the logarithm of the
papers' scores, times t, up to a constant for each query, so that the order is the same. Compare them within one query
only. Nothing in this package corrects scores unless asked to: measure the gain first, with a bank that holds no query
of the test set.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from safetensors.numpy import save_file

from hf_vse.embed.matrices import as_vectors, merge_best, no_candidates, read_tensors

Correction = Literal["qbnorm", "inverted_softmax"]
# 1 / 20, the default of the program that the authors of QB-Norm published. Two models trained on Flickr8k gained most
# at the temperature of 0.1 that one was trained with (text-to-image R@1 12.6 -> 14.0 and 11.8 -> 13.0), lost at 0.01.
TEMPERATURE = 0.05
BANK_ROWS = 1_000
GALLERY_ROWS = 5_000


@dataclass(frozen=True)
class QueryBank:
    """What a bank of queries tells of a gallery: two numbers for each item, whatever the size of the bank.

    Args:
        normalizer: (items,) float32, t log(mean over the bank of exp(b / t)) of the item's scores b.
        active: (items,) booleans, whether a query of the bank has the item among its first.
        temperature: t.

    Example:
        bank = QueryBank.fit(image_embeds, training_caption_embeds)
        scores = bank.rescore(text_embeds @ image_embeds.T)
    """

    normalizer: np.ndarray
    active: np.ndarray
    temperature: float

    @classmethod
    def fit(cls, gallery_embeds: Any, bank_embeds: Any, temperature: float = TEMPERATURE, top: int = 1) -> "QueryBank":
        """Learns from the bank which items are hubs; scores are computed a tile at a time.

        Args:
            gallery_embeds: (items, dim) unit vectors.
            bank_embeds: (bank, dim) unit vectors of typical queries, never of those that will be measured.
            temperature: smaller ones count the nearest queries of the bank alone.
            top: how many first items of each query of the bank are active.
        """
        gallery, bank = as_vectors("gallery_embeds", gallery_embeds), as_vectors("bank_embeds", bank_embeds)
        if gallery.shape[1] != bank.shape[1]:
            raise ValueError(f"gallery_embeds have {gallery.shape[1]} dimensions and bank_embeds {bank.shape[1]}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if not 1 <= top <= len(gallery):
            raise ValueError(f"top must lie in 1 .. {len(gallery)}, the items of the gallery, got {top}")
        totals = np.full(len(gallery), -np.inf)  # logarithms of sums of exponentials
        active = np.zeros(len(gallery), bool)
        for first in range(0, len(bank), BANK_ROWS):
            queries = bank[first : first + BANK_ROWS].astype(np.float32)
            best = no_candidates(len(queries))
            for left in range(0, len(gallery), GALLERY_ROWS):
                scores = queries @ gallery[left : left + GALLERY_ROWS].astype(np.float32).T
                inside = slice(left, left + scores.shape[1])
                totals[inside] = np.logaddexp(totals[inside], log_sum_exp(scores / np.float32(temperature)))
                best = merge_best(best, scores, left, top)
            active[best[1]] = True
        normalizer = temperature * (totals - np.log(len(bank)))
        return cls(normalizer.astype(np.float32), active, float(temperature))

    def rescore(self, scores: Any, kind: Correction = "qbnorm") -> np.ndarray:
        """Corrected scores of the whole gallery: (queries, items) similarities -> (queries, items) float32."""
        scores = np.asarray(scores, np.float32)
        if scores.ndim != 2 or scores.shape[1] != len(self.active):
            raise ValueError(f"scores must be (queries, {len(self.active)}), one for each item, got {scores.shape}")
        return self.correct(scores, np.broadcast_to(np.arange(scores.shape[1]), scores.shape), kind)

    def rescore_found(self, scores: Any, rows: Any, kind: Correction = "qbnorm") -> np.ndarray:
        """Corrected scores of the candidates that a search has found, in the order they came in.

        Items that the search did not find cannot come up: ask it for more than will be shown, then sort and cut.

        Args:
            scores: (queries, k) similarities.
            rows: (queries, k) their rows in the gallery, the first one of all among them; -1 is not an item.

        Returns:
            (queries, k) float32; -inf where there is no item.
        """
        scores, rows = np.asarray(scores, np.float32), np.asarray(rows)
        if scores.ndim != 2 or scores.shape != rows.shape:
            raise ValueError(f"scores and rows must be two matrices (queries, k), got {scores.shape} and {rows.shape}")
        if rows.size and not -1 <= rows.min() <= rows.max() < len(self.active):
            raise ValueError(f"rows must lie in 0 .. {len(self.active) - 1}, or be -1; got {rows.min()}, {rows.max()}")
        return self.correct(np.where(rows < 0, -np.inf, scores), rows, kind)

    def correct(self, scores: np.ndarray, rows: np.ndarray, kind: Correction) -> np.ndarray:
        """The correction of scores (queries, k) of items `rows` (queries, k)."""
        if kind not in get_args(Correction):
            raise ValueError(f"kind must be one of {', '.join(get_args(Correction))}, got {kind!r}")
        corrected = scores - self.normalizer[rows]
        if kind == "inverted_softmax" or not scores.size:
            return corrected
        first = np.take_along_axis(rows, scores.argmax(axis=1)[:, None], axis=1)
        return np.where(self.active[first], corrected, scores)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file."""
        tensors = {"normalizer": self.normalizer, "active": self.active, "temperature": np.array([self.temperature])}
        save_file(tensors, path)

    @classmethod
    def load(cls, path: str | Path) -> "QueryBank":
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} is not a file; write one with QueryBank.save")
        normalizer, active, temperature = read_tensors(path, "normalizer", "active", "temperature")
        right = (
            normalizer.ndim == 1
            and active.shape == normalizer.shape
            and active.dtype == bool
            and np.isfinite(normalizer).all()
            and temperature.shape == (1,)
            and temperature[0] > 0
        )
        if not right:
            raise ValueError(f"{path} holds no bank of queries: write one with QueryBank.save")
        return cls(normalizer, active, temperature.item())


def log_sum_exp(scores: np.ndarray) -> np.ndarray:
    """Of each column: (queries, items) float32 -> (items,) float64."""
    largest = scores.max(axis=0)
    return largest + np.log(np.exp(scores - largest).sum(axis=0, dtype=np.float64))
