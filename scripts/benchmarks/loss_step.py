"""Time and memory of a loss, forward and backward, compared with a plain dense loss in the same run.

    python scripts/benchmarks/loss_step.py --output scripts/benchmarks/results/loss_step.json
    python scripts/benchmarks/loss_step.py --batch_sizes 16384 65536 262144 --dims 512 1024   # on a GPU

Contenders: plain torch in two lines; open_clip's `ClipLoss` if open_clip_torch is installed (`pip install --no-deps
open_clip_torch` is enough); our objectives in every execution mode that runs here. They alternate, so that load on the
machine affects all. Contenders that do not fit into memory are left out. On a CPU the peak is the resident memory of a
separate process. Embeddings are bfloat16 on a GPU and float32 on a CPU.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from measuring import device, free_bytes, matmul_rate, peak_bytes_of, record, seconds_of
from torch import Tensor
from tqdm.auto import tqdm

from hf_vse.evaluation.environment import environment
from hf_vse.objectives.execution import Execution, execute_loss
from hf_vse.objectives.kernels import why_not_fused

TEMPERATURE = 0.07
PLAIN, OPEN_CLIP = "plain torch nce", "open_clip ClipLoss"
LOSSES = ("nce", "hardnce", "siglip", "hinge_sum")
DENSE_MATRICES = 6  # float32 matrices to reserve for a dense loss; four were measured
USEFUL_PRODUCTS = {"hardnce": 1}  # of 2 n^2 dim operations each; every other loss needs three
MEMORY_SIZES = (8192, 16384, 32768)

Loss = Callable[[Tensor, Tensor], Tensor]


def plain_nce(images: Tensor, texts: Tensor) -> Tensor:
    logits = images @ texts.T / TEMPERATURE
    labels = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)


def open_clip_loss() -> Loss | None:
    """open_clip's loss, loaded from its single file, because the package imports torchvision."""
    found = find_spec("open_clip")
    if found is None:
        return None
    spec = spec_from_file_location("open_clip_loss", Path(found.submodule_search_locations[0]) / "loss.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.ClipLoss()
    return lambda images, texts: loss(images, texts, logit_scale=torch.tensor(1 / TEMPERATURE, device=images.device))


def contenders() -> dict[str, Loss]:
    found: dict[str, Loss] = {PLAIN: plain_nce}
    clip = open_clip_loss()
    if clip is not None:
        found[OPEN_CLIP] = clip
    ways = ["chunked", "streamed"] + ([] if why_not_fused(device()) else ["fused"])
    for loss in LOSSES:
        for way in ways if loss == "nce" else ways[1:]:
            found[f"{loss} {way}"] = partial(
                execute_loss, execution=Execution(way), loss_type=loss, temperature=TEMPERATURE
            )
    return found


def step(loss: Loss, images: Tensor, texts: Tensor) -> None:
    images.grad = texts.grad = None
    loss(images, texts).backward()


def embeddings(batch: int, dim: int) -> tuple[Tensor, Tensor]:
    dtype = torch.bfloat16 if device().type == "cuda" else torch.float32
    generator = torch.Generator(device()).manual_seed(0)
    images, texts = (
        F.normalize(torch.randn(batch, dim, device=device(), generator=generator), dim=1).to(dtype).requires_grad_()
        for _ in ("images", "texts")
    )
    return images, texts


def fits(name: str, batch: int) -> bool:
    return name not in (PLAIN, OPEN_CLIP) or DENSE_MATRICES * 4 * batch**2 < 0.9 * free_bytes()


def times(names: list[str], batch: int, dim: int, rounds: int, rate: float) -> list[dict]:
    """Median seconds of each contender; the first round is a warm-up."""
    images, texts = embeddings(batch, dim)
    losses = {name: loss for name, loss in contenders().items() if name in names and fits(name, batch)}
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for _ in tqdm(range(1 + rounds), f"batch {batch:,} x {dim}"):
        for name, loss in losses.items():
            seconds[name].append(seconds_of(partial(step, loss, images, texts)))
    rows = []
    for name, each in seconds.items():
        products = USEFUL_PRODUCTS.get(name.split()[0], 3)
        taken = median(each[1:])
        row = {"batch": batch, "dim": dim, "contender": name, "seconds": round(taken, 5)}
        row["of_rounds"] = [round(seconds, 5) for seconds in each[1:]]
        if PLAIN in seconds:
            row["of_plain"] = round(taken / median(seconds[PLAIN][1:]), 4)
        row["of_matmul_rate"] = round(products * 2 * batch**2 * dim / taken / rate, 4)
        rows.append(row)
    return rows


def peak(name: str, batch: int, dim: int) -> int:
    """Peak bytes of one step, in this process."""
    loss = contenders()[name]
    step(loss, *embeddings(256, dim))
    images, texts = embeddings(batch, dim)
    return peak_bytes_of(lambda: step(loss, images, texts))


def peaks(names: list[str], sizes: list[int], dim: int) -> list[dict]:
    """Peak memory of each contender at each size, in separate processes; dense losses beyond memory are scaled up."""
    rows = []
    for name in tqdm(names, "memory"):
        for batch in sizes:
            row = {"batch": batch, "dim": dim, "contender": name}
            if fits(name, batch):
                command = [sys.executable, __file__, "--peak_of", name, str(batch), str(dim)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                row["peak_mib"] = round(json.loads(done.stdout) / 2**20, 1)
            else:
                last = next(each for each in reversed(rows) if each["contender"] == name)
                row |= {"peak_mib": round(last["peak_mib"] * (batch / last["batch"]) ** 2, 1), "scaled": True}
            rows.append(row)
    dense = {row["batch"]: row["peak_mib"] for row in rows if row["contender"] == PLAIN}
    return [row | {"of_plain": round(row["peak_mib"] / dense[row["batch"]], 4)} for row in rows if dense]


def main() -> None:
    gpu = device().type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [2**power for power in range(10, 19)] if gpu else [1024, 4096, 8192]
    parser.add_argument("--contenders", nargs="+", default=list(contenders()), help="contenders to run [all]")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=sizes, help=f"batch sizes to time {sizes}")
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 1024] if gpu else [1024], help="dimensions")
    parser.add_argument(
        "--memory_sizes", type=int, nargs="*", default=list(MEMORY_SIZES), help="batch sizes for memory"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; the median is reported [5]")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    parser.add_argument("--peak_of", nargs=3, metavar=("NAME", "BATCH", "DIM"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak(arguments.peak_of[0], *map(int, arguments.peak_of[1:])))
        return
    where = environment()
    rate = matmul_rate(torch.bfloat16 if gpu else torch.float32)
    rows = [
        row
        for dim in arguments.dims
        for batch in arguments.batch_sizes
        for row in times(arguments.contenders, batch, dim, arguments.rounds, rate)
    ]
    result = {
        "what": "seconds and peak memory of one loss, forward and backward, beyond the embeddings; in turns",
        "dtype": "bfloat16" if gpu else "float32",
        "matmul_gflops": round(rate / 1e9),
        "times": rows,
        "memory": peaks(arguments.contenders, arguments.memory_sizes, 1024) if arguments.memory_sizes else [],
        "not_fused": why_not_fused(device()),
        "environment": where,
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
