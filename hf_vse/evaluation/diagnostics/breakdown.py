"""Which captions are found: recall by their length and by the rarest of their words.

Bins hold about equally many captions; captions of one length, or one frequency, are never torn apart. What the numbers
say is where recall is low, not why: long captions also name more, rare words also stand for rarer things.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hf_vse.evaluation.metrics import RECALL_LEVELS

BINS = 5
WORD = re.compile(r"\w+(?:['’-]\w+)*")


def words_of(caption: str) -> list[str]:
    """Its words in lower case, without punctuation."""
    return WORD.findall(caption.lower())


def quantile_bins(values: np.ndarray, bins: int) -> list[np.ndarray]:
    """Positions of about equally many integers each, from the smallest to the largest; equal values stay together."""
    uppers = np.unique(np.quantile(values, np.arange(1, bins + 1) / bins, method="inverted_cdf"))
    bin_of = np.searchsorted(uppers, values)
    return [np.flatnonzero(bin_of == number) for number in range(len(uppers))]


def recalls(ranks: np.ndarray) -> dict[str, float]:
    """Recalls in percent from ranks counted from 0."""
    return {f"r{level}": 100 * float((ranks < level).mean()) for level in RECALL_LEVELS}


def by_value(ranks: np.ndarray, values: np.ndarray, unit: str, zero: str) -> list[dict[str, Any]]:
    """Recalls of bins of `values`, with a bin of its own for zeros."""
    nothing = np.flatnonzero(values == 0)
    something = np.flatnonzero(values)
    rows = [{"bin": zero, "queries": len(nothing)} | recalls(ranks[nothing])] if len(nothing) else []
    for places in quantile_bins(values[something], BINS) if len(something) else []:
        inside = something[places]
        low, high = values[inside].min(), values[inside].max()
        label = f"{low} {unit}" if low == high else f"{low}-{high} {unit}"
        rows.append({"bin": label, "queries": len(inside)} | recalls(ranks[inside]))
    return rows


def breakdown(
    text_ranks: Tensor, captions: Sequence[str], *, train_captions: Sequence[str] | None = None
) -> dict[str, Any]:
    """Text-to-image recall of groups of captions.

    Args:
        text_ranks: (texts,) text-to-image ranks counted from 0, as `retrieval_ranks` returns them.
        captions: the texts, in the same order.
        train_captions: what the frequency of words is counted in; default: `captions`, where every word is seen.

    Returns:
        `length` and `rarest_word`, lists of `{"bin", "queries", "r1", "r5", "r10"}` from short to long and from rare
        to frequent, and `frequency_in`, `train_captions` or `captions`. A caption without any word is in the first
        bins.
    """
    ranks = text_ranks.cpu().numpy()
    if len(captions) != len(ranks):
        raise ValueError(f"captions must have one text for each of the {len(ranks)} ranks, got {len(captions)}")
    words = [words_of(caption) for caption in captions]
    counted = words if train_captions is None else map(words_of, train_captions)
    frequency = Counter(word for of_caption in counted for word in of_caption)
    lengths = np.array([len(of_caption) for of_caption in words])
    rarest = np.array([min((frequency[word] for word in of_caption), default=0) for of_caption in words])
    return {
        "length": by_value(ranks, lengths, "words", "no word"),
        "rarest_word": by_value(ranks, rarest, "occurrences", "never seen"),
        "frequency_in": "captions" if train_captions is None else "train_captions",
    }
