"""What the recipes of Flickr8k reach on images that chose nothing.

    python scripts/benchmarks/flickr8k_models.py --data_dir FLICKR8K --work_dir runs/flickr8k_models [--output FILE]

Trains each recipe with three seeds on fold B (`resplit.py`) and on the official split, joins the three to one model
(`scripts/join_seeds.py`) and evaluates that too. What is in the work folder already is not run again. Rsum is the sum
of R@1, R@5 and R@10 in both directions, in percent, in a gallery of 1,000 images and 5,000 captions.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from measuring import record

SCRIPTS = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
RECIPES = ("flickr8k_features_best",)
SECONDS = ("seconds", "seconds_before_training")


def run(script: str, *options: str | Path) -> None:
    subprocess.run([sys.executable, SCRIPTS / script, *options], check=True)


def data_of(fold: str, data_dir: Path, work_dir: Path) -> Path:
    """The data of a fold, `validation` for the official split."""
    folder = work_dir / f"data_{fold}"
    if fold != "validation" and not folder.is_dir():
        run("benchmarks/resplit.py", "--data_dir", data_dir, "--fold", fold, "--output_dir", folder)
    return data_dir if fold == "validation" else folder


def summary(path: Path) -> dict:
    """Recalls, time and circumstances of a run, as it wrote them."""
    result = json.loads(path.read_text(encoding="utf-8"))
    evaluation = next(iter(result["metrics"].values()))
    found = {"metrics": evaluation["metrics"], "fingerprint": evaluation["fingerprint"]}
    if stages := result.get("stages"):
        found["recipe"] = {
            key: value for key, value in result["recipe"].items() if key not in ("data_dir", "output_dir")
        }
        found["seconds"] = {name: sum(stage.get(name, 0.0) for stage in stages) for name in SECONDS}
    return found | {"environment": result["environment"]}


def measure(recipe: str, fold: str, seeds: list[int], data: Path, work_dir: Path) -> None:
    """Trains what is not there, joins the seeds and evaluates the joint model."""
    runs = [work_dir / f"{recipe}-{fold}-{seed}" for seed in seeds]
    for seed, folder in zip(seeds, runs, strict=True):
        if not (folder / "metrics.json").is_file():
            options = ["--data_dir", data, "--seed", str(seed), "--output_dir", folder]
            run("train.py", SCRIPTS / "recipes" / f"{recipe}.yaml", *options)
    joined = work_dir / f"{recipe}-{fold}-joined-{'-'.join(map(str, seeds))}"
    if not joined.is_dir():
        run("join_seeds.py", *runs, "--output_dir", joined)
    evaluated = work_dir / f"{joined.name}.json"
    if not evaluated.is_file():
        own = json.loads((runs[0] / "metrics.json").read_text(encoding="utf-8"))["recipe"]
        options = ["--features", own["features"]] if "features" in own else []
        options += ["--dataset", "flickr8k", "--data_dir", data, "--split", "validation"]
        run("evaluate.py", "--model", joined, *options, "--output", evaluated)


def collected(recipe: str, fold: str, work_dir: Path) -> dict:
    """What there is of a recipe on a fold: each seed, and each joint model by its seeds."""
    start = f"{recipe}-{fold}-"
    seeds = {
        path.parent.name.removeprefix(start): path for path in sorted(work_dir.glob(f"{start}[0-9]*/metrics.json"))
    }
    joined = {
        path.stem.removeprefix(f"{start}joined-"): path for path in sorted(work_dir.glob(f"{start}joined-*.json"))
    }
    found = {
        kind: {name: summary(path) for name, path in paths.items()}
        for kind, paths in (("seeds", seeds), ("joined", joined))
    }
    values = [each["metrics"]["rsum"] for each in found["seeds"].values()]
    spread = {"stdev": stdev(values)} if len(values) > 1 else {}
    return ({"rsum": {"mean": mean(values)} | spread} if values else {}) | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--work_dir", required=True, type=Path)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--collect", action="store_true", help="train nothing: record what is in the work folder")
    parser.add_argument("--folds", nargs="+", default=["B", "validation"], choices=["A", "B", "validation"])
    parser.add_argument("--tried", type=Path, help="JSON lines of what was tried on fold A, to be recorded too")
    parser.add_argument("--note", help="what else to know about these runs")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    result: dict = {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "note": args.note, "recipes": {}}
    for recipe in args.recipes:
        for fold in () if args.collect else args.folds:
            measure(recipe, fold, args.seeds, data_of(fold, args.data_dir, args.work_dir), args.work_dir)
        result["recipes"][recipe] = {fold: collected(recipe, fold, args.work_dir) for fold in args.folds}
    if args.tried:
        result["tried_on_fold_A"] = [json.loads(line) for line in args.tried.read_text(encoding="utf-8").splitlines()]
    record(result, args.output)


if __name__ == "__main__":
    main()
