"""Past embeddings as further negatives (cross-batch memory, Wang et al., arXiv 1912.06798).

The images and texts of earlier steps, as they were embedded then, are candidates beside those of the batch: images see
past texts, texts see past images. They are no queries and get no gradient. A past candidate that shares an id with the
query is no negative: sooner or later every query meets its own image and captions there.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_vse.model.losses_vse import Scalar, share_an_id, similarity
from hf_vse.objectives.captions import Candidates, Positives, captioned
from hf_vse.objectives.reductions import Hardest, Reduction
from hf_vse.objectives.statistics import CPU_TILE, GPU_TILE, shifted

AGAIN: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
NOTHING = -1e30  # a logit that adds nothing; the gradient of a log-sum-exp of minus infinities is not a number


class Past(NamedTuple):
    """What was embedded in earlier steps, the same on all processes: candidates of texts, and of images. Further
    candidates of a step join them; texts may have none."""

    images: Candidates | None
    texts: Candidates

    def without_vectors(self, dim: int) -> "Past":
        """The same ids, with zeros of this dimension."""

        def zeros(side: Candidates) -> Candidates:
            return Candidates(torch.zeros(len(side.ids), dim, device=side.ids.device), side.ids)

        return Past(self.images and zeros(self.images), zeros(self.texts))


def joined_candidates(one: Candidates | None, other: Candidates) -> Candidates:
    """The candidates of both, one after the other."""
    if one is None:
        return other
    return Candidates(torch.cat([one.embeds, other.embeds]), torch.cat([one.ids, other.ids]))


def compared(
    image_embeds: Tensor,
    text_embeds: Tensor,
    positives: Positives,
    settings: Mapping[str, Scalar],
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    same_modality: bool = False,
) -> tuple[Candidates, Candidates]:
    """The images and texts of a step, as they are candidates of a later one; see `captioned`."""
    batch = captioned(image_embeds, text_embeds, positives, settings, image_ids, text_ids, 0, same_modality)
    of_images, of_texts = batch.ids
    assert of_images is not None and of_texts is not None  # the ids of a step that is kept are given
    images, texts = (each.detach().to(image_embeds.dtype) for each in (batch.images, batch.texts))
    return Candidates(images, of_images), Candidates(texts, of_texts)


def with_past(
    number: Tensor,
    queries: Tensor,
    ids: Tensor,
    past: Candidates | None,
    offsets: Tensor | None,
    reduction: Reduction,
    scale: Tensor | None,
    chunk_size: int | None,
) -> Tensor:
    """The number of a reduction over the negatives of the batch and the past candidates.

    Args:
        number: that of every query over the batch, (Q,), or (Q, k) for the k hardest.
        queries: (Q, dim); ids: (Q, kinds).
        scale, offsets: (), and (Q,) or (), as in `negative_statistics`; differentiable.
        chunk_size: queries compared at once; of several chunks, logits are computed again in the backward pass.
    """
    if past is None or not len(past.ids):
        return number

    def of_part(queries: Tensor, ids: Tensor, offsets: Tensor | None) -> Tensor:
        logits = similarity(queries if scale is None else queries * scale, past.embeds)
        logits = shifted(logits.masked_fill(share_an_id(ids, past.ids), float("-inf")), offsets, 1)
        if torch.is_grad_enabled():
            logits = torch.nn.functional.pad(logits, (0, 1), value=NOTHING)
        found = reduction.reduce(logits, 1, 0)[0]
        if isinstance(reduction, Hardest) and offsets is not None:  # its numbers are scores
            found = shifted(found, -offsets, found.ndim - 1)
        return found

    tile = CPU_TILE if queries.device.type == "cpu" else GPU_TILE
    size = chunk_size or max(64, tile // len(past.embeds))
    of_parts = offsets.split(size) if offsets is not None and offsets.ndim else [offsets] * -(-len(queries) // size)
    parts = zip(queries.split(size), ids.split(size), of_parts, strict=True)
    run: Callable[..., Tensor] = of_part if len(queries) <= size else partial(checkpoint, of_part, **AGAIN)
    found = [run(*part) for part in parts]
    number = reduction.merge([number], [torch.cat(found)])[0]
    return number.masked_fill(number < NOTHING / 2, float("-inf"))
