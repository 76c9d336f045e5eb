"""Negatives from all processes for any row loss, with exact gradients.

Every process compares its queries with the candidates of all processes: a matrix of local x global similarities. In
the backward pass, the gradients of a candidate from all processes are added and returned to the process that has it.
Data-parallel training averages gradients over processes; with the scale below, that average is the gradient of one
process on the whole batch.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from hf_vse.model.losses_vse import Scalar, all_settings, objective, pair_ids
from hf_vse.objectives.chunked import chunked_rows
from hf_vse.objectives.exchange import Negatives, gathered_parts, row_counts, shares_negatives, world_size


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
    """The rows of all processes in order of rank, differentiable: (local, ...) -> (total, ...)."""
    if world_size() == 1:
        return local
    return _GatherRows.apply(local, row_counts(local) if counts is None else counts)


def gathered_contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    loss_type: str = "nce",
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    negatives: Negatives = "gather",
    chunk_size: int | None = None,
    image_weight: float = 0.5,
    **settings: Scalar,
) -> Tensor:
    """The local part of `contrastive_loss` over the pairs of all processes.

    Args:
        image_embeds, text_embeds: (local, dim) unit vectors of this process; the number may differ between processes.
        image_ids, text_ids, image_weight, settings: as in `contrastive_loss`.
        negatives: `local` compares with the candidates of this process alone.
        chunk_size: queries compared at once; default all of this process.

    Returns:
        A scalar. Its mean over the processes is the loss of the whole batch, and its gradients, averaged over the
        processes as in data-parallel training, are those of the whole batch.
    """
    counts = row_counts(image_embeds) if shares_negatives(negatives) else [len(image_embeds)]
    image_embeds, text_embeds = image_embeds.float(), text_embeds.float()  # so that gradients add up in float32
    ids = pair_ids(image_ids, text_ids)
    all_images, all_texts, all_ids = image_embeds, text_embeds, ids
    first = 0
    if len(counts) > 1:
        first = sum(counts[: dist.get_rank()])
        all_images, all_texts = gather_rows(image_embeds, counts), gather_rows(text_embeds, counts)
        all_ids = None if ids is None else gather_rows(ids, counts)
    positives = torch.arange(first, first + len(image_embeds), device=image_embeds.device)
    chosen, settings = objective(loss_type), all_settings(settings)
    image_rows, text_rows = (
        chunked_rows(chosen, queries, candidates, positives, ids, all_ids, settings=settings, chunk_size=chunk_size)
        for queries, candidates in ((image_embeds, all_texts), (text_embeds, all_images))
    )
    return len(counts) * chosen.reduce(image_rows, text_rows, total_rows=sum(counts), image_weight=image_weight)
