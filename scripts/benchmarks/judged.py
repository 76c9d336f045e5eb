"""Evaluates models on one split and checks every number against an independent computation; records no captions.

    python scripts/benchmarks/judged.py runs/nce-0 runs/nce-1 runs/hardnce-0 --split validation --data_dir DIR
        [--output judged.json]

The independent numbers follow the definitions: the full similarity matrix in float64, a full sort of every row, a loop
over the queries. A difference of more than 1e-9 is an error.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measuring import record

from hf_vse.evaluation.judge import Judgement
from hf_vse.evaluation.record import evaluation_of
from hf_vse.evaluation.run import Questions, evaluate_models

LEVELS = (1, 5, 10)


def sorted_positions(scores: np.ndarray, own: list[np.ndarray]) -> list[np.ndarray]:
    """Ranks of the positives of each row in a full sort, best first; negatives come first in ties."""
    found = []
    for row, mine in zip(scores, own, strict=True):
        is_own = np.zeros(len(row), bool)
        is_own[mine] = True
        order = np.lexsort((is_own, -row))
        found.append(np.flatnonzero(is_own[order]))
    return found


def of_positions(found: list[np.ndarray], direction: str) -> dict[str, float]:
    """All metrics of one direction, from the ranks of the positives, counted from 0."""
    first = np.array([places[0] for places in found])
    metrics = {
        "medr": np.floor(np.median(first)) + 1,
        "meanr": first.mean() + 1,
        "mrr": 100 * (1 / (first + 1)).mean(),
    }
    for level in LEVELS:
        metrics[f"hit_r{level}"] = 100 * (first < level).mean()
        metrics[f"recall_r{level}"] = 100 * np.mean([(places < level).mean() for places in found])
    precise, average, gains = [], [], []
    for places in found:
        relevant = len(places)
        precise.append((places < relevant).mean())
        inside = [place for place in places if place < relevant]
        average.append(sum((number + 1) / (place + 1) for number, place in enumerate(inside)) / relevant)
        best = sum(1 / np.log2(place + 2) for place in range(min(relevant, 10)))
        gains.append(sum(1 / np.log2(place + 2) for place in places if place < 10) / best)
    metrics |= {
        "r_precision": 100 * np.mean(precise),
        "map_at_r": 100 * np.mean(average),
        "ndcg_10": 100 * np.mean(gains),
    }
    return {f"{direction}_{name}": float(value) for name, value in metrics.items()}


def by_definition(images: np.ndarray, texts: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    scores = texts @ images.T
    of_images = [np.flatnonzero(owner == image) for image in range(len(images))]
    metrics = of_positions(sorted_positions(scores.T, of_images), "i2t")
    return metrics | of_positions(sorted_positions(scores, [np.array([image]) for image in owner]), "t2i")


def independent(judgement: Judgement) -> dict[str, dict[str, float]]:
    """The metrics of each protocol on one split, computed by definition."""
    images, texts = (each.double().numpy() for each in judgement.pairs[:2])
    owner = judgement.pairs.text_to_image.numpy()
    everyone = np.arange(len(images))
    first = texts[[np.flatnonzero(owner == image)[0] for image in everyone]]
    means = np.array([texts[owner == image].sum(axis=0) for image in everyone])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    whole = by_definition(images, texts, owner)
    return {
        "hit_rate": whole,
        "ranking": whole,
        "first_caption": by_definition(images, first, everyone),
        "mean_caption": by_definition(images, means, everyone),
    }


def largest_difference(judgement: Judgement) -> dict[str, float]:
    """The largest difference between recorded and independent numbers, for each protocol."""
    expected, found = independent(judgement), {}
    for name, protocol in judgement.record["protocols"].items():
        differences = []
        for metric, value in protocol["metrics"].items():
            direction, _, rest = metric.partition("_")
            known = expected[name].get(metric, expected[name].get(f"{direction}_hit_{rest}"))
            differences += [] if known is None else [abs(value - known)]
        found[name] = max(differences)
    return found


def without_captions(judgement: Judgement, name: str) -> dict[str, Any]:
    """The record without data rows and sentences."""
    kept = dict(judgement.record) | {"model": name}
    if "composition" in kept:
        kinds = kept["composition"]["kinds"].items()
        kept["composition"] = kept["composition"] | {
            "kinds": {kind: {key: value for key, value in each.items() if key != "examples"} for kind, each in kinds}
        }
    if "diagnostics" in kept:
        kept["diagnostics"] = {
            name: part for name, part in kept["diagnostics"].items() if name not in ("suspects", "similarities")
        }
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders")
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--split", default="validation", help="[validation]")
    parser.add_argument("--foils", default="auto", help="[auto]")
    parser.add_argument("--correction", help="qbnorm or inverted_softmax")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    questions = Questions(
        split=arguments.split, diagnostics=True, foils=arguments.foils, correction=arguments.correction
    )
    evaluation = evaluate_models(arguments.models, questions=questions, data_dir=arguments.data_dir)
    names = {model: Path(model).name for model in arguments.models}
    checked = {names[each.record["model"]]: largest_difference(each) for each in evaluation.judgements}
    worst = max(value for each in checked.values() for value in each.values())
    if worst > 1e-9:
        sys.exit(f"numbers differ from their definition by up to {worst}: {checked}")
    records = [without_captions(each, names[each.record["model"]]) for each in evaluation.judgements]
    comparisons = evaluation.document.get("comparisons", [])
    result = evaluation_of(
        {each["model"]: each for each in records},
        evaluation.document["environment"],
        [each | {"first": names[each["first"]], "second": names[each["second"]]} for each in comparisons],
    )
    what = "the judge's record of models on one split, and its largest difference from numbers by definition"
    result = {"what": what, "largest_difference_from_definition": checked} | result
    record(result, arguments.output)


if __name__ == "__main__":
    main()
