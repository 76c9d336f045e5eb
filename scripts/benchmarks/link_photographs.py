"""Record linkage of photographs with captions, by a model and by strings, on images that chose no threshold.

    python scripts/benchmarks/link_photographs.py runs/link_photographs --model runs/flickr8k_photos --data_dir DIR \\
        --output scripts/benchmarks/results/link_photographs.json

DIR is a data set with five captions of each image, in Karpathy's layout. An image becomes two records: one corner of
it with two captions, the opposite corner with the other three. Catalogues a and b have a record each of the images
that they share, and records of strangers. One pair of catalogues chooses the thresholds with the highest F1, another
one, of other images, judges them. Rows: strings (rapidfuzz), then the model with photograph and text, with the text
alone, and with the photograph alone.

Intervals are 95 % percentile intervals of the bootstrap over the images. `gain` is the F1 above that of strings on the
same images, drawn together.
"""

import argparse
import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from linking import Judged
from measuring import record
from PIL import Image

from hf_vse.data.schema import CAPTIONS, IMAGE
from hf_vse.data.sources import load_pairs
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.environment import environment
from hf_vse.link.candidates import BestCandidates, find_candidates
from hf_vse.link.labels import truth_of
from hf_vse.link.run import tuned_threshold

CORNER = 0.7  # share of each side of an image that a record shows
FIRST = 2  # captions of a record of a; those of b are the others
WEIGHTS = (0.5, 0.0, 1.0)  # of the photograph


class AllJudge(Judged):
    """Links of a to b, judged on all known records, as thresholds come from elsewhere."""

    def __init__(self, catalogues: Path, resamples: int):
        super().__init__(catalogues, resamples)
        self.truth = truth_of(self.wanted.pairs, 0)

    def tuned(self, candidates: BestCandidates) -> float:
        return tuned_threshold(candidates, len(self.catalogues[1]), "one_to_one", self.truth)


def write_corners(folder: Path, rows: Any, links: int, rng: np.random.Generator) -> None:
    """Writes catalogues a and b, and their known pairs.

    Args:
        rows: images with captions: the first `links` are in both catalogues, half of the others in each.
    """
    strangers = (len(rows) - links) // 2
    both = list(range(links))
    parts = {"a": both + list(range(links, links + strangers)), "b": both + list(range(links + strangers, len(rows)))}
    names: dict[str, dict[int, str]] = {}
    mirrored = rng.integers(2, size=len(rows))
    for name, members in parts.items():
        (folder / name).mkdir(parents=True)
        lines = []
        names[name] = {int(row): f"{place:05d}.jpg" for place, row in enumerate(rng.permutation(members))}
        for row, file in names[name].items():
            found = rows[row]
            corner(found[IMAGE], name == "b", bool(mirrored[row])).save(folder / name / file, quality=95)
            captions = found[CAPTIONS][:FIRST] if name == "a" else found[CAPTIONS][FIRST:]
            lines.append({"file_name": file, CAPTIONS: captions, "entity": f"e{row:05d}"})
        (folder / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b"])
        writer.writerows((names["a"].get(row, ""), names["b"].get(row, "")) for row in range(links + 2 * strangers))


def corner(image: Image.Image, second: bool, mirrored: bool) -> Image.Image:
    """The upper corner of an image, or the lower one opposite to it."""
    width, height = (round(CORNER * side) for side in image.size)
    left = image.width - width if second != mirrored else 0
    top = image.height - height if second else 0
    return image.convert("RGB").crop((left, top, left + width, top + height))


def make_catalogues(folder: Path, options: argparse.Namespace) -> None:
    split = load_pairs(options.dataset, data_dir=options.data_dir)[options.split]
    each = options.links + 2 * options.strangers
    usable = [row for row, captions in enumerate(split[CAPTIONS]) if len(captions) == 5]
    if len(usable) < 2 * each:
        raise SystemExit(f"error: {len(usable):,} images have five captions, {2 * each:,} are needed: lower --links")
    rng = np.random.default_rng(options.seed)
    drawn = rng.permutation(usable)
    for place, name in enumerate(("tune", "judge")):
        rows: Sequence[int] = drawn[place * each : (place + 1) * each]
        write_corners(folder / name, split.select(rows), options.links, rng)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    start, folder = time.perf_counter(), options.folder / "catalogues"
    if not folder.is_dir():
        make_catalogues(folder, options)
    tune, judge = (AllJudge(folder / name, options.resamples) for name in ("tune", "judge"))
    rows = [judge.judge("strings", judge.alike_strings(), tune.tuned(tune.alike_strings()))]
    encoder, keep = load_encoder(str(options.model), device=options.device), options.folder / "vectors"
    for weight in WEIGHTS:
        found = []
        for each in (tune, judge):
            a, b = (each.embedded(records, encoder, keep, weight) for records in each.catalogues)
            found.append(find_candidates(a.embeds, b.embeds, len(b)))
        rows.append(judge.judge("model", found[1], tune.tuned(found[0]), image_weight=weight))
    return {
        "command": "link_photographs.py FOLDER --model MODEL --data_dir DIR",
        "model": Path(str(options.model)).name,
        "dataset": options.dataset,
        "split": options.split,
        "catalogues": {name: getattr(options, name) for name in ("links", "strangers", "seed")} | {"corner": CORNER},
        "judging_records": len(judge.truth),
        "resamples": options.resamples,
        "rows": rows,
        "seconds": round(time.perf_counter() - start, 1),
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where catalogues and vectors are kept")
    parser.add_argument("--model", required=True, help="any model that `hf-vse evaluate` takes and that reads images")
    parser.add_argument("--data_dir", type=Path, required=True, help="images and the JSON file of the data set")
    parser.add_argument("--dataset", default="flickr8k", help="as of `hf-vse evaluate` [flickr8k]")
    parser.add_argument("--split", default="validation", help="whose images become records [validation]")
    parser.add_argument("--links", type=int, default=300, help="images in both catalogues [300]")
    parser.add_argument("--strangers", type=int, default=75, help="images in one catalogue alone, for each [75]")
    parser.add_argument("--seed", type=int, default=0, help="of the images and their corners [0]")
    parser.add_argument("--device", help="[cuda, where there is one]")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    record(measure(options), options.output)


if __name__ == "__main__":
    main()
