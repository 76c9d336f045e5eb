"""The objectives as streams: what is left of a row loss once its negatives have been reduced to one number.

Each objective of `losses_vse` is a function of the anchor's own score p and of one number about its negatives (see
`reductions`). So a batch needs one pass over the similarities for both directions, and stores none of them. On several
processes a process compares its images with the texts of all, which gives it every negative of its images and a part
of those of every text; the parts are merged. Compared with two gathered matrices, local x global each, that is half
of the arithmetic, and only one modality travels.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.model import losses_vse
from hf_vse.model.losses_vse import Objective, Scalar, objective
from hf_vse.objectives.exchange import ExchangeName, exchange
from hf_vse.objectives.reductions import ReductionName
from hf_vse.objectives.statistics import Plan, Tiles, TorchTiles, negative_statistics


class Settings(NamedTuple):
    """Of an objective, as tensors or numbers."""

    temperature: Scalar
    margin: Scalar
    logit_bias: Scalar


class Stream(NamedTuple):
    """An objective in terms of one number about the negatives.

    reduction: what the number is.
    logits: own scores (Q,) and settings -> scale and offset of the similarities, either None for 1 and 0.
    row_loss: the number (Q,), own scores (Q,) and settings -> (Q,).
    """

    reduction: ReductionName
    logits: Callable[[Tensor, Settings], tuple[Scalar | None, Scalar | None]]
    row_loss: Callable[[Tensor, Tensor, Settings], Tensor]


def plain_similarities(own: Tensor, settings: Settings) -> tuple[None, None]:
    return None, None


def by_temperature(own: Tensor, settings: Settings) -> tuple[Scalar, None]:
    return 1 / settings.temperature, None


def by_temperature_and_bias(own: Tensor, settings: Settings) -> tuple[Scalar, Scalar]:
    return 1 / settings.temperature, settings.logit_bias


def violations(own: Tensor, settings: Settings) -> tuple[None, Tensor]:
    return None, settings.margin - own


def nce(logsumexp: Tensor, own: Tensor, settings: Settings) -> Tensor:
    return F.softplus(logsumexp - own / settings.temperature)


def against_hardest(row_loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Settings], Tensor]:
    """The row loss itself, on an anchor's own candidate and its hardest negative alone."""

    def loss(hardest: Tensor, own: Tensor, settings: Settings) -> Tensor:
        scores = torch.stack([own, hardest], dim=1)
        positives = scores.new_zeros(len(scores), dtype=torch.int64)
        return Objective(row_loss).rows(scores, positives, None, settings._asdict())

    return loss


def hinge_sum(total: Tensor, own: Tensor, settings: Settings) -> Tensor:
    return total


def siglip(total: Tensor, own: Tensor, settings: Settings) -> Tensor:
    return total + F.softplus(-(own / settings.temperature + settings.logit_bias))


STREAMS: dict[Callable[..., Tensor], Stream] = {
    losses_vse.nce: Stream("logsumexp", by_temperature, nce),
    losses_vse.hinge_sum: Stream("hinge_sum", violations, hinge_sum),
    losses_vse.siglip: Stream("softplus_sum", by_temperature_and_bias, siglip),
    **{
        row_loss: Stream("hardest", plain_similarities, against_hardest(row_loss))
        for row_loss in (losses_vse.hardnce, losses_vse.hardnce_smooth, losses_vse.hinge_max)
    },
}


def has_stream(loss_type: str) -> bool:
    return objective(loss_type).row_loss in STREAMS


def streamed_contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    loss_type: str = "nce",
    temperature: Scalar = 0.1,
    margin: Scalar = 0.2,
    logit_bias: Scalar = 0.0,
    image_ids: Tensor | None = None,
    negatives: ExchangeName | None = "gather",
    chunk_size: int | None = None,
    tiles: Tiles | None = None,
) -> Tensor:
    """`contrastive_loss` without the similarity matrix, on one process or on the pairs of all.

    Args:
        image_embeds, text_embeds: (local, dim) unit vectors of this process; processes may hold different numbers.
        loss_type, temperature, margin, logit_bias, image_ids: as in `contrastive_loss`.
        negatives: `gather` takes the texts of all processes at once, `ring` one process at a time, None only the own.
        chunk_size: images compared at once; default: so many that a tile has constant memory. The value of the loss
            does not depend on it.
        tiles: what computes the tiles; default plain torch.

    Returns:
        A scalar, float32. Its mean over the processes is the loss of the whole batch, and its gradients, averaged over
        the processes as data-parallel training does, are those of the whole batch.

    Raises:
        ValueError: an unknown `loss_type`, or one whose row loss is not in `STREAMS`.
    """
    chosen, settings = objective(loss_type), Settings(temperature, margin, logit_bias)
    if not has_stream(loss_type):
        raise ValueError(f"loss_type {loss_type!r} has no stream; use chunked execution, which takes any row loss")
    stream = STREAMS[chosen.row_loss]
    dtype, exchanged = image_embeds.dtype, exchange(negatives, image_embeds)
    plan = Plan(stream.reduction, exchanged, tiles or TorchTiles(), chunk_size, dtype)
    with torch.autocast(image_embeds.device.type, enabled=False):
        images, texts = image_embeds.float(), text_embeds.float()  # so that gradients add up in float32
        own = torch.linalg.vecdot(images, texts)
        scale, offset = (
            None if value is None else torch.as_tensor(value, dtype=torch.float32, device=own.device)
            for value in stream.logits(own, settings)
        )
        of_images, of_texts = negative_statistics(images, texts, plan, scale, offset, image_ids)
        image_rows, text_rows = (stream.row_loss(each, own, settings) for each in (of_images, of_texts))
    counts = exchanged.counts
    return len(counts) * chosen.reduce(image_rows, text_rows, total_rows=sum(counts))
