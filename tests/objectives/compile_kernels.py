"""Compiles every kernel for two GPUs; prints kernel, reduction, target and how often the tensor cores are called."""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_vse.objectives.kernels import tiles
from hf_vse.objectives.statistics import Block

INDICES, SIZES = ("row_ids", "column_ids"), ("n_rows", "n_columns", "dim", "shift")
MATRICES, WINNERS = ("rows", "columns", "weights"), ("row_second", "column_second")


def type_of(argument: str, options: dict) -> str:
    if argument in options:
        return "constexpr"
    if argument in SIZES:
        return "i32"
    if argument in INDICES:
        return "*i64"
    if argument in WINNERS and options["CODE"] == tiles.CODES["hardest"]:
        return "*i32"
    return "*bf16" if argument in MATRICES else "*fp32"


def compiled(kernel, options: dict, capability: int) -> str:
    """Assembly of a kernel for pairs of bfloat16 embeddings whose number of dimensions is a multiple of 16."""
    launch = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    names = kernel.arg_names
    aligned = {(names.index(each),): [["tt.divisibility", 16]] for each in ("rows", "columns", "dim")}
    constants = {(names.index(name),): value for name, value in options.items()}
    signature = {name: type_of(name, options) for name in names}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch).asm["ptx"]


def main() -> None:
    embeds, ids = torch.zeros(1, 16, dtype=torch.bfloat16), torch.zeros(1, 2, dtype=torch.int64)
    for name in tiles.CODES:
        offsets = torch.zeros(1) if name == "hinge_sum" else None
        block = Block(embeds, embeds, 0, 0, torch.ones(()), offsets, offsets, ids, ids)
        for label, kernel, sizes in (
            ("reduce", tiles.reduce_kernel, tiles.REDUCE_TILES),
            ("weights", tiles.weights_kernel, tiles.WEIGHT_TILES),
        ):
            if name == "hardest" and label == "weights":
                continue
            for capability, instruction in ((80, "mma.sync"), (90, "wgmma.mma_async")):
                assembly = compiled(kernel, tiles.TritonTiles().options(name, block, sizes), capability)
                print(label, name, f"sm_{capability}", assembly.count(instruction))


if __name__ == "__main__":
    main()
