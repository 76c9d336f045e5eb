"""Images per second of a whole training step: towers, loss, backward pass, optimizer; without data loading.

    python scripts/benchmarks/train_step.py --output scripts/benchmarks/results/train_step.json
    python scripts/benchmarks/train_step.py --towers resnet50 resnet152 vit_b_16 --batch_size 512 --compile   # GPU

An image tower with random weights, the paper's GRU as text tower, objective `nce`, AdamW; bfloat16 autocast on a GPU,
float32 on a CPU. Each tower is measured plain and with a gradient cache in mini-batches (with `--compile` also
compiled); the steps alternate. The FLOP of a step are counted, so that the cost table can be made from the record.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median

import torch
from measuring import device, matmul_rate, operations_of, peak_bytes_of, record, seconds_of
from torch import Tensor
from tqdm.auto import tqdm

from hf_vse.evaluation.environment import environment
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.objectives.execution import execute_loss
from hf_vse.objectives.grad_cache import cached_loss, mini_batches

TOWERS = {
    "resnet50": {"model_type": "resnet", "depths": [3, 4, 6, 3]},
    "resnet152": {"model_type": "resnet", "depths": [3, 8, 36, 3]},
    "vit_b_16": {"model_type": "vit", "image_size": 224, "patch_size": 16},
}
WORDS, VOCABULARY = 14, 10_000


def build(tower: str) -> VSEModel:
    torch.manual_seed(0)
    text = {"model_type": "vse_gru_text", "vocab_size": VOCABULARY}
    model = VSEModel(VSEConfig(vision_config=TOWERS[tower], text_config=text, projection_dim=1024))
    return model.to(device()).train()


def batch_of(pairs: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "pixel_values": torch.randn(pairs, 3, 224, 224, generator=generator),
        "input_ids": torch.randint(1, VOCABULARY, (pairs, WORDS), generator=generator),
        "attention_mask": torch.ones(pairs, WORDS, dtype=torch.int64),
    }
    return {name: tensor.to(device()) for name, tensor in batch.items()}


def autocast():
    return torch.autocast("cuda", dtype=torch.bfloat16) if device().type == "cuda" else nullcontext()


class Step:
    """One training step: embeddings, loss, backward pass, update.

    Args:
        model: the dual encoder.
        run: the model, or its compiled form.
        mini_batch: pairs per mini-batch of the gradient cache; None for no cache.
    """

    def __init__(self, model: VSEModel, run: Callable, mini_batch: int | None):
        self.model, self.run, self.mini_batch = model, run, mini_batch
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)

    def embed(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with autocast():
            outputs = self.run(**batch, return_logits=False)
        return outputs.image_embeds, outputs.text_embeds

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        contrast = partial(execute_loss, loss_type="nce")
        if self.mini_batch is None:
            return contrast(*self.embed(batch))
        parts = mini_batches(batch, self.mini_batch)
        return cached_loss(self.model, self.embed, parts, contrast, Tensor.backward)

    def __call__(self, batch: dict[str, Tensor]) -> None:
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def ways(model: VSEModel, mini_batch: int, compiled: bool) -> dict[str, Step]:
    found = {"plain": Step(model, model, None), "gradient cache": Step(model, model, mini_batch)}
    if compiled:
        fast = torch.compile(model)
        found |= {"compiled": Step(model, fast, None), "compiled, gradient cache": Step(model, fast, mini_batch)}
    return found


def peak(tower: str, way: str, arguments: argparse.Namespace) -> int:
    """Peak bytes of a step in this process, beyond weights, optimizer state and batch."""
    step = ways(build(tower), arguments.mini_batch, arguments.compile)[way]
    step(batch_of(2))
    batch = batch_of(arguments.batch_size)
    return peak_bytes_of(partial(step, batch))


def peak_in_own_process(tower: str, way: str, arguments: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--peak_of", tower, way, "--batch_size", str(arguments.batch_size)]
    command += ["--mini_batch", str(arguments.mini_batch), *(["--compile"] if arguments.compile else [])]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(tower: str, arguments: argparse.Namespace, rate: float) -> list[dict]:
    model, batch = build(tower), batch_of(arguments.batch_size)
    steps = ways(model, arguments.mini_batch, arguments.compile)
    gflop = operations_of(partial(steps["plain"], batch)) / arguments.batch_size / 1e9
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(arguments.warmup + arguments.rounds), tower):
        for name, step in steps.items():
            seconds[name].append(seconds_of(partial(step, batch)))
    rows = []
    for name, each in seconds.items():
        taken = median(each[arguments.warmup :])
        rows.append(
            {
                "tower": tower,
                "way": name,
                "batch": arguments.batch_size,
                "mini_batch": arguments.mini_batch if "cache" in name else arguments.batch_size,
                "seconds": round(taken, 4),
                "images_per_second": round(arguments.batch_size / taken, 2),
                "of_plain": round(taken / median(seconds["plain"][arguments.warmup :]), 3),
                "peak_mib": round(peak_in_own_process(tower, name, arguments) / 2**20),
                "weights": sum(each.numel() for each in model.parameters() if each.requires_grad),
                "gflop_of_a_pair": round(gflop, 2),
                "of_matmul_rate": round(arguments.batch_size * gflop * 1e9 / taken / rate, 3),
            }
        )
    return rows


def main() -> None:
    gpu = device().type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    towers = list(TOWERS) if gpu else ["resnet50"]
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=towers, help=f"image towers {towers}")
    parser.add_argument("--batch_size", type=int, default=512 if gpu else 32, help="pairs per step [512, CPU: 32]")
    parser.add_argument(
        "--mini_batch", type=int, default=128 if gpu else 8, help="pairs per mini-batch of the gradient cache [128, 8]"
    )
    parser.add_argument("--compile", action="store_true", help="also measure with torch.compile")
    parser.add_argument("--warmup", type=int, default=3 if gpu else 1, help="rounds before the timed ones [3, CPU: 1]")
    parser.add_argument("--rounds", type=int, default=10 if gpu else 3, help="timed rounds; the median is reported")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    parser.add_argument("--peak_of", nargs=2, metavar=("TOWER", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak(*arguments.peak_of, arguments))
        return
    where = environment()
    rate = matmul_rate(torch.bfloat16 if gpu else torch.float32)
    rows = [row for tower in arguments.towers for row in measure(tower, arguments, rate)]
    result = {
        "what": "whole training step: image tower at 224 pixels, GRU of 1,024, nce, AdamW; in turns",
        "autocast": "bfloat16" if gpu else "none",
        "matmul_gflops": round(rate / 1e9),
        "steps": rows,
        "environment": where,
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
