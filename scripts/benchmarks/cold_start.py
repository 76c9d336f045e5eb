"""CPU seconds of commands from nothing, beside `import torch` in the same run; optionally of another commit too.

    python scripts/benchmarks/cold_start.py --model runs/quickstart --before CHECKOUT --output FILE

User and system time of one process each, warm disk cache, the median of `--rounds`; other processes on the machine
disturb them little, wall-clock time much. `--before` is a checkout of an earlier commit.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
PICTURES = 24


def cpu_seconds(words: list[str], tree: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commit_of(tree: Path) -> str:
    return subprocess.check_output(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], text=True).strip()


def measure(model: str, before: Path | None, rounds: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        pictures, gallery, fast = (str(Path(folder, name)) for name in ("pictures", "gallery", "fast"))
        Path(pictures).mkdir()
        for number in range(PICTURES):
            Image.effect_noise((64, 64), 20 + number).convert("RGB").save(Path(pictures, f"{number}.png"))
        index = ["-m", "hf_vse.cli", "index", pictures, gallery, "--model", model, "--quiet"]
        search = ["-m", "hf_vse.cli", "search", gallery, "a small red circle"]
        cpu_seconds(index, ROOT)
        cpu_seconds([fast if word == gallery else word for word in index] + ["--fast_queries"], ROOT)
        commands = {
            "import torch": ["-c", "import torch"],
            "hf-vse --help": ["-m", "hf_vse.cli", "--help"],
            "hf-vse search --help": ["-m", "hf_vse.cli", "search", "--help"],
            "hf-vse index, nothing new": index,
            "hf-vse search": search,
            "hf-vse search, fast queries": [fast if word == gallery else word for word in search],
        }
        trees = {"now": ROOT} | ({} if before is None else {"before": before})
        cases = [(name, tree) for name in commands for tree in trees if tree == "now" or name.startswith("hf-vse")]
        cases = [case for case in cases if case != ("hf-vse search, fast queries", "before")]  # not there then
        found: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for _ in range(rounds):
            for name, tree in cases:
                found[name, tree].append(cpu_seconds(commands[name], trees[tree]))
    unit = statistics.median(found["import torch", "now"])
    measured: dict[str, Any] = {name: {} for name in commands}
    for (name, tree), seconds in found.items():
        middle = statistics.median(seconds)
        measured[name][tree] = {"cpu_s": round(middle, 2), "times_import_torch": round(middle / unit, 2)}
    return {"commits": {name: commit_of(tree) for name, tree in trees.items()}, "rounds": rounds, "measured": measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="of `hf-vse train`")
    parser.add_argument("--before", type=Path, help="checkout of an earlier commit, to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    result = {"command": " ".join(["python", "scripts/benchmarks/cold_start.py", *sys.argv[1:]])}
    result |= {"machine": f"{os.cpu_count()} CPU cores, {os.uname().machine}"}
    result |= measure(str(Path(arguments.model).absolute()), arguments.before, arguments.rounds)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
