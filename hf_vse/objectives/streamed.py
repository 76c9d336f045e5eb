"""Row losses as streams: computed from the positive's score and one number about all negatives.

Each row loss of `losses_vse` depends only on the score p of the positive and on one number about the negatives (see
`reductions`). So one pass over the similarities serves both directions, and none of them is stored. With several
processes, each compares its images with the texts of all: it sees all negatives of its images and a part of those of
every text, and the parts are merged. That is half of the arithmetic of two gathered matrices, local x global each, and
only one modality is sent.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.model import losses_vse
from hf_vse.model.losses_vse import Objective, Scalar, all_settings, objective
from hf_vse.objectives.captions import (
    Candidates,
    Captioned,
    Positives,
    caption_count,
    captioned,
    check_captioned,
    mean_of_captions,
)
from hf_vse.objectives.exchange import Negatives, check_at_once, exchange_of
from hf_vse.objectives.foils import with_foils
from hf_vse.objectives.gather import gather_candidates, gather_rows
from hf_vse.objectives.past import Past, with_past
from hf_vse.objectives.reductions import (
    GuardedCount,
    GuardedLogSumExp,
    Hardest,
    HardestFew,
    HingeSum,
    LogSumExp,
    Reduction,
    SoftplusSum,
)
from hf_vse.objectives.same_modality import with_same_modality
from hf_vse.objectives.statistics import ReductionPlan, Sides, Tiles, TorchTiles, negative_statistics

Settings = Mapping[str, Scalar]  # `losses_vse.SETTINGS`


class Stream(NamedTuple):
    """A row loss in terms of one number about the negatives.

    reduction: what the number is.
    logits: positive's scores (Q,) and settings -> scale and offset of the similarities; None means 1 and 0.
    row_loss: the number (Q,), positive's scores (Q,) and settings -> (Q,).
    """

    reduction: Reduction
    logits: Callable[[Tensor, Settings], tuple[Scalar | None, Scalar | None]]
    row_loss: Callable[[Tensor, Tensor, Settings], Tensor]


def plain_similarities(positive: Tensor, settings: Settings) -> tuple[None, None]:
    return None, None


def by_temperature(positive: Tensor, settings: Settings) -> tuple[Scalar, None]:
    return 1 / settings["temperature"], None


def by_temperature_and_bias(positive: Tensor, settings: Settings) -> tuple[Scalar, Scalar]:
    return 1 / settings["temperature"], settings["logit_bias"]


def violations(positive: Tensor, settings: Settings) -> tuple[None, Tensor]:
    return None, settings["margin"] - positive


def nce_rows(logsumexp: Tensor, positive: Tensor, settings: Settings) -> Tensor:
    return F.softplus(logsumexp - (positive - settings["positive_margin"]) / settings["temperature"])


def against_hardest(row_loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Settings], Tensor]:
    """The row loss itself, on the positive and the hardest negative, (Q,), or negatives, (Q, k), alone."""

    def loss(hardest: Tensor, positive: Tensor, settings: Settings) -> Tensor:
        scores = torch.cat([positive[:, None], hardest.view(len(hardest), -1)], dim=1)
        positives, absent = scores.new_zeros(len(scores), dtype=torch.int64), scores.isneginf()
        return Objective(row_loss).rows(scores.masked_fill(absent, 0.0), positives, absent, settings)

    return loss


def hinge_sum_rows(total: Tensor, positive: Tensor, settings: Settings) -> Tensor:
    return total


def siglip_rows(total: Tensor, positive: Tensor, settings: Settings) -> Tensor:
    return total + F.softplus(-(positive / settings["temperature"] + settings["logit_bias"]))


STREAMS: dict[Callable[..., Tensor], Stream] = {
    losses_vse.nce: Stream(LogSumExp(), by_temperature, nce_rows),
    losses_vse.hinge_sum: Stream(HingeSum(), violations, hinge_sum_rows),
    losses_vse.siglip: Stream(SoftplusSum(), by_temperature_and_bias, siglip_rows),
    **{
        row_loss: Stream(Hardest(), plain_similarities, against_hardest(row_loss))
        for row_loss in (losses_vse.hardnce, losses_vse.hardnce_smooth, losses_vse.hinge_max)
    },
}


def without_kernel(chosen: Objective, settings: Settings) -> str | None:
    """The first of the settings in use that no kernel computes."""
    in_use = {
        "negatives_kept": settings["negatives_kept"] > 0,
        "false_negative_gap": settings["false_negative_gap"] < 2,
    }
    return next((name for name, used in in_use.items() if used and name in chosen.settings), None)


def greatest_true(positive: Tensor, settings: Settings) -> Tensor:
    """The highest similarity that a true negative may have, without a gradient."""
    return (positive + settings["false_negative_gap"]).detach()


def guarded_similarities(positive: Tensor, settings: Settings) -> tuple[None, Tensor]:
    return None, -greatest_true(positive, settings)


def guarded_by_temperature(positive: Tensor, settings: Settings) -> tuple[Scalar, Tensor]:
    scale, _ = by_temperature(positive, settings)
    return scale, -(greatest_true(positive, settings) * scale).detach()


def guarded_nce_rows(logsumexp: Tensor, positive: Tensor, settings: Settings) -> Tensor:
    _, offset = guarded_by_temperature(positive, settings)
    return nce_rows(logsumexp - offset, positive, settings)


def stream_of(chosen: Objective, settings: Settings, candidates: int) -> Stream:
    """How an objective with these settings is streamed over so many candidates."""
    if without_kernel(chosen, settings) is None:
        return STREAMS[chosen.row_loss]
    kept, guarded = int(settings["negatives_kept"]), bool(settings["false_negative_gap"] < 2)
    if 0 < kept < candidates - 1:
        logits = guarded_similarities if guarded else plain_similarities
        return Stream(HardestFew(kept, guarded), logits, against_hardest(chosen.row_loss))
    if guarded:
        return Stream(GuardedLogSumExp(), guarded_by_temperature, guarded_nce_rows)
    return STREAMS[chosen.row_loss]


def numbers_of(
    images: Tensor,
    texts: Tensor,
    plan: ReductionPlan,
    scale: Tensor | None,
    offsets: Sides,
    ids: Sides,
    past: Past | None,
) -> tuple[Tensor, Tensor]:
    """`negative_statistics` over the batch and over past candidates."""
    found = negative_statistics(images, texts, plan, scale, offsets, ids)
    if past is None:
        return found
    of_images, of_texts = ids
    assert of_images is not None and of_texts is not None  # past candidates need ids
    how = plan.reduction, scale, plan.chunk_size
    return (
        with_past(found[0], images, of_images, past.texts, offsets[0], *how),
        with_past(found[1], texts, of_texts, past.images, offsets[1], *how),
    )


def weighted_logsumexp(
    images: Tensor,
    texts: Tensor,
    plan: ReductionPlan,
    scale: Tensor,
    offsets: Sides,
    ids: Sides,
    past: Past | None,
    hardness: Scalar,
) -> tuple[Tensor, Tensor]:
    """log sum_j w_j e^{x_j} of every query, with the fixed weights of `losses_vse.log_weights`, as log-sum-exps alone.

    With b the hardness, A = log sum e^{(1+b) x} and C = log sum e^{b x}, it is log N + A - C, and its slopes are those
    of A by (1+b) x: e^{(1+b) x_j - A}. Minus infinity without negatives.
    """

    def logsumexps(factor: Scalar) -> tuple[Tensor, Tensor]:
        of_images, of_texts = (None if each is None else factor * each for each in offsets)
        of_sides = of_images, of_texts
        return numbers_of(images, texts, plan, factor * scale, of_sides, ids, past)

    of_weighted = logsumexps(1 + hardness)
    with torch.no_grad():
        of_weights = logsumexps(hardness)
        if offsets[0] is None:
            nothing = images.new_zeros(len(images), 16), texts.new_zeros(len(texts), 16)  # e^0; 16 suit the kernels
            counts = numbers_of(*nothing, plan, None, offsets, ids, past and past.without_vectors(16))
        else:
            counting = plan._replace(reduction=GuardedCount())
            counted = numbers_of(images, texts, counting, scale, offsets, ids, past)
            counts = counted[0].log(), counted[1].log()
    of_images, of_texts = (
        torch.where(n.isneginf(), n, n + a.detach() - c + (a - a.detach()) / (1 + hardness))
        for a, c, n in zip(of_weighted, of_weights, counts, strict=True)
    )
    return of_images, of_texts


def has_stream(loss_type: str) -> bool:
    return objective(loss_type).row_loss in STREAMS


def streamed_contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    loss_type: str = "nce",
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    positives: Positives = "one",
    negatives: Negatives = "gather",
    chunk_size: int | None = None,
    tiles: Tiles | None = None,
    image_weight: float = 0.5,
    past: Past | None = None,
    same_modality: bool = False,
    foils: Candidates | None = None,
    **settings: Scalar,
) -> Tensor:
    """`contrastive_loss` without the similarity matrix, on one process or on the pairs of all.

    Args:
        image_embeds, text_embeds: (local, dim) unit vectors of this process; processes may hold different numbers.
            Texts are (local, K, dim) where images have K captions.
        loss_type, image_ids, text_ids, image_weight, settings: as in `contrastive_loss`; `text_ids` with K captions
            (local, K) or (local, K, kinds).
        positives: which of K captions are positives, see `captions`.
        negatives: the texts of all processes at once (`gather`), of one process at a time (`ring`), or of this process
            (`local`).
        chunk_size: images compared at once; default: as many as a tile of constant memory takes. The value of the
            loss does not depend on it.
        tiles: what computes the tiles; default plain torch.
        past: further candidates, always compared by plain torch; then pairs need ids.
        same_modality: images are negatives of images too, and texts of texts, see `same_modality.py`; also by plain
            torch.
        foils: of this process, with text ids, (n, kinds): further negatives of images, see `foils.py`; also by plain
            torch.

    Returns:
        A scalar, float32. Its mean over the processes is the loss of the whole batch, and its gradients, averaged over
        the processes as data-parallel training does, are those of the whole batch.

    Raises:
        ValueError: an unknown `loss_type`, or one whose row loss is not in `STREAMS`.
    """
    chosen, settings = objective(loss_type), all_settings(settings)
    if not has_stream(loss_type):
        raise ValueError(f"loss_type {loss_type!r} has no stream; use chunked execution, which takes any row loss")
    check_captioned(positives, caption_count(text_embeds), loss_type)
    for name, used in (("same_modality", same_modality), ("foils", foils is not None)):
        if used:
            check_at_once(name, negatives)
    with torch.autocast(image_embeds.device.type, enabled=False):
        exchanged = exchange_of(negatives, image_embeds)
        counts, ids = exchanged.counts, (image_ids, text_ids)
        batch = captioned(image_embeds, text_embeds, positives, settings, *ids, exchanged.first, same_modality, foils)
        exchanged = type(exchanged)([count * batch.captions for count in counts])  # of the texts
        if same_modality:
            of_images, of_texts = batch.own_ids
            assert of_images is not None and of_texts is not None  # `captioned` makes them for this
            images = Candidates(gather_rows(batch.images, counts), gather_rows(of_images, counts))
            of_each = exchanged.counts
            texts = Candidates(gather_rows(batch.texts, of_each), gather_rows(of_texts, of_each))
            past = with_same_modality(past, images, texts)
        if batch.foils is not None:
            past = with_foils(past, gather_candidates(batch.foils, counts))
        candidates = sum(exchanged.counts) + (0 if past is None else len(past.texts.ids))
        stream = stream_of(chosen, settings, candidates)
        plan = ReductionPlan(stream.reduction, exchanged, tiles or TorchTiles(), chunk_size, image_embeds.dtype)
        of_images, of_texts = numbers_of_negatives(stream, batch, plan, past, settings)
        image_rows = stream.row_loss(of_images, batch.own.flatten(), settings)
        text_rows = stream.row_loss(of_texts, batch.own_of_texts, settings)
        image_rows, text_rows = (mean_of_captions(each, len(batch.images)) for each in (image_rows, text_rows))
    return len(counts) * chosen.reduce(image_rows, text_rows, total_rows=sum(counts), image_weight=image_weight)


def numbers_of_negatives(
    stream: Stream, batch: Captioned, plan: ReductionPlan, past: Past | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """The numbers for every row loss of the images, one after the other, and for every text.

    Negatives of an image are the same for all of its row losses. Where their number depends on the positive's score,
    images are compared with texts once for each.
    """

    def logits(positive: Tensor) -> list[Tensor | None]:
        given = stream.logits(positive, settings)
        return [
            None if each is None else torch.as_tensor(each, dtype=torch.float32, device=positive.device)
            for each in given
        ]

    (scale, offsets), (_, of_texts) = logits(batch.own), logits(batch.own_of_texts)
    by_row = offsets is not None and offsets.ndim > 0
    found = []
    for offset in offsets.unbind(1) if offsets is not None and by_row else [offsets]:
        sides = (offset, of_texts), batch.ids, past
        if isinstance(stream.reduction, LogSumExp) and scale is not None and settings["hardness"] > 0:
            found.append(weighted_logsumexp(batch.images, batch.texts, plan, scale, *sides, settings["hardness"]))
        else:
            found.append(numbers_of(batch.images, batch.texts, plan, scale, *sides))
    if by_row:
        return torch.stack([of_images for of_images, _ in found], dim=1).flatten(0, 1), found[0][1]
    return found[0][0].repeat_interleave(batch.own.shape[1], dim=0), found[0][1]
