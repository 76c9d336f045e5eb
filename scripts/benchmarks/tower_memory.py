"""An image tower on a CPU: as torch runs it, with freed memory used again, and with weights stored by channel, too.

    python scripts/benchmarks/tower_memory.py [--output tower_memory.json]

Each way runs in a process of its own, in turns, several times; the medians are compared with the first way of the same
run. What the kernel does, such as clearing pages, is counted apart as system time. The towers have random weights, as
the time does not depend on them. See `hf_vse/embed/memory.py`.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch
from measuring import record
from torch import nn

from hf_vse.embed.memory import channels_last, reuse_freed_memory
from hf_vse.evaluation.environment import environment

WAYS = ("as torch runs it", "freed memory used again", "and weights by channel")
CALLS = 4  # timed, after two that are not


def tower(name: str) -> nn.Module:
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name.removeprefix("timm/"), pretrained=False).eval()
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(ResNetConfig()).eval()  # ResNet-50


def cpu_seconds() -> tuple[float, float]:
    """All CPU time of this process, and the kernel's part of it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_stime


def measured(way: str, name: str, batch_size: int) -> dict[str, dict[str, float]]:
    """CPU milliseconds for an image, of encoding and of a training step, in this process."""
    model = tower(name)
    if way != WAYS[0]:
        reuse_freed_memory()
    if way == WAYS[2]:
        channels_last(model)
    pixels = torch.randn(batch_size, 3, 224, 224)

    def output() -> torch.Tensor:
        found = model(pixels)
        return found if isinstance(found, torch.Tensor) else found.pooler_output

    def encode() -> None:
        with torch.no_grad():
            output()

    def train() -> None:
        output().square().mean().backward()

    found = {}
    for what, step in (("encoding", encode), ("training step", train)):
        for _ in range(2):
            step()
        before = cpu_seconds()
        for _ in range(CALLS):
            step()
        spent = [1000 * (end - start) / CALLS / batch_size for start, end in zip(before, cpu_seconds(), strict=True)]
        found[what] = dict(zip(("cpu", "system"), spent, strict=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", nargs="+", default=["resnet50"], help="resnet50, or timm/NAME [resnet50]")
    parser.add_argument("--batch_size", type=int, default=32, help="images at once [32]")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way [3]")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measured(args.way, args.towers[0], args.batch_size)))
        return
    rows = []
    for name in args.towers:
        found: dict[str, list] = {way: [] for way in WAYS}
        for way in WAYS * args.rounds:
            command = [sys.executable, __file__, "--way", way, "--towers", name, "--batch_size", str(args.batch_size)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
        for what in ("encoding", "training step"):
            times = {way: median(each[what]["cpu"] for each in found[way]) for way in WAYS}
            for way in WAYS:
                system = median(each[what]["system"] for each in found[way])
                numbers = {"cpu_ms": times[way], "system_ms": system, "speedup": times[WAYS[0]] / times[way]}
                rows.append({"tower": name, "what": what, "way": way} | {k: round(v, 2) for k, v in numbers.items()})
    options = {"batch_size": args.batch_size, "rounds": args.rounds}
    what = "CPU milliseconds for an image of 224 pixels"
    record({"what": what} | options | {"rows": rows, "environment": environment()}, args.output)


if __name__ == "__main__":
    main()
