"""The negatives of every query in both directions, reduced in one pass over tiles of the similarity matrix.

No matrix of all images x all texts is ever stored: rows of it are computed, reduced along both dimensions (for image
queries and for text queries) and dropped. The backward pass computes them again; that of `hardest` needs no matrix,
because one negative of each query has a gradient.

With s the similarities, k the scale, o the offset of a query: logits of image i are k s_ij + o_i, those of text j are
k s_ij + o_j. Images and texts have offsets and ids of their own, and there may be more of one than of the other.
Memory: inputs, their gradients, and a few tiles of `chunk_size` x candidates. Arithmetic, for n images and m texts of
d dimensions: 2 n m d forward; backward 6 n m d, or O((n + m) d) for `hardest`.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_vse.model.losses_vse import share_an_id
from hf_vse.objectives.exchange import Alone
from hf_vse.objectives.reductions import Hardest, Reduction, State, Sum, total

# Elements of a tile. 32 MiB fit near the cache of a CPU, and the C allocator returns blocks of that size to the system
# while smaller ones fragment its heap. 256 MiB keep a GPU busy.
CPU_TILE, GPU_TILE = 2**23, 2**26


class Block(NamedTuple):
    """Images (rows) and texts (columns) that are compared; `first_*` are the places of the first of them."""

    rows: Tensor  # (a, dim)
    columns: Tensor  # (b, dim)
    first_row: int
    first_column: int
    scale: Tensor  # ()
    row_offsets: Tensor | None  # (a,), or () for one that all pairs share
    column_offsets: Tensor | None  # (b,) or ()
    row_ids: Tensor | None  # (a, kinds)
    column_ids: Tensor | None  # (b, kinds)

    def parts(self, size: int) -> Iterator[tuple[slice, "Block"]]:
        """`size` rows at a time, against all columns."""
        for start in range(0, len(self.rows), size):
            rows = slice(start, start + size)
            yield (
                rows,
                self._replace(
                    rows=self.rows[rows],
                    first_row=self.first_row + start,
                    row_offsets=part_of(self.row_offsets, rows),
                    row_ids=part_of(self.row_ids, rows),
                ),
            )


def part_of(values: Tensor | None, rows: slice) -> Tensor | None:
    return values if values is None or values.ndim == 0 else values[rows]


class Tiles(Protocol):
    """How the tiles of some rows are computed; `TorchTiles` is the reference."""

    def rows_to_reduce(self, block: Block) -> int:
        """Rows compared at once in the forward pass, where no chunk size is given."""

    def rows_to_weigh(self, block: Block) -> int:
        """The same in the backward pass."""

    def reduce(self, reduction: Reduction, block: Block) -> tuple[State, State]:
        """States of the queries of a block: those of its rows and those of its columns."""

    def weights(
        self, reduction: Sum, block: Block, states: tuple[State, State], gradients: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Gradient by every similarity of a block, (a, b), from the gradients by the numbers of rows and columns."""


