"""What training on entities is worth for record linkage, beside the similarity of strings, on catalogues of scenes.

    python scripts/benchmarks/linking.py runs/linking --start runs/quickstart \\
        --output scripts/benchmarks/results/linking.json

`hf-vse data catalogues` writes two catalogues, and entities to train on that neither shows. The recipe `entities`
trains from the start with each seed, as it is and with what `VARIANTS` adds; a run that exists is read. Then a is
linked to b one-to-one, and half of a's records choose the threshold with the best F1, the other half judges. Rows:
strings (rapidfuzz), the start, and each trained model with photograph and text, with the text alone, and with the
photograph alone.

Intervals are 95 % percentile intervals of the bootstrap over the judging entities; those of a variant are of the mean
over its seeds. `gain` is the F1 above that of strings on the same entities, drawn together.
"""

import argparse
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from measuring import record

from hf_vse.data.scene_catalogues import write_catalogues
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.evaluator import kept_vectors
from hf_vse.files import read_json
from hf_vse.link.candidates import BestCandidates, find_candidates
from hf_vse.link.labels import read_labels, truth_of
from hf_vse.link.metrics import linkage_metrics, resampled_metrics
from hf_vse.link.records import Records, embed_records, read_records
from hf_vse.link.run import LISTED, Wanted, chosen_threshold, decided, halves
from hf_vse.link.strings import string_candidates
from hf_vse.training.recipe import read_recipe
from hf_vse.training.run import run_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "entities.yaml"
METRICS = ("f1", "accuracy", "ari", "precision", "recall")
# What is trained beside the contrast of records: images against captions, a classifier of images.
VARIANTS: dict[str, dict[str, Any]] = {
    "records": {},
    "captions": {"caption_weight": 1.0},
    "classes": {"class_weight": 0.5},
}


