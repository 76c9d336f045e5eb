"""Other splits of a Karpathy data set, on which a recipe is chosen or judged without its validation split.

    python scripts/benchmarks/resplit.py --data_dir FLICKR8K --fold A --output_dir flickr8k_a
    python scripts/train.py RECIPE --data_dir flickr8k_a --output_dir runs/a
    python scripts/evaluate.py --model runs/a

Two folds of 1,000 images are drawn from train, always the same. Fold A is there to choose on: its images are
`validation`, `train` is what remains of train, and the official validation images are left out. Fold B chose nothing:
its images are `validation`, and the official ones join `train`. The folder links to images and features.
"""

import argparse
import json
from pathlib import Path

import numpy as np

SEED = 20261129  # of the folds
IMAGES = 1000  # in a fold


def resplit(images: list[dict], fold: str) -> list[dict]:
    """The entries of a split file with other splits; those that a fold leaves out keep their row, without captions."""
    train = [row for row, image in enumerate(images) if image["split"] == "train"]
    drawn = np.random.default_rng(SEED).permutation(train)
    chosen = set(drawn[:IMAGES] if fold == "A" else drawn[IMAGES : 2 * IMAGES])
    changed = []
    for row, image in enumerate(images):
        if row in chosen:
            changed.append(image | {"split": "val"})
        elif image["split"] == "train" or (image["split"] == "val" and fold == "B"):
            changed.append(image | {"split": "train"})
        else:
            changed.append(image | {"sentences": [], "sentids": []})
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=Path, help="Folder with dataset_flickr8k.json.")
    parser.add_argument("--fold", required=True, choices=["A", "B"])
    parser.add_argument("--output_dir", required=True, type=Path, help="A new folder.")
    args = parser.parse_args()
    name = "dataset_flickr8k.json"
    content = json.loads((args.data_dir / name).read_text(encoding="utf-8"))
    content["images"] = resplit(content["images"], args.fold)
    args.output_dir.mkdir(parents=True)
    for path in args.data_dir.absolute().iterdir():
        if path.name != name:
            (args.output_dir / path.name).symlink_to(path)
    (args.output_dir / name).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