class TorchTiles:
    """Plain torch, in float32."""

    def rows_to_reduce(self, block: Block) -> int:
        """A tile of constant memory."""
        return max(64, (CPU_TILE if block.rows.device.type == "cpu" else GPU_TILE) // max(1, len(block.columns)))

    rows_to_weigh = rows_to_reduce

    def reduce(self, reduction: Reduction, block: Block) -> tuple[State, State]:
        logits = masked_logits(block)
        of_rows = reduction.reduce(shifted(logits, block.row_offsets, 1), 1, block.first_column)
        of_columns = reduction.reduce(shifted(logits, block.column_offsets, 0), 0, block.first_row)
        return of_rows, of_columns

    def weights(
        self, reduction: Sum, block: Block, states: tuple[State, State], gradients: tuple[Tensor, Tensor]
    ) -> Tensor:
        logits = masked_logits(block)
        weights = reduction.slopes(shifted(logits, block.row_offsets, 1), states[0], 1).mul_(gradients[0][:, None])
        of_columns = reduction.slopes(shifted(logits, block.column_offsets, 0), states[1], 0)
        weights = weights.addcmul_(of_columns, gradients[1][None, :]).mul_(block.scale)
        return weights.to(block.rows.dtype) if by_tensor_cores(block.rows) else weights


def masked_logits(block: Block) -> Tensor:
    """k s_ij, and minus infinity where text j is not a negative of image i: (a, b) float32."""
    if by_tensor_cores(block.rows):
        logits = product(block.rows, block.columns.T).mul_(block.scale)
    else:
        logits = (block.rows.float() * block.scale) @ block.columns.float().T
    if block.row_ids is None or block.column_ids is None:
        logits.diagonal(block.first_row - block.first_column).fill_(float("-inf"))
    else:
        logits.masked_fill_(share_an_id(block.row_ids, block.column_ids), float("-inf"))
    return logits


def shifted(logits: Tensor, offsets: Tensor | None, dim: int) -> Tensor:
    """The logits of the queries whose candidates lie along `dim`, with the offsets of these queries."""
    if offsets is None:
        return logits
    return logits + (offsets if offsets.ndim == 0 else offsets.unsqueeze(dim))


def reduce_block(tiles: Tiles, reduction: Reduction, block: Block, chunk_size: int | None) -> tuple[State, State]:
    """States of all queries of a block, chunk by chunk."""
    row_state: State = []
    column_state: State = []
    for rows, part in block.parts(chunk_size or tiles.rows_to_reduce(block)):
        of_rows, of_columns = tiles.reduce(reduction, part)
        if not column_state:
            row_state = [each.new_empty(len(block.rows), *each.shape[1:]) for each in of_rows]
            column_state = of_columns
        else:
            column_state = reduction.merge(column_state, of_columns)
        for whole, each in zip(row_state, of_rows, strict=True):
            whole[rows] = each
    if isinstance(reduction, Hardest):
        row_state[0] = hardest_scores(block.rows, block.columns, row_state[1] - block.first_column)
        column_state[0] = hardest_scores(block.columns, block.rows, column_state[1] - block.first_row)
    return row_state, column_state


def hardest_scores(queries: Tensor, candidates: Tensor, winners: Tensor, chunk_size: int = 4096) -> Tensor:
    """Similarity of each query to its hardest negatives, added in float32; minus infinity where there is none.

    `winners` and the result are (queries,), or (queries, k) for the k hardest.
    """
    scores = torch.full(winners.shape, float("-inf"), device=winners.device)
    for places in (winners >= 0).nonzero().split(chunk_size):
        query, place = places[:, 0], places.unbind(1)
        scores[place] = torch.linalg.vecdot(queries[query].float(), candidates[winners[place]].float())
    return scores


def gradient_of_block(
    tiles: Tiles,
    reduction: Sum,
    block: Block,
    states: tuple[State, State],
    gradients: tuple[Tensor, Tensor],
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Gradients by the rows and the columns of a block, float32, chunk by chunk."""
    of_columns = torch.zeros_like(block.columns, dtype=torch.float32)
    of_rows = torch.zeros_like(block.rows, dtype=torch.float32)
    for rows, part in block.parts(chunk_size or tiles.rows_to_weigh(block)):
        part_states = [each[rows] for each in states[0]], states[1]
        weights = tiles.weights(reduction, part, part_states, (gradients[0][rows], gradients[1]))
        of_rows[rows] = product(weights, block.columns)
        if weights.dtype == torch.float32:
            of_columns.addmm_(weights.T, part.rows.float())
        else:  # a few columns at a time, because the products are not added in place
            for some, total_of_some in zip(weights.split(8192, dim=1), of_columns.split(8192), strict=True):
                total_of_some += product(some.T, part.rows)
    return of_rows, of_columns


def by_tensor_cores(factor: Tensor) -> bool:
    return factor.is_cuda and factor.dtype != torch.float32


def product(one: Tensor, other: Tensor) -> Tensor:
    """A matrix product added in float32."""
    if by_tensor_cores(one):
        return torch.mm(one, other, out_dtype=torch.float32)
    return one.float() @ other.float()


def gradient_of_winners(
    block: Block, states: tuple[State, State], gradients: tuple[Tensor, Tensor], chunk_size: int = 4096
) -> tuple[Tensor, Tensor]:
    """The same for `hardest`: only pairs of a query and its hardest negatives have a gradient."""
    of_rows = torch.zeros_like(block.rows, dtype=torch.float32)
    of_columns = torch.zeros_like(block.columns, dtype=torch.float32)
    pairs = (
        (block.rows, of_rows, states[0][1] - block.first_column, block.columns, of_columns, gradients[0]),
        (block.columns, of_columns, states[1][1] - block.first_row, block.rows, of_rows, gradients[1]),
    )
    for queries, of_queries, winners, candidates, of_candidates, weights in pairs:
        here = ((winners >= 0) & (winners < len(candidates))).nonzero()
        for places in here.split(chunk_size):
            query, place = places[:, 0], places.unbind(1)
            chosen, weight = winners[place], weights[place][:, None]
            of_queries.index_add_(0, query, weight * candidates[chosen].float())
            of_candidates.index_add_(0, chosen, weight * queries[query].float())
    return of_rows, of_columns


class ReductionPlan(NamedTuple):
    """How a reduction is executed."""

    reduction: Reduction
    exchange: Alone
    tiles: Tiles
    chunk_size: int | None
    dtype: torch.dtype  # of the factors of the matrix products, which add up in float32

    def visit(self, meet, given, merge, *more: Tensor):
        """Calls `meet` with the images of this process and blocks of texts; `more` has a row for each text."""
        images, texts, scale, row_offsets, column_offsets, row_ids, column_ids = given
        per_text = column_offsets is not None and column_offsets.ndim == 1
        first_image = self.exchange.first * len(images) // len(texts)  # all images have equally many texts

        def step(rows, first: int):
            columns, ids, offsets, *travelled = rows
            offsets = offsets if per_text else column_offsets
            block = Block(images, columns, first_image, first, scale, row_offsets, offsets, row_ids, ids)
            return meet(block, *travelled)

        with torch.autocast(images.device.type, enabled=False):
            return self.exchange.visit(step, [texts, column_ids, column_offsets if per_text else None, *more], merge)


class _NegativeStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, texts, scale, row_offsets, column_offsets, row_ids, column_ids, plan: ReductionPlan):
        sides = images.to(plan.dtype), texts.to(plan.dtype)
        given = (*sides, scale, row_offsets, column_offsets, row_ids, column_ids)
        merge = plan.reduction.merge
        row_state: State = []

        def meet(block: Block) -> State:
            nonlocal row_state
            seen, column_state = reduce_block(plan.tiles, plan.reduction, block, plan.chunk_size)
            row_state = merge(row_state, seen) if row_state else seen
            return column_state

        column_state = plan.visit(meet, given, merge)
        ctx.plan, ctx.width = plan, len(row_state)
        ctx.save_for_backward(*given, *row_state, *column_state)
        return row_state[0].clone(), column_state[0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, of_image_numbers, of_text_numbers):
        plan, given, saved = ctx.plan, ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        images, _, scale, row_offsets, column_offsets, *_ = given
        row_state, column_state = saved[: ctx.width], saved[ctx.width :]
        of_images = torch.zeros_like(images, dtype=torch.float32)

        def meet(block: Block, of_columns: Tensor, *state: Tensor) -> list[Tensor]:
            states, gradients = (row_state, list(state)), (of_image_numbers, of_columns)
            if isinstance(plan.reduction, Hardest):
                of_block = gradient_of_winners(block, states, gradients)
            else:
                of_block = gradient_of_block(plan.tiles, plan.reduction, block, states, gradients, plan.chunk_size)
            of_images.add_(of_block[0])
            return [of_block[1]]

        (of_texts,) = plan.visit(meet, given, total, of_text_numbers, *column_state)
        of_scale = (of_images * images).sum() / scale if ctx.needs_input_grad[2] else None
        of_offsets = []
        sides = (row_offsets, of_image_numbers, row_state), (column_offsets, of_text_numbers, column_state)
        for needed, (offsets, of_numbers, state) in zip(ctx.needs_input_grad[3:5], sides, strict=True):
            of_each = of_numbers * state[1] if needed else None
            of_offsets.append(of_each if of_each is None or offsets.ndim else of_each.sum())
        return of_images, of_texts, of_scale, *of_offsets, None, None, None


Sides = tuple[Tensor | None, Tensor | None]  # of images, of texts


def negative_statistics(
    images: Tensor,
    texts: Tensor,
    plan: ReductionPlan,
    scale: Tensor | None = None,
    offsets: Sides = (None, None),
    ids: Sides = (None, None),
) -> tuple[Tensor, Tensor]:
    """The number of `plan.reduction` for every image about its negative texts, and for every text about its images.

    Args:
        images, texts: (images, dim), (texts, dim) of this process; without ids, pair i is row i of both. Where
            processes exchange them, all have equally many texts for each of their images.
        scale: () k, default 1; differentiable, except for `hardest`.
        offsets: o of the images, (images,), and of the texts, (texts,); or () for all, only for the sums.
            Differentiable.
        ids: (images, kinds) and (texts, kinds) integers; an image and a text with an equal id of one kind are no
            negatives of each other. Where there are ids, own texts must have one of their image.

    Returns:
        (images,) and (texts,) float32, over the negatives of all processes that the exchange brings.
    """
    scale = torch.ones((), device=images.device) if scale is None else scale
    return _NegativeStatistics.apply(images, texts, scale, *offsets, *ids, plan)
