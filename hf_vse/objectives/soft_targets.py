"""Soft targets: of what a teacher finds alike, a part is not driven apart (distillation, arXiv 1503.02531).

With x the logits s/t of a query's candidates, y what a teacher scores them, T a temperature and w a weight:

    row = (1 - w) * row of the objective - w * sum_j softmax(y / T)_j log softmax(x)_j

in both directions. A feature distance d adds d times the mean of |image - its image|^2 + |text - its text|^2, of unit
vectors of the student and of the teacher. The score of a teacher is the product of its vectors of the two. Every
candidate of the batch gets its share, also one that is no negative of the query: soft targets say how alike the two
are, a mask only that they are not to be told apart. Further candidates, see `past.py`, count in the objective alone.
Scores may also be given, as a matrix of all images and captions that a step reads a part of; then the score of a
`centre` is the mean of those of its captions.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_vse.model.losses_vse import Scalar, all_settings, objective, similarity
from hf_vse.objectives.captions import Positives, captioned, mean_of_captions
from hf_vse.objectives.exchange import Negatives, exchange_of
from hf_vse.objectives.gather import gather_rows


class SoftTargets(NamedTuple):
    """What a teacher thinks of a batch.

    images: (local, dim) its unit vectors of the images.
    texts: (local, dim), or (local, K, dim) where images have K captions.
    weight: w, from 0 to 1.
    temperature: T.
    distance: d; then both have vectors of one length.
    scores: (all images, all captions) on the CPU, which may be memory-mapped; then a vector has one number, int64: the
        row or column of the image or caption.
    """

    images: Tensor
    texts: Tensor
    weight: float
    temperature: float
    distance: float = 0.0
    scores: Tensor | None = None


def distance_loss(
    image_embeds: Tensor, text_embeds: Tensor, soft: SoftTargets, negatives: Negatives | None = "gather"
) -> Tensor:
    """The local part of the mean squared distance to the teacher's vectors, the sum of both sides."""
    if image_embeds.shape[-1] != soft.images.shape[-1]:
        raise ValueError(
            f"feature_distance needs vectors of one length: the model's have {image_embeds.shape[-1]} dimensions, the "
            f"teacher's {soft.images.shape[-1]} (of several the sum): give that projection_dim, or no feature_distance"
        )
    counts = exchange_of(negatives, image_embeds).counts
    images, texts = (
        (ours.float() - theirs.float()).square().sum(dim=-1)
        for ours, theirs in ((image_embeds, soft.images), (text_embeds, soft.texts))
    )
    return len(counts) * (images + texts.view(len(images), -1).mean(dim=1)).sum() / sum(counts)


def soft_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    soft: SoftTargets,
    *,
    loss_type: str = "nce",
    positives: Positives = "one",
    negatives: Negatives = "gather",
    chunk_size: int | None = None,
    image_weight: float = 0.5,
    **settings: Scalar,
) -> Tensor:
    """The local part of the cross entropy over the pairs of all processes.

    Args:
        image_embeds, text_embeds, chunk_size, settings: as in `gathered_contrastive_loss`.
        loss_type: its temperature, reduction and directions are those of the cross entropy too.
        positives: `centre` compares the centres of captions, for teacher and student.

    Raises:
        ValueError: the objective has no temperature, or candidates come one process at a time.
    """
    chosen, settings = objective(loss_type), all_settings(settings)
    check_soft(loss_type, negatives)
    counts = exchange_of(negatives, image_embeds).counts
    ours = captioned(image_embeds, text_embeds, positives, settings, None, None, 0)
    their_images, their_texts = of_teacher(soft, positives, settings)

    def everywhere(local: Tensor) -> Tensor:
        each = len(local) // len(ours.images)
        return gather_rows(local, [each * count for count in counts])

    images, texts = (ours.images, their_images), (ours.texts, their_texts)
    of_images, of_texts = similarity, similarity
    if soft.scores is not None:
        of_images, of_texts = partial(looked_up, soft.scores), partial(looked_up, soft.scores.T)
    temperatures = settings["temperature"], soft.temperature
    all_images = everywhere(ours.images), everywhere(their_images)
    all_texts = everywhere(ours.texts), everywhere(their_texts)
    image_rows = cross_entropy_rows(*images, *all_texts, of_images, *temperatures, chunk_size)
    text_rows = cross_entropy_rows(*texts, *all_images, of_texts, *temperatures, chunk_size)
    image_rows, text_rows = (mean_of_captions(each, len(ours.images)) for each in (image_rows, text_rows))
    return len(counts) * chosen.reduce(image_rows, text_rows, total_rows=sum(counts), image_weight=image_weight)


def of_teacher(soft: SoftTargets, positives: Positives, settings: Mapping[str, Scalar]) -> tuple[Tensor, Tensor]:
    """What a teacher has of each image and of each text that is compared: its vector, or its place in the scores, of a
    centre the places of all captions."""
    if soft.scores is None:
        theirs = captioned(soft.images, soft.texts, positives, settings, None, None, 0)
        return theirs.images, theirs.texts
    texts = soft.texts.view(len(soft.images), -1)
    return soft.images, texts if positives == "centre" else texts.reshape(-1, 1)


def looked_up(scores: Tensor, queries: Tensor, candidates: Tensor) -> Tensor:
    """The mean scores of what has several places, (Q, m) and (C, n) of rows and columns -> (Q, C) float32.

    Raises:
        ValueError: a score is not a number, or plus infinity.
    """
    found = scores[queries.cpu()[:, None, :, None], candidates.cpu()[:, None, :]].float().mean(dim=(2, 3))
    if not (found < torch.inf).all():
        raise ValueError("the scores of a teacher are numbers, or minus infinity where none is known; got nan or inf")
    return found.to(queries.device)


def cross_entropy_rows(
    queries: Tensor,
    their_queries: Tensor,
    candidates: Tensor,
    their_candidates: Tensor,
    score: Callable[[Tensor, Tensor], Tensor],
    temperature: Scalar,
    their_temperature: float,
    chunk_size: int | None = None,
) -> Tensor:
    """The cross entropy of every query, a few at a time, computed again in the backward pass: (Q,) float32.

    `score` gives the teacher's scores of queries and candidates.
    """

    def rows(queries: Tensor, their_queries: Tensor) -> Tensor:
        shares = (score(their_queries, their_candidates) / their_temperature).softmax(dim=1)
        return F.cross_entropy(similarity(queries, candidates) / temperature, shares, reduction="none")

    if chunk_size is None or chunk_size >= len(queries):
        return rows(queries, their_queries)
    parts = zip(queries.split(chunk_size), their_queries.split(chunk_size), strict=True)
    return torch.cat([checkpoint(rows, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def check_soft(loss_type: str, negatives: Negatives | None) -> None:
    """Raises ValueError where there can be no soft targets."""
    if negatives == "ring":
        raise ValueError(
            "soft_targets are shares of all candidates at once: give negatives: gather, or no soft_targets"
        )
    if "temperature" not in objective(loss_type).settings:
        raise ValueError(
            f"soft_targets need an objective with a temperature, loss_type {loss_type!r} has none: choose nce or clip"
        )
