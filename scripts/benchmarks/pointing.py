"""Does the model know where? Trained with and without mosaics (CLIM), on scenes, where the truth is known.

    python scripts/benchmarks/pointing.py runs/pointing --output scripts/benchmarks/results/pointing.json

Each run is asked for every object of the test scenes: "A red circle is shown here." An answer is right where the
middle of the most relevant cell lies in that ninth of the picture which holds the object; guessing is right in 11 %.
`told_apart` asks less: whether the object's ninth is more relevant than those of the other objects of its scene.
Beside them the recalls of whole pictures. A run that exists is read. The recipe is that of the quickstart, with more
pixels and a finer grid: 96 pixels, 6 x 6 cells.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import record

from hf_vse.data.plain_yaml import parse_yaml
from hf_vse.data.scene_pictures import render
from hf_vse.data.scene_truth import CELLS, SceneObject, sample_scene
from hf_vse.embed.load import load_encoder
from hf_vse.embed.relevance import relevance
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe

RECIPE = parse_yaml((Path(__file__).parents[1] / "recipes" / "quickstart.yaml").read_text(), "quickstart.yaml")
RECIPE |= {"image_size": 96, "resize": 96, "crop": 96}
RECIPE["vision_config"] = RECIPE["vision_config"] | {"hidden_sizes": [32, 64, 128], "depths": [1, 1, 1]}
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "mosaics": {"mosaic_share": 0.5, "mosaic_sides": [2, 3]}}
RECALLS = ("i2t_r1", "t2i_r1", "rsum")


def sentence_of(each: SceneObject) -> str:
    return f"{'An' if each.colour[0] in 'aeiou' else 'A'} {each.colour} {each.shape} is shown here."


def pointing(model: Path, scenes: int, size: int, difficulty: str) -> dict[str, float]:
    """Shares of right answers in percent, and those of guessing."""
    encoder = load_encoder(str(model), device="cpu")
    right, apart, by_chance = [], [], []
    for index in range(scenes):
        scene = sample_scene(0, index, difficulty, "test")
        picture = render(scene, size)
        for each in scene.objects:
            found = relevance(encoder, picture, sentence_of(each))
            x, y = found.best
            right.append((int(y * CELLS / size), int(x * CELLS / size)) == (each.row, each.column))
            if len(scene.objects) > 1:
                rows, columns = found.cells.shape
                ninths = found.cells.reshape(CELLS, rows // CELLS, CELLS, columns // CELLS).max(axis=(1, 3))
                best = max(scene.objects, key=lambda other: ninths[other.row, other.column])
                apart.append(best is each)
                by_chance.append(1 / len(scene.objects))
    told = {"told_apart": np.mean(apart), "told_apart_by_chance": np.mean(by_chance)}
    shares = {"pointing": np.mean(right), "pointing_by_chance": 1 / CELLS**2} | told
    return {name: round(100 * float(share), 2) for name, share in shares.items()}


def run(folder: Path, way: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    output = folder / f"{way}-{seed}"
    result = output / "pointing.json"
    if result.is_file():
        return json.loads(result.read_text())
    values = RECIPE | WAYS[way] | {"seed": seed, "output_dir": str(output), "difficulty": options.difficulty}
    for name in ("num_train", "num_eval", "num_train_epochs", "per_device_train_batch_size"):
        values[name] = getattr(options, name)
    start = time.process_time()
    trained = run_recipe(build_recipe(values))
    found = {"way": way, "seed": seed, "recipe": values | {"output_dir": output.name}}
    found |= {"recalls": {name: trained["metrics"]["test"]["metrics"][name] for name in RECALLS}}
    found |= {"where": pointing(output, options.num_eval, values["image_size"], options.difficulty)}
    found |= {"cpu_seconds": round(time.process_time() - start, 1), "environment": trained["environment"]}
    result.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--difficulty", default="medium", choices=("easy", "medium", "hard"))
    parser.add_argument("--num_train", type=int, default=RECIPE["num_train"])
    parser.add_argument("--num_eval", type=int, default=RECIPE["num_eval"])
    parser.add_argument("--num_train_epochs", type=float, default=10)
    parser.add_argument("--per_device_train_batch_size", type=int, default=128)
    parser.add_argument("--output", type=Path, help="a JSON file for all runs")
    options = parser.parse_args()
    runs = [run(options.folder, way, seed, options) for seed in options.seeds for way in WAYS]
    record({"command": "pointing.py FOLDER", "ways": WAYS, "runs": runs}, options.output)


if __name__ == "__main__":
    main()
