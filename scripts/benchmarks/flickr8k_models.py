"""What the recipes of Flickr8k reach on images that chose nothing.

    python scripts/benchmarks/flickr8k_models.py --data_dir FLICKR8K --work_dir runs/flickr8k_models [--output FILE]

Trains each recipe with three seeds on fold B (`resplit.py`) and evaluates it there. What is in the work folder already
is not run again, and of recipes without a run there `--output` keeps what it has. A recipe with joined seeds tells
what each of them reaches alone, too. Rsum is the sum of R@1, R@5 and R@10 in both directions, in percent, in a
gallery of 1,000 images and 5,000 captions.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from measuring import record

from hf_vse.training.recipe import read_recipe

SCRIPTS = Path(__file__).parents[1]
SEEDS = (0, 10, 20)  # joined seeds follow the first, so that no two models share one
STARTS = {"flickr8k_finetuned_record": "flickr8k_record"}  # recipes that start from the model of another
RECIPES = (
    "flickr8k_features_best",
    "flickr8k_photos_gru",
    "flickr8k_photos",
    "flickr8k_record",
    "flickr8k_finetuned",
    *STARTS,
)
SECONDS = ("seconds", "seconds_before_training")
PLACES = ("data_dir", "output_dir", "frozen_cache_dir", "image_tower_weights", "init_from")


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
    evaluation = result["metrics"]["validation"]
    alone = {seed: splits["validation"]["rsum"] for seed, splits in result.get("seeds", {}).items()}
    return {
        "metrics": evaluation["metrics"],
        "fingerprint": evaluation["fingerprint"],
        **({"rsum_of_seeds": alone} if alone else {}),
        "recipe": {key: value for key, value in result["recipe"].items() if key not in PLACES},
        "seconds": {name: sum(stage.get(name, 0.0) for stage in result["stages"]) for name in SECONDS},
        "environment": result["environment"],
    }


def collected(recipe: str, fold: str, work_dir: Path) -> dict:
    """What there is of a recipe on a fold, by seed."""
    start = f"{recipe}-{fold}-"
    runs = {
        path.parent.name.removeprefix(start): summary(path)
        for path in sorted(work_dir.glob(f"{start}[0-9]*/metrics.json"))
    }
    values = [each["metrics"]["rsum"] for each in runs.values()]
    spread = {"stdev": stdev(values)} if len(values) > 1 else {}
    return ({"rsum": {"mean": mean(values)} | spread} if values else {}) | {"runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--work_dir", required=True, type=Path)
    parser.add_argument("--image_tower_weights", help="safetensors file, for recipes from photographs; else the Hub's")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--collect", action="store_true", help="train nothing: record what is in the work folder")
    parser.add_argument("--folds", nargs="+", default=["B"], choices=["A", "B", "validation"])
    parser.add_argument("--tried", type=Path, help="JSON lines of what was tried on fold A, to be recorded too")
    parser.add_argument(
        "--encoding", type=Path, help="folder of a run that filled the cache, to record how long it took"
    )
    parser.add_argument("--note", help="what else to know about these runs")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    earlier = json.loads(args.output.read_text(encoding="utf-8")) if args.output and args.output.is_file() else {}
    result: dict = {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "note": args.note, "recipes": {}}
    for recipe in args.recipes:
        of_recipe = [SCRIPTS / "recipes" / f"{recipe}.yaml"]
        if args.image_tower_weights and read_recipe(of_recipe[0]).model.image_tower:
            of_recipe += ["--image_tower_weights", args.image_tower_weights]
        for fold in () if args.collect else args.folds:
            of_fold = ["--data_dir", data_of(fold, args.data_dir, args.work_dir)]
            for seed in args.seeds:
                folder = args.work_dir / f"{recipe}-{fold}-{seed}"
                if (folder / "metrics.json").is_file():
                    continue
                start = ["--init_from", args.work_dir / f"{STARTS[recipe]}-{fold}-{seed}"] if recipe in STARTS else []
                run("train.py", *of_recipe, *of_fold, *start, "--seed", str(seed), "--output_dir", folder)
        found = {fold: collected(recipe, fold, args.work_dir) for fold in args.folds}
        there = any(of_fold["runs"] for of_fold in found.values())
        result["recipes"][recipe] = found if there else earlier.get("recipes", {}).get(recipe, found)
    result |= {name: earlier[name] for name in ("tried_on_fold_A", "encoding") if name in earlier}
    if args.encoding:
        found = json.loads((args.encoding / "metrics.json").read_text(encoding="utf-8"))
        seconds = sum(stage["seconds_before_training"] for stage in found["stages"])
        result["encoding"] = {"seconds": seconds, "environment": found["environment"]}
    if args.tried:
        result["tried_on_fold_A"] = [json.loads(line) for line in args.tried.read_text(encoding="utf-8").splitlines()]
    record(result, args.output)


if __name__ == "__main__":
    main()
