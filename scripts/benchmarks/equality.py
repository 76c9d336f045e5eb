"""How far every execution of a loss is from the dense one, for every field of the objectives.

    python scripts/benchmarks/equality.py [--output FILE]

For each field one random batch with repeated images and captions: the loss and its gradients by the weights that made
the embeddings, and by the temperature. Recorded is the largest relative difference from the dense loss of one process,
|found - dense| / |dense| over these, in float32. Ways: in chunks, streamed, in Triton kernels (without a GPU in
Triton's interpreter), in mini-batches with a cached gradient, and on two processes with unequal shares, which gather
all candidates or pass them round a ring. A way that a field does not have is recorded by the line that refuses it.
"""

import argparse
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is defined

import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState
from measuring import device, record
from torch import Tensor

from hf_vse.evaluation.environment import environment
from hf_vse.files import read_json, write_json
from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.objectives.captions import Candidates
from hf_vse.objectives.execution import Execution, execute_loss
from hf_vse.objectives.grad_cache import cached_loss, mini_batches
from hf_vse.objectives.past import Past
from hf_vse.objectives.soft_targets import SoftTargets

IMAGES, CAPTIONS, DIM, INPUTS, TEMPERATURE = 90, 5, 32, 48, 0.1
SHARES = slice(0, 47), slice(47, IMAGES)  # of two processes
CHUNK, MINI_BATCH = 32, 13
FIELDS: dict[str, dict[str, Any]] = {
    **{f"loss_type: {name}": {"loss_type": name} for name in OBJECTIVES},
    "image_weight: 0.75": {"image_weight": 0.75},
    "positive_margin: 0.1": {"positive_margin": 0.1},
    "hardness: 0.5": {"hardness": 0.5},
    "negatives_kept: 8": {"negatives_kept": 8},
    "false_negative_gap: 0.1": {"false_negative_gap": 0.1},
    **{f"positives: {name}": {"positives": name} for name in ("each", "any", "centre", "entity")},
    **{f"extra_negatives: {name}": {"extra_negatives": name} for name in ("queue", "same_modality", "foils")},
    "soft_targets": {"soft": True},
}
ALONE = {
    "chunked": Execution("chunked", chunk_size=CHUNK),
    "streamed": Execution("streamed", chunk_size=CHUNK),
    "fused": Execution("fused", chunk_size=CHUNK),
}
TOGETHER = {
    "2 processes, gathered": Execution("chunked", chunk_size=CHUNK),
    "2 processes, ring": Execution("streamed", "ring", CHUNK),
}


