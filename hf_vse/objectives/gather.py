"""Negatives from all processes, with exact gradients.

Every process holds its own pairs and compares them with the candidates of all: local rows, global columns. Nothing of
size global x global exists, and the gradient of a candidate finds its way home: the backward pass of the gather adds
up what all processes ask of a row and hands it to its owner. With the scale below, the mean that data-parallel
training takes of the gradients is the gradient of one process on the whole batch.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from hf_vse.model.losses_vse import objective, reduce_rows, same_image, similarity


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GatherRows(torch.autograd.Function):
    """Concatenates the rows of all processes; backward, adds up the gradients of all and keeps the own rows."""

    @staticmethod
    def forward(ctx, local: Tensor, counts: list[int]) -> Tensor:
        ctx.first = sum(counts[: dist.get_rank()])
        ctx.count = len(local)
        padded = local.new_zeros(max(counts), *local.shape[1:])
        padded[: len(local)] = local
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[ctx.first : ctx.first + ctx.count], None


def row_counts(local: Tensor) -> list[int]:
    """How many rows each process holds; they may differ in the last batch or where an image could not be read."""
    count = torch.tensor([len(local)], device=local.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    return [int(each) for each in torch.cat(counts)]


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
    **options: float | Tensor,
) -> Tensor:
    """The local part of `contrastive_loss` on the pairs of all processes.

    Args:
        image_embeds, text_embeds: (local, dim) unit vectors of this process; processes may hold different numbers.
        image_ids: (local,) integers, as in `contrastive_loss`.
        options: `temperature`, `margin`, `logit_bias`, as in `contrastive_loss`.

    Returns:
        A scalar whose mean over the processes is the loss of the whole batch, and whose gradients, averaged over the
        processes as data-parallel training does, are those of the whole batch.
    """
    world = world_size()
    counts = row_counts(image_embeds) if world > 1 else [len(image_embeds)]
    all_images, all_texts = gather_rows(image_embeds, counts), gather_rows(text_embeds, counts)
    first = sum(counts[: dist.get_rank()]) if world > 1 else 0
    positives = torch.arange(first, first + len(image_embeds), device=image_embeds.device)
    excluded = None
    if image_ids is not None:
        excluded = same_image(image_ids, gather_rows(image_ids, counts), positives)
    settings = {"temperature": 0.1, "margin": 0.2, "logit_bias": 0.0} | options
    row_loss = objective(loss_type).row_loss
    with torch.autocast(image_embeds.device.type, enabled=False):
        image_rows = row_loss(similarity(image_embeds, all_texts), positives, excluded, **settings)
        text_rows = row_loss(similarity(text_embeds, all_images), positives, excluded, **settings)
    return world * reduce_rows(loss_type, image_rows, text_rows, total_rows=sum(counts))
