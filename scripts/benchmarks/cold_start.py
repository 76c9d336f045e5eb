"""CPU seconds of commands from nothing, beside `import torch` in the same run; optionally of another commit too.

    python scripts/benchmarks/cold_start.py --model runs/quickstart --before CHECKOUT --output FILE

User and system time of one process each, warm disk cache, the median of `--rounds`; other processes on the machine
disturb them little, wall-clock time much. `--before` is a checkout of an earlier commit, which makes its own gallery.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measuring import record
from PIL import Image

from hf_vse.evaluation.environment import environment

ROOT = Path(__file__).parents[2]
PICTURES = 24
INDEX, SEARCH = "hf-vse index, nothing new", "hf-vse search"


def run(words: list[str], tree: Path) -> str:
    """What Python prints, with the package of a tree: `-m` takes that of the working directory first."""
    variables = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], env=variables, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


def check_tree(tree: Path) -> None:
    found = Path(run(["-c", "import hf_vse; print(hf_vse.__file__)"], tree).strip())
    if not found.is_relative_to(tree):
        sys.exit(f"{tree} was to be measured, and {found} was imported")


def cpu_seconds(words: list[str], tree: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(words, tree)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(pictures: Path, gallery: Path, model: str) -> dict[str, list[str]]:
    """What is measured of a tree, by name; the first `INDEX` makes the gallery."""
    ours = {
        "hf-vse --help": ["--help"],
        "hf-vse search --help": ["search", "--help"],
        INDEX: ["index", str(pictures), str(gallery), "--model", model, "--quiet"],
        SEARCH: ["search", str(gallery), "a small red circle"],
    }
    return {name: ["-m", "hf_vse.cli", *words] for name, words in ours.items()}


def commit_of(tree: Path) -> str:
    return subprocess.check_output(["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], text=True).strip()


def measure(model: str, before: Path | None, rounds: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        pictures, fast = Path(folder, "pictures"), Path(folder, "fast")
        pictures.mkdir()
        for number in range(PICTURES):
            Image.effect_noise((64, 64), 20 + number).convert("RGB").save(pictures / f"{number}.png")
        trees = {"now": ROOT} | ({} if before is None else {"before": before.absolute()})
        cases = {("import torch", "now"): ["-c", "import torch"]}
        for tree in trees:
            check_tree(trees[tree])
            gallery = Path(folder, f"gallery_{tree}")
            cases |= {(name, tree): words for name, words in commands(pictures, gallery, model).items()}
            cpu_seconds(cases[INDEX, tree], trees[tree])
        of_fast = commands(pictures, fast, model)
        cpu_seconds([*of_fast[INDEX], "--fast_queries"], ROOT)
        cases["hf-vse search, fast queries", "now"] = of_fast[SEARCH]
        found: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for _ in range(rounds):
            for (name, tree), words in cases.items():
                found[name, tree].append(cpu_seconds(words, trees[tree]))
    unit = statistics.median(found["import torch", "now"])
    measured: dict[str, Any] = {name: {} for name, _ in cases}
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
    command = {"command": "cold_start.py --model MODEL" + (" --before CHECKOUT" if arguments.before else "")}
    measured = measure(str(Path(arguments.model).absolute()), arguments.before, arguments.rounds)
    record(command | measured | {"environment": environment()}, arguments.output)


if __name__ == "__main__":
    main()