def trained(folder: Path, variant: str, seed: int, options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The model of a variant and a seed, and what is recorded of its training."""
    output = folder / f"{variant}-{seed}"
    given = {"data_dir": str(folder / "catalogues" / "train"), "init_from": str(options.start), "seed": seed}
    given |= {"output_dir": str(output), "num_train_epochs": options.num_train_epochs}
    given |= {"per_device_train_batch_size": options.per_device_train_batch_size}
    recipe = read_recipe(RECIPE, **given, **VARIANTS[variant])
    if not (output / "metrics.json").is_file():
        run_recipe(recipe)
    result, stage = (
        read_json(output / "metrics.json", dict),
        read_json(output / "stages" / "train" / "stage.json", dict),
    )
    found = [entry["eval_entity_r1"] for entry in stage["log"] if "eval_entity_r1" in entry]
    facts = {"variant": variant, "seed": seed, "steps": stage["steps"]}
    facts |= {name: stage[name] for name in ("seconds", "cpu_seconds")}
    facts |= {
        "entity_r1_at_start": found[0],
        "best_entity_r1": stage["best_entity_r1"],
        "best_step": stage["best_step"],
    }
    ends = {"start": result["start"]["metrics"], "end": result["metrics"]}
    facts["rsum"] = {name: each["validation"]["metrics"]["rsum"] for name, each in ends.items()}
    places = {"data_dir": "catalogues/train", "init_from": options.start.name, "output_dir": output.name}
    return output, facts | {"recipe": result["recipe"] | places, "environment": result["environment"]}


class Judged:
    """Links of a to b, judged on the half of the known records that did not choose the threshold."""

    def __init__(self, catalogues: Path, resamples: int):
        self.catalogues = [read_records(catalogues / name) for name in ("a", "b")]
        rows = ({name: row for row, name in enumerate(each.names)} for each in self.catalogues)
        self.wanted = Wanted("one_to_one", None, None, "greedy", read_labels(catalogues / "pairs.csv", *rows))
        truth = truth_of(self.wanted.pairs, 0)
        self.truth = {each: truth[each] for each in halves(sorted(truth))[1]}
        self.entities = dict(enumerate(self.catalogues[0].values("entity")))
        self.resamples = resamples
        self.drawn: dict[str, list[list[float]]] = {}  # F1 of each resample, of each seed

    def of(self, by: str, candidates: Any, **facts: Any) -> dict[str, Any]:
        threshold, _ = chosen_threshold(candidates, len(self.catalogues[1]), self.wanted)
        return self.judge(by, candidates, threshold, **facts)

    def judge(self, by: str, candidates: Any, threshold: float, **facts: Any) -> dict[str, Any]:
        links = decided(candidates, len(self.catalogues[1]), threshold, self.wanted, None, None)
        found = {each: int(links[each]) if links[each] >= 0 else None for each in self.truth}
        metrics = linkage_metrics(found, self.truth)
        drawn = resampled_metrics(found, self.truth, self.entities, self.resamples)
        f1 = [each["f1"] for each in drawn]
        if facts.get("image_weight", 0.5) == 0.5:
            self.drawn.setdefault(by, []).append(f1)
        intervals = {name: interval([each[name] for each in drawn]) for name in METRICS}
        intervals["gain"] = interval(np.subtract(f1, self.drawn["strings"][0]))  # which were judged first
        return {"by": by, **facts, "threshold": threshold, "metrics": metrics, "intervals": intervals}

    def intervals(self) -> dict[str, dict[str, list[float]]]:
        """Of the mean F1 of the seeds, and of how far it is above that of strings, by what linked."""
        means = {by: np.mean(of_seeds, axis=0) for by, of_seeds in self.drawn.items()}
        return {by: {"f1": interval(each), "gain": interval(each - means["strings"])} for by, each in means.items()}

    def by_strings(self) -> dict[str, Any]:
        return self.of("strings", self.alike_strings())

    def alike_strings(self) -> BestCandidates:
        return string_candidates(*([" ".join(each) for each in records.texts] for records in self.catalogues), LISTED)

    def by_model(self, by: str, model: Path, keep: Path, image_weight: float, **facts: Any) -> dict[str, Any]:
        encoder = load_encoder(str(model), device="cpu")
        a, b = (self.embedded(each, encoder, keep, image_weight) for each in self.catalogues)
        candidates = find_candidates(a.embeds, b.embeds, len(b))
        return self.of(by, candidates, image_weight=image_weight, **facts)

    def embedded(self, records: Records, encoder: Any, keep: Path, image_weight: float) -> Records:
        return embed_records(records, encoder, image_weight, stores=kept_vectors(encoder, keep))


def interval(values: Sequence[float]) -> list[float]:
    return [round(float(each), 4) for each in np.quantile(values, (0.025, 0.975))]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    folder, start = options.folder, time.perf_counter()
    catalogues = folder / "catalogues"
    counts = {"links": options.records, "training": options.training, "seed": options.data_seed}
    if not catalogues.is_dir():
        write_catalogues(catalogues, **counts)
    judged, keep = Judged(catalogues, options.resamples), folder / "vectors"
    rows, runs = [judged.by_strings(), judged.by_model("start", options.start, keep, 0.5)], []
    for variant, seed in product(options.variants, options.seeds):
        model, facts = trained(folder, variant, seed, options)
        runs.append(facts)
        rows += [judged.by_model(variant, model, keep, weight, seed=seed) for weight in (0.5, 0.0, 1.0)]
    return {
        "command": "linking.py FOLDER --start MODEL",
        "catalogues": counts | {"records": [len(each) for each in judged.catalogues]},
        "judging_records": len(judged.truth),
        "judging_entities": len({judged.entities[each] for each in judged.truth}),
        "resamples": options.resamples,
        "start": {"recipe": read_json(options.start / "metrics.json", dict)["recipe"]},
        "runs": runs,
        "rows": rows,
        "intervals": judged.intervals(),
        "seconds": round(time.perf_counter() - start, 1),
        "environment": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where catalogues and runs are kept")
    parser.add_argument("--start", type=Path, default=Path("runs/quickstart"), help="model [runs/quickstart]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--records", type=int, default=1000, help="links of the catalogues that are judged [1000]")
    parser.add_argument("--training", type=int, default=1000, help="entities to train on [1000]")
    parser.add_argument("--data_seed", type=int, default=0, help="of the catalogues [0]")
    parser.add_argument("--num_train_epochs", type=float, default=10)
    parser.add_argument("--per_device_train_batch_size", type=int, default=128)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    record(measure(options), options.output)


if __name__ == "__main__":
    main()