class Batch:
    """Inputs, ids and further candidates of one field, the same in all processes."""

    def __init__(self, field: dict[str, Any], place: torch.device):
        chance = torch.Generator().manual_seed(0)
        captions = () if field.get("positives", "one") == "one" else (CAPTIONS,)
        self.field, self.place = field, place
        self.inputs = {
            "image": torch.randn(IMAGES, INPUTS, generator=chance).to(place),
            "text": torch.randn(IMAGES, *captions, INPUTS, generator=chance).to(place),
            "image_ids": torch.randint(0, IMAGES // 3, (IMAGES,), generator=chance).to(place),
            "text_ids": torch.randint(0, 2 * IMAGES, (IMAGES, *captions), generator=chance).to(place),
        }
        self.weights = torch.randn(2, INPUTS, DIM, generator=chance).to(place)
        unit = F.normalize(torch.randn(4, IMAGES, DIM, generator=chance), dim=-1).to(place)
        other = torch.randint(0, 2 * IMAGES, (2, IMAGES, 2), generator=chance).to(place)
        self.past = Past(Candidates(unit[0], other[0]), Candidates(unit[1], other[1]))
        self.foils = Candidates(unit[0], other[0][:, :1])
        self.teacher = unit[2], unit[3]

    def embeds(self, inputs: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        image, text = (
            F.normalize(inputs[name] @ each, dim=-1) for name, each in zip(("image", "text"), weights, strict=True)
        )
        return image, text

    def loss(self, image: Tensor, text: Tensor, temperature: Tensor, execution: Execution, rows: slice) -> Tensor:
        field = dict(self.field)
        extra, soft = field.pop("extra_negatives", None), field.pop("soft", False)
        ids = {name: self.inputs[name][rows] for name in ("image_ids", "text_ids")}
        options: dict[str, Any] = {"same_modality": True} if extra == "same_modality" else {}
        options |= {"past": self.past} if extra == "queue" else {}
        options |= {"foils": Candidates(*(each[rows] for each in self.foils))} if extra == "foils" else {}
        options |= {"soft": SoftTargets(*(each[rows] for each in self.teacher), 0.3, 0.1)} if soft else {}
        return execute_loss(image, text, execution=execution, temperature=temperature, **ids, **options, **field)

    def found(self, execution: Execution, rows: slice = slice(None), cached: bool = False) -> list[Tensor]:
        """The loss, and its gradients by the weights and by the temperature."""
        weights = self.weights.clone().requires_grad_()
        temperature = torch.tensor(TEMPERATURE, device=self.place, requires_grad=True)
        share = {name: each[rows] for name, each in self.inputs.items()}

        def embed(part: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            return *self.embeds(part, weights), temperature

        def loss(image: Tensor, text: Tensor, divisor: Tensor) -> Tensor:
            return self.loss(image, text, divisor, execution, rows)

        if cached:
            parts = mini_batches(share, MINI_BATCH)
            value = cached_loss(torch.nn.Identity(), embed, parts, loss, torch.Tensor.backward)
        else:
            value = loss(*embed(share))
        value.backward()
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in (weights, temperature)]
        return [value.detach(), *gradients]


def difference(found: list[Tensor], dense: list[Tensor]) -> float:
    """The largest relative one; a gradient that is zero has to be found as zero."""
    sizes = [
        (one - other).norm().item() / (other.norm().item() or 1.0) for one, other in zip(found, dense, strict=True)
    ]
    return max(sizes)


def compared(
    ways: dict[str, Execution], find: Callable[[Batch, Execution], list[Tensor]], place: torch.device
) -> dict[str, dict[str, Any]]:
    """Of each field and way the difference, or the line that refuses it."""
    rows: dict[str, dict[str, Any]] = {}
    for name, field in FIELDS.items():
        batch = Batch(field, place)
        dense = batch.found(Execution("dense", "local"))
        for way, execution in ways.items():
            try:
                rows.setdefault(name, {})[way] = difference(find(batch, execution), dense)
            except ValueError as error:
                rows.setdefault(name, {})[way] = str(error)
    return rows


def averaged(batch: Batch, execution: Execution) -> list[Tensor]:
    """What each process finds for its share, and the mean of that."""
    found = batch.found(execution, SHARES[dist.get_rank()])
    for tensor in found:
        dist.all_reduce(tensor)
    return [tensor / dist.get_world_size() for tensor in found]


def member(rank: int, port: int, output: str) -> None:
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()}
    PartialState(cpu=True)
    rows = compared(TOGETHER, averaged, torch.device("cpu"))  # gloo does not gather from GPUs
    if rank == 0:
        write_json(Path(output), rows)
    PartialState().destroy_process_group()


def of_two_processes() -> dict[str, dict[str, Any]]:
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port, output = free.getsockname()[1], Path(folder) / "rows.json"
        free.close()
        torch.multiprocessing.spawn(member, args=(port, str(output)), nprocs=2)
        return read_json(output, dict)


def measure() -> dict[str, Any]:
    rows = compared(ALONE, Batch.found, device())
    cached = compared(
        {"cached gradient": Execution("dense")}, lambda batch, way: batch.found(way, cached=True), device()
    )
    together = of_two_processes()
    return {
        "command": "equality.py",
        "batch": {"images": IMAGES, "captions": CAPTIONS, "dim": DIM, "chunk": CHUNK, "mini_batch": MINI_BATCH},
        "fused": "on the GPU" if torch.cuda.is_available() else "in Triton's interpreter",
        "fields": {name: rows[name] | cached[name] | together[name] for name in FIELDS},
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    record(measure(), parser.parse_args().output)


if __name__ == "__main__":
    main()
