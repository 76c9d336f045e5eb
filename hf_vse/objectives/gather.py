"""Negatives from all processes for any row loss, with exact gradients.

Every process compares its queries with the candidates of all processes: a matrix of local x global similarities. In
the backward pass, the gradients of a candidate from all processes are added and returned to the process that has it.
Data-parallel training averages gradients over processes; with the scale below, that average is the gradient of one
process on the whole batch.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from hf_vse.model.losses_vse import Scalar, all_settings, objective
from hf_vse.objectives.captions import (
    Candidates,
    Positives,
    caption_count,
    captioned,
    check_captioned,
    mean_of_captions,
)
from hf_vse.objectives.chunked import chunked_rows
from hf_vse.objectives.exchange import Negatives, exchange_of, gathered_parts, row_counts, world_size
from hf_vse.objectives.foils import with_foils
from hf_vse.objectives.past import Past
from hf_vse.objectives.same_modality import with_same_modality


class _GatherRows(torch.autograd.Function):
    """Concatenates the rows of all processes; backward, adds the gradients of all and keeps the local rows."""

    @staticmethod
    def forward(ctx, local: Tensor, counts: list[int]) -> Tensor:
        ctx.first = sum(counts[: dist.get_rank()])
        ctx.count = len(local)
        return torch.cat(gathered_parts(local, counts))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.first : ctx.first + ctx.count], None


def gather_rows(local: Tensor, counts: list[int] | None = None) -> Tensor:
    """The rows of all processes in order of rank, differentiable: (local, ...) -> (total, ...).

    Args:
        counts: rows of each process; with those of a single one, of this process alone.
    """
    if world_size() == 1 or (counts is not None and len(counts) == 1):
        return local
    return _GatherRows.apply(local, row_counts(local) if counts is None else counts)


def gather_candidates(local: Candidates, counts: list[int]) -> Candidates:
    """Those of all processes, of which each may have any number, differentiable.

    Args:
        counts: images of each process; with those of a single one, of this process alone.
    """
    if len(counts) == 1:
        return local
    of_each = row_counts(local.ids)
    return Candidates(*(gather_rows(rows, of_each) for rows in local)) if any(of_each) else local


def gathered_contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    loss_type: str = "nce",
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    positives: Positives = "one",
    negatives: Negatives = "gather",
    chunk_size: int | None = None,
    image_weight: float = 0.5,
    past: Past | None = None,
    same_modality: bool = False,
    foils: Candidates | None = None,
    **settings: Scalar,
) -> Tensor:
    """The local part of `contrastive_loss` over the pairs of all processes.

    Args:
        image_embeds, text_embeds: (local, dim) unit vectors of this process; the number may differ between processes.
            Texts are (local, K, dim) where images have K captions.
        image_ids, text_ids, image_weight, settings: as in `contrastive_loss`; `text_ids` with K captions (local, K) or
            (local, K, kinds).
        positives: which of K captions are positives, see `captions`.
        negatives: `local` compares with the candidates of this process alone.
        chunk_size: queries compared at once; default all of this process.
        past: further candidates; then pairs need ids.
        same_modality: images are negatives of images too, and texts of texts, see `same_modality.py`.
        foils: of this process, with text ids, (n, kinds): further negatives of images, see `foils.py`.

    Returns:
        A scalar. Its mean over the processes is the loss of the whole batch, and its gradients, averaged over the
        processes as in data-parallel training, are those of the whole batch.
    """
    chosen, settings = objective(loss_type), all_settings(settings)
    check_captioned(positives, caption_count(text_embeds), loss_type)
    exchange = exchange_of(negatives, image_embeds)
    counts, first = exchange.counts, exchange.first
    ids = image_ids, text_ids
    batch = captioned(image_embeds, text_embeds, positives, settings, *ids, first, same_modality, foils)
    images, texts, captions = batch.images, batch.texts, batch.captions
    ids_of_images, ids_of_texts = batch.ids
    places = first + torch.arange(len(images), device=images.device)  # of the images, among those of all processes
    own_places = captions * places[:, None] + torch.arange(captions, device=images.device)  # of their texts

    def everywhere(local: Tensor, of_each: int) -> Tensor:
        """The rows of all processes, `of_each` image so many."""
        return gather_rows(local, [of_each * count for count in counts])

    rows = partial(chunked_rows, chosen, settings=settings, chunk_size=chunk_size)
    all_images, all_texts = everywhere(images, 1), everywhere(texts, captions)
    all_image_ids = None if ids_of_images is None else everywhere(ids_of_images, 1)
    all_text_ids = None if ids_of_texts is None else everywhere(ids_of_texts, captions)
    own = batch.own if positives == "any" else None
    if same_modality:
        own_image_ids, own_text_ids = batch.own_ids
        assert own_image_ids is not None and own_text_ids is not None  # `captioned` makes them for this
        images_again = Candidates(all_images, everywhere(own_image_ids, 1))
        past = with_same_modality(past, images_again, Candidates(all_texts, everywhere(own_text_ids, captions)))
    if batch.foils is not None:
        past = with_foils(past, gather_candidates(batch.foils, counts))
    past_images, past_texts = (None, None) if past is None else past
    of_images = own_places[:, : batch.own.shape[1]], ids_of_images, all_text_ids, own
    of_texts = places.repeat_interleave(captions)[:, None], ids_of_texts, all_image_ids
    image_rows = rows(images, all_texts, *of_images, past=past_texts)
    text_rows = rows(texts, all_images, *of_texts, past=past_images)
    image_rows, text_rows = (mean_of_captions(each, len(images)) for each in (image_rows, text_rows))
    return len(counts) * chosen.reduce(image_rows, text_rows, total_rows=sum(counts), image_weight=image_weight)
