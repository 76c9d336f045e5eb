"""From the states of a tower, one per word, region or grid cell, to one vector.

`gpo` is the generalized pooling operator of Chen et al., "Learning the Best Pooling Strategy for Visual Semantic
Embedding" (arXiv 2011.04305): sort every feature over the positions, then weigh the ranks with learned coefficients
that depend only on how many positions there are. Mean and max are two settings of these coefficients.
"""

import math

import torch
from torch import Tensor, nn

RANK_ENCODING_DIM, GPO_HIDDEN_SIZE, GPO_TEMPERATURE = 32, 32, 0.1


def reverse_valid(states: Tensor, lengths: Tensor) -> Tensor:
    """Reverses the first `lengths[i]` positions of row i and leaves the padding: (B, L, D), (B,) -> (B, L, D)."""
    position = torch.arange(states.shape[1], device=states.device)[None, :]
    mirrored = lengths[:, None] - 1 - position
    index = torch.where(mirrored >= 0, mirrored, position)
    return states.gather(1, index[:, :, None].expand_as(states))


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def max_pool(states: Tensor, mask: Tensor) -> Tensor:
    return states.masked_fill(~mask[:, :, None], torch.finfo(states.dtype).min).amax(dim=1)


def last_pool(states: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(states.shape[1], device=states.device)
    last = (positions * mask).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), last]


def cls_pool(states: Tensor, mask: Tensor) -> Tensor:
    first = mask.int().argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), first]


class GeneralizedPooling(nn.Module):
    """Learned weighting of sorted features: (B, L, D), (B, L) bool -> (B, D)."""

    def __init__(self):
        super().__init__()
        self.forward_gru = nn.GRU(RANK_ENCODING_DIM, GPO_HIDDEN_SIZE, batch_first=True)
        self.backward_gru = nn.GRU(RANK_ENCODING_DIM, GPO_HIDDEN_SIZE, batch_first=True)
        self.score = nn.Linear(GPO_HIDDEN_SIZE, 1, bias=False)

    def rank_encoding(self, length: int, like: Tensor) -> Tensor:
        """Sinusoidal encoding of the ranks 0 .. length-1: (length, RANK_ENCODING_DIM)."""
        rates = torch.arange(0, RANK_ENCODING_DIM, 2, device=like.device) * (-math.log(10_000.0) / RANK_ENCODING_DIM)
        angles = torch.arange(length, device=like.device)[:, None] * rates.exp()[None, :]
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(like.dtype)

    def coefficients(self, mask: Tensor, like: Tensor) -> Tensor:
        """Weights of the ranks for every set size of the batch, zero beyond it: (B, L) bool -> (B, L)."""
        lengths = mask.sum(dim=1).clamp(min=1)
        ranks = torch.arange(mask.shape[1], device=mask.device)[None, :] < lengths[:, None]
        encoding = self.rank_encoding(mask.shape[1], like).expand(mask.shape[0], -1, -1)
        ahead = self.forward_gru(encoding)[0]
        behind = reverse_valid(self.backward_gru(reverse_valid(encoding, lengths))[0], lengths)
        scores = self.score((ahead + behind) / 2).squeeze(2).float()
        return (scores / GPO_TEMPERATURE).masked_fill(~ranks, float("-inf")).softmax(dim=1).to(like.dtype)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        lowest = torch.finfo(states.dtype).min
        ordered = states.masked_fill(~mask[:, :, None], lowest).sort(dim=1, descending=True).values
        ranks = torch.arange(states.shape[1], device=states.device)[None, :] < mask.sum(dim=1)[:, None]
        ordered = ordered.masked_fill(~ranks[:, :, None], 0)
        return (ordered * self.coefficients(mask, states)[:, :, None]).sum(dim=1)


POOLING = {"mean": mean_pool, "max": max_pool, "last": last_pool, "cls": cls_pool}


class Pooling(nn.Module):
    """One vector from the states of a tower.

    Args:
        pooling_type: a key of `POOLING`, `gpo`, or `pooler` for the tower's own pooled output.
    """

    def __init__(self, pooling_type: str):
        super().__init__()
        self.pooling_type = pooling_type
        self.learned = GeneralizedPooling() if pooling_type == "gpo" else None

    def forward(self, states: Tensor, mask: Tensor | None, pooled: Tensor | None) -> Tensor:
        """(B, L, D), (B, L) or None, (B, D) or None -> (B, D)."""
        if self.pooling_type == "pooler":
            if pooled is None:
                raise ValueError("pooling 'pooler' needs a tower with a pooled output; choose mean, max, last or cls")
            return pooled
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()
        return (self.learned or POOLING[self.pooling_type])(states, mask)
