"""Recalls with hub correction at query time, beside those of the model itself.

The bank of queries comes from the training split, never from the split that is judged. A correction looks at the whole
gallery: compare these numbers with corrected ones only.
"""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from hf_vse.embed.encoder import Encoder
from hf_vse.embed.hub_correction import Correction, QueryBank
from hf_vse.evaluation.evaluator import PairEmbeddings, embed_pairs
from hf_vse.evaluation.metrics import summarize_ranks

BANK_IMAGES = 2000  # of the training split, with all their captions
ROWS = 500  # queries corrected at once
TITLES = {"qbnorm": "QB-Norm", "inverted_softmax": "inverted softmax"}


def training_bank(encoder: Encoder, train: Dataset, seed: int = 0, **encoding: Any) -> PairEmbeddings:
    """Embeddings of a sample of the training split, by all processes together."""
    rows = np.random.default_rng(seed).permutation(len(train))[:BANK_IMAGES]
    return embed_pairs(encoder, train.select(sorted(rows.tolist())), **encoding)


def corrected_ranks(queries: Tensor, gallery: Tensor, positives: Tensor, bank: Tensor, kind: Correction) -> Tensor:
    """How many negatives of each query score at least as high as its best positive, after the correction.

    Args:
        queries: (Q, dim), gallery: (items, dim), bank: (B, dim) queries to learn hubs from.
        positives: (pairs, 2) rows of queries and of the gallery that belong together.

    Returns:
        (Q,) int64, counted from 0.
    """
    learned = QueryBank.fit(gallery, bank)
    ranks = []
    for first in range(0, len(queries), ROWS):
        scores = torch.from_numpy(learned.rescore(queries[first : first + ROWS] @ gallery.T, kind))
        inside = positives[(positives[:, 0] >= first) & (positives[:, 0] < first + len(scores))]
        mine = torch.zeros(scores.shape, dtype=torch.bool)
        mine[inside[:, 0] - first, inside[:, 1]] = True
        threshold = scores.masked_fill(~mine, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append((scores.masked_fill(mine, -torch.inf) >= threshold).sum(dim=1))
    return torch.cat(ranks)


def corrected_results(pairs: PairEmbeddings, bank: PairEmbeddings, kind: Correction) -> dict[str, Any]:
    """Recalls of both directions after the correction: `title`, `note` and `metrics`, as for a protocol.

    Args:
        bank: what `training_bank` returns: its texts are the bank for images, its images that for texts.
    """
    positives = torch.stack([torch.arange(len(pairs.text_to_image)), pairs.text_to_image], dim=1)
    image_ranks = corrected_ranks(pairs.image_embeds, pairs.text_embeds, positives.flip(1), bank.image_embeds, kind)
    text_ranks = corrected_ranks(pairs.text_embeds, pairs.image_embeds, positives, bank.text_embeds, kind)
    return {
        "title": TITLES[kind],
        "note": f"Hubs learned from {len(bank.text_embeds):,} captions and {len(bank.image_embeds):,} images of the "
        "training split; not comparable with uncorrected numbers.",
        "metrics": summarize_ranks(image_ranks, text_ranks),
    }
