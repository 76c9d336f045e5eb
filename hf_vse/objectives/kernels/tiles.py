"""Two kernels over tiles of the similarity matrix, for the reductions of `statistics`.

`reduce_kernel` computes a tile of products, reduces it along both sides in registers, and writes one partial state for
each of its queries. `weights_kernel` computes the tile again and writes the gradient by each similarity, in the dtype
of the embeddings, for the two matrix products that follow. The hardest negative needs only the first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hf_vse.objectives.reductions import Reduction, State
from hf_vse.objectives.statistics import Block

CODES = {"logsumexp": 0, "hardest": 1, "hinge_sum": 2, "softplus_sum": 3}
LOGSUMEXP, HARDEST, HINGE_SUM = (tl.constexpr(CODES[name]) for name in ("logsumexp", "hardest", "hinge_sum"))
SHARED_OFFSET, OFFSETS_OF_PAIRS, NO_OFFSETS = (tl.constexpr(code) for code in (0, 1, 2))
FLOAT32_TILE, SQUARE_TILE, WIDE_TILE = (128, 128, 32), (128, 128, 64), (128, 256, 64)
REDUCE_TILES = {name: WIDE_TILE if name in ("logsumexp", "hardest") else SQUARE_TILE for name in CODES}
WEIGHT_TILES = dict.fromkeys(CODES, SQUARE_TILE)


@triton.jit
def place_of_program(row_blocks, column_blocks, GROUP: tl.constexpr):
    """Block row and block column, in an order in which neighbours share inputs in the cache."""
    program = tl.program_id(0)
    in_group = GROUP * column_blocks
    first = (program // in_group) * GROUP
    height = min(row_blocks - first, GROUP)
    return first + (program % in_group) % height, (program % in_group) // height


@triton.jit
def tile_of_logits(
    rows, columns, row_ids, column_ids, scale, i, j, n_rows, n_columns, dim, shift,
    KINDS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    """k s_ij of rows i and columns j, minus infinity where there is no negative: (BLOCK_ROWS, BLOCK_COLUMNS)."""
    d = tl.arange(0, BLOCK_DIM)
    row_inside, column_inside = i < n_rows, j < n_columns
    row_pointers = rows + i.to(tl.int64)[:, None] * dim + d[None, :]
    column_pointers = columns + j.to(tl.int64)[None, :] * dim + d[:, None]
    tile = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype=tl.float32)
    for start in range(0, dim, BLOCK_DIM):
        inside = d < dim - start
        a = tl.load(row_pointers, mask=row_inside[:, None] & inside[None, :], other=0.0)
        b = tl.load(column_pointers, mask=inside[:, None] & column_inside[None, :], other=0.0)
        if WIDEN:  # changes no product
            a, b = a.to(tl.float32), b.to(tl.float32)
        tile = tl.dot(a, b, tile, input_precision=PRECISION)
        row_pointers += BLOCK_DIM
        column_pointers += BLOCK_DIM
    negative = row_inside[:, None] & column_inside[None, :]
    if KINDS == 0:
        negative = negative & (i[:, None] + shift != j[None, :])
    for kind in tl.static_range(KINDS):
        of_rows = tl.load(row_ids + i * KINDS + kind, mask=row_inside, other=0)
        of_columns = tl.load(column_ids + j * KINDS + kind, mask=column_inside, other=0)
        negative = negative & (of_rows[:, None] != of_columns[None, :])
    return tl.where(negative, tile * tl.load(scale), float("-inf"))


@triton.jit
def tile_of_program(
    rows, columns, row_ids, column_ids, scale, n_rows, n_columns, dim, shift,
    KINDS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DIM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """What a program works on: its block row and column, their rows and columns, and the tile of logits."""
    row_blocks, column_blocks = tl.cdiv(n_rows, BLOCK_ROWS), tl.cdiv(n_columns, BLOCK_COLUMNS)
    row_block, column_block = place_of_program(row_blocks, column_blocks, GROUP)
    i = row_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    j = column_block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    tile = tile_of_logits(
        rows, columns, row_ids, column_ids, scale, i, j, n_rows, n_columns, dim, shift,
        KINDS, PRECISION, WIDEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DIM,
    )  # fmt: skip
    return row_block, column_block, i, j, tile


@triton.jit
def with_offsets(tile, offsets, places, n, AXIS: tl.constexpr, OFFSETS: tl.constexpr):
    """Logits with the offsets of the queries, which lie along `AXIS`."""
    if OFFSETS == SHARED_OFFSET:
        return tile + tl.load(offsets)
    if OFFSETS == OFFSETS_OF_PAIRS:
        return tile + tl.expand_dims(tl.load(offsets + places, mask=places < n, other=0.0), 1 - AXIS)
    return tile


@triton.jit
def store_state(
    tile, first_out, second_out, block, places, first_candidate, n, AXIS: tl.constexpr, CODE: tl.constexpr
):
    """Reduces the candidates, which lie along `AXIS`, and writes the partial state of every query."""
    out, inside = block.to(tl.int64) * n + places, places < n
    if CODE == LOGSUMEXP:
        highest = tl.max(tile, AXIS)
        finite = tl.where(highest == float("-inf"), 0.0, highest)
        first = finite + tl.log(tl.sum(tl.exp(tile - tl.expand_dims(finite, AXIS)), AXIS))
    elif CODE == HARDEST:
        first, winner = tl.max(tile, AXIS, return_indices=True)
        tl.store(second_out + out, winner + first_candidate, mask=inside)
    elif CODE == HINGE_SUM:
        first = tl.sum(tl.maximum(tile, 0.0), AXIS)
        tl.store(second_out + out, tl.sum(tl.where(tile > 0, 1.0, 0.0), AXIS), mask=inside)
    else:
        first = tl.sum(tl.maximum(tile, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(tile))), AXIS)
        tl.store(second_out + out, tl.sum(tl.sigmoid(tile), AXIS), mask=inside)
    tl.store(first_out + out, first, mask=inside)


@triton.jit
def slopes(tile, state, places, n, AXIS: tl.constexpr, CODE: tl.constexpr):
    """Derivative of the numbers of the queries, which lie along `AXIS`, by every logit."""
    if CODE == LOGSUMEXP:
        return tl.exp(tile - tl.expand_dims(tl.load(state + places, mask=places < n, other=0.0), 1 - AXIS))
    elif CODE == HINGE_SUM:
        return tl.where(tile > 0, 1.0, 0.0)
    else:
        return tl.sigmoid(tile)


@triton.jit
def reduce_kernel(
    rows, columns, row_ids, column_ids, row_offsets, column_offsets, scale,
    row_first, row_second, column_first, column_second, n_rows, n_columns, dim, shift,
    CODE: tl.constexpr, OFFSETS: tl.constexpr, KINDS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DIM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_block, column_block, i, j, tile = tile_of_program(
        rows, columns, row_ids, column_ids, scale, n_rows, n_columns, dim, shift,
        KINDS, PRECISION, WIDEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DIM, GROUP,
    )  # fmt: skip
    of_rows = with_offsets(tile, row_offsets, i, n_rows, 0, OFFSETS)
    store_state(of_rows, row_first, row_second, column_block, i, column_block * BLOCK_COLUMNS, n_rows, 1, CODE)
    of_columns = with_offsets(tile, column_offsets, j, n_columns, 1, OFFSETS)
    store_state(of_columns, column_first, column_second, row_block, j, row_block * BLOCK_ROWS, n_columns, 0, CODE)


@triton.jit
def weights_kernel(
    rows, columns, row_ids, column_ids, row_offsets, column_offsets, scale,
    row_state, column_state, row_gradients, column_gradients, weights, n_rows, n_columns, dim, shift,
    CODE: tl.constexpr, OFFSETS: tl.constexpr, KINDS: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_DIM: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    row_block, column_block, i, j, tile = tile_of_program(
        rows, columns, row_ids, column_ids, scale, n_rows, n_columns, dim, shift,
        KINDS, PRECISION, WIDEN, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_DIM, GROUP,
    )  # fmt: skip
    of_rows = slopes(with_offsets(tile, row_offsets, i, n_rows, 0, OFFSETS), row_state, i, n_rows, 0, CODE)
    of_columns = slopes(
        with_offsets(tile, column_offsets, j, n_columns, 1, OFFSETS), column_state, j, n_columns, 1, CODE
    )
    by_row = tl.load(row_gradients + i, mask=i < n_rows, other=0.0)
    by_column = tl.load(column_gradients + j, mask=j < n_columns, other=0.0)
    weight = (of_rows * by_row[:, None] + of_columns * by_column[None, :]) * tl.load(scale)
    out = weights + i.to(tl.int64)[:, None] * n_columns + j[None, :]
    tl.store(out, weight.to(weights.dtype.element_ty), mask=(i < n_rows)[:, None] & (j < n_columns)[None, :])


class TritonTiles:
    """The kernels as an engine. Float32 embeddings are multiplied as torch has been told to multiply float32 on GPUs.

    Args:
        blocks: rows, columns and dimensions of a tile; powers of two from 16 on. Default: what compiles for Hopper
            without spilling registers.
    """

    def __init__(self, blocks: tuple[int, int, int] | None = None):
        self.blocks = blocks

    def rows_to_reduce(self, block: Block) -> int:
        """So many that columns are seldom read from memory; partial states take a fifth of the embeddings."""
        return 8192

    def rows_to_weigh(self, block: Block) -> int:
        """As many weights as make the products that follow large: some hundredths of the matrix, then linear."""
        return min(4096, max(256, len(block.columns) // 16 // 256 * 256))

    def reduce(self, reduction: Reduction, block: Block) -> tuple[State, State]:
        name = reduction.name
        options = self.options(name, block, REDUCE_TILES)
        row_blocks, column_blocks = count_blocks(block, options)
        of_rows = empty_states(name, column_blocks, block.rows)
        of_columns = empty_states(name, row_blocks, block.columns)
        grid = (row_blocks * column_blocks,)
        reduce_kernel[grid](*inputs(block), *of_rows, *of_columns, *sizes(block), **options)
        return merged(name, of_rows, block.first_column), merged(name, of_columns, block.first_row)

    def weights(
        self, reduction: Reduction, block: Block, states: tuple[State, State], gradients: tuple[Tensor, Tensor]
    ) -> Tensor:
        options = self.options(reduction.name, block, WEIGHT_TILES)
        numbers = (state[0].masked_fill(state[0].isneginf(), 0.0) for state in states)
        of_queries = [each.contiguous() for each in (*numbers, *gradients)]
        weights = block.rows.new_empty(len(block.rows), len(block.columns))
        row_blocks, column_blocks = count_blocks(block, options)
        grid = (row_blocks * column_blocks,)
        weights_kernel[grid](*inputs(block), *of_queries, weights, *sizes(block), **options)
        return weights

    def options(self, name: str, block: Block, tiles: dict[str, tuple[int, int, int]]) -> dict:
        """Everything that a kernel is compiled for."""
        short = block.rows.dtype != torch.float32
        rows, columns, dim = self.blocks or (tiles[name] if short else FLOAT32_TILE)
        return {
            "CODE": CODES[name],
            "OFFSETS": NO_OFFSETS.value if block.row_offsets is None else block.row_offsets.ndim,
            "KINDS": 0 if block.row_ids is None else block.row_ids.shape[1],
            "PRECISION": "tf32" if short or tf32_allowed() else "ieee",
            "WIDEN": triton.knobs.runtime.interpret,  # Triton's interpreter multiplies no bfloat16
            "BLOCK_ROWS": rows,
            "BLOCK_COLUMNS": columns,
            "BLOCK_DIM": dim,
            "GROUP": 8,
            "num_warps": 8,
            "num_stages": 3,
        }


def tf32_allowed() -> bool:
    """Whether float32 matrices may be multiplied as TF32, whichever of torch's two interfaces set it.

    The older one (`get_float32_matmul_precision`) raises once the newer one has been used, as transformers does for
    `tf32` and `torch_compile`; the newer one (torch 2.9) knows what either has set.
    """
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return torch.get_float32_matmul_precision() != "highest"


def count_blocks(block: Block, options: dict) -> tuple[int, int]:
    """Tiles along the rows and along the columns."""
    return (
        triton.cdiv(len(block.rows), options["BLOCK_ROWS"]),
        triton.cdiv(len(block.columns), options["BLOCK_COLUMNS"]),
    )


def inputs(block: Block) -> list[Tensor]:
    """What both kernels read; the scale stands in for what is not given and is not read in its place."""
    given = block.row_ids, block.column_ids, block.row_offsets, block.column_offsets
    optional = [block.scale if each is None else each.contiguous() for each in given]
    return [block.rows.contiguous(), block.columns.contiguous(), *optional, block.scale]


def sizes(block: Block) -> tuple[int, int, int, int]:
    return len(block.rows), len(block.columns), block.rows.shape[1], block.first_row - block.first_column


def empty_states(name: str, blocks: int, queries: Tensor) -> list[Tensor]:
    """Tensors for the partial states of every query and block of candidates: (blocks, queries)."""
    second = torch.int32 if name == "hardest" else torch.float32
    return [torch.empty(blocks, len(queries), dtype=dtype, device=queries.device) for dtype in (torch.float32, second)]


def merged(name: str, partial: list[Tensor], first: int) -> State:
    """The states of the queries from those of all blocks of candidates."""
    values, second = partial
    if name == "logsumexp":
        return [values.logsumexp(dim=0)]
    if name == "hardest":
        values, block = values.max(dim=0)
        winners = second.gather(0, block[None, :])[0].long() + first
        return [values, torch.where(values.isneginf(), -1, winners)]
    return [values.sum(dim=0), second.sum(dim=0)]
