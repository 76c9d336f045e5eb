"""Recognising things with one example each, of classes that a model was not trained on (open-set identification).

- Verification: do two images show the same thing? See `verification.py`.
- One-shot identification (logos: arXiv 2211.12926): every class has one image as its reference, drawn at random in
  several rounds; all others ask for theirs. A tie counts against the model. Distractors are further references of
  other things, of which more and more are added.
- Open set: every image asks twice, with its class among the references and with it taken out, as a stranger. The
  threshold is that which a stated share of strangers exceeds; recognised is what is above it and right. These are the
  true- and false-positive identification rates of biometrics (ISO/IEC 19795-1).

Intervals are bootstraps over classes, against the same references. Nothing is larger than a tile of scores.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_vse.embed.matrices import mean_of_rows
from hf_vse.evaluation.intervals import CONFIDENCE, drawn_sums, drawn_times, interval
from hf_vse.evaluation.verification import verification_metrics

ROUNDS = 5
RESAMPLES = 500
FALSE_POSITIVES = 0.01  # share of strangers that may be taken for a thing
TILE = 1024
LEVELS = (100, 1000, 10_000, 100_000)  # distractors


class Answers(NamedTuple):
    """Of each query, in all rounds: its class, its score with its own reference, the best with another one, and the
    best with the first of several numbers of distractors, (queries, levels)."""

    labels: np.ndarray
    own: np.ndarray
    other: np.ndarray
    distractor: np.ndarray


def one_shot_answers(
    embeds: np.ndarray,
    labels: np.ndarray,
    *,
    references: int = 1,
    distractors: np.ndarray | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Answers:
    """Every image that is no reference asks for its class.

    Args:
        embeds: (images, dim) float32 unit vectors.
        labels: (images,) integers from 0 on. A class without images to spare is a reference that nobody asks for.
        references: images of a class that make its reference, the unit mean of their vectors.
        distractors: (distractors, dim) unit vectors of other things.

    Raises:
        ValueError: no class has an image to spare.
    """
    if np.bincount(labels).max() <= references:
        raise ValueError(
            f"no class has more than {references} images, so none is left to ask with: give more, or fewer references"
        )
    rng = np.random.default_rng(seed)
    far = best_distractors(embeds, distractors)
    found = []
    for _ in range(rounds):
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        starts = np.searchsorted(labels[order], labels[order])
        chosen = order[np.arange(len(order)) - starts < references]
        gallery = mean_of_rows(embeds[chosen], labels[chosen], int(labels.max()) + 1)
        asking = np.setdiff1d(order, chosen)
        own, other = np.empty(len(asking), np.float32), np.empty(len(asking), np.float32)
        for start in range(0, len(asking), TILE):
            rows = asking[start : start + TILE]
            scores, places = embeds[rows] @ gallery.T, np.arange(len(rows))
            own[start : start + TILE] = scores[places, labels[rows]]
            scores[places, labels[rows]] = -np.inf
            other[start : start + TILE] = scores.max(axis=1)
        found.append((labels[asking], own, other, far[asking]))
    return Answers(*map(np.concatenate, zip(*found, strict=True)))


def levels_of(distractors: np.ndarray | None) -> list[int]:
    count = 0 if distractors is None else len(distractors)
    return [level for level in LEVELS if level < count] + ([count] if count else [])


def best_distractors(embeds: np.ndarray, distractors: np.ndarray | None) -> np.ndarray:
    """(images, levels) the best score of each image with the first of so many distractors, see `levels_of`."""
    levels = levels_of(distractors)
    further = np.empty((0, embeds.shape[1]), np.float32) if distractors is None else distractors
    best = np.full((len(embeds), len(levels)), -np.inf, np.float32)
    for start in range(0, len(embeds), TILE):
        rows, so_far = slice(start, start + TILE), np.float32(-np.inf)
        for place, (begin, end) in enumerate(zip([0, *levels], levels, strict=False)):
            for first in range(begin, end, TILE):
                scores = embeds[rows] @ further[first : min(first + TILE, end)].T
                so_far = np.maximum(so_far, scores.max(axis=1))
            best[rows, place] = so_far
    return best


def one_shot_metrics(
    answers: Answers, levels: Sequence[int], classes: int, resamples: int, seed: int
) -> dict[str, Any]:
    """How often the own reference is the best, in percent, among the classes alone and with distractors."""
    right = [answers.own > answers.other]
    right += [right[0] & (answers.own > each) for each in answers.distractor.T]
    sums = [np.bincount(answers.labels, weights=each, minlength=classes) for each in (np.ones(len(right[0])), *right)]
    sums = np.stack(sums, axis=1)[np.unique(answers.labels)]  # of the classes that ask
    drawn, total = drawn_sums(sums, resamples, seed), sums.sum(axis=0)
    shares = 100 * total[1:] / total[0]
    intervals = [interval(100 * each / drawn[:, 0], CONFIDENCE) for each in drawn[:, 1:].T]
    found: dict[str, Any] = {"queries": int(total[0]), "asking_classes": len(sums), "chance": 100 / classes}
    found |= {"top1": float(shares[0]), "top1_interval": intervals[0]}
    with_distractors = [
        {"distractors": level, "top1": float(share), "top1_interval": bounds}
        for level, share, bounds in zip(levels, shares[1:], intervals[1:], strict=True)
    ]
    return found | ({"with_distractors": with_distractors} if with_distractors else {})


def open_set_metrics(answers: Answers, resamples: int, seed: int, rate: float = FALSE_POSITIVES) -> dict[str, Any]:
    """How well what is known is told from strangers, with the distractors, if there are any, among the references.

    Returns:
        `tpir`, queries in percent that are recognised and right where `fpir` percent of strangers are taken for a
        thing, at the `threshold` that does so; `auroc` from 0 to 1: how often the best score of a query is higher
        than that of another one whose class is taken out; and their intervals.
    """
    other = np.maximum(answers.other, answers.distractor.max(axis=1, initial=-np.inf))
    right = answers.own > other
    order = np.argsort(-other, kind="stable")
    recognised = np.flatnonzero(right)
    asking, group = np.unique(answers.labels, return_inverse=True)
    best = np.maximum(answers.own, other)
    below, above = (np.searchsorted(np.sort(other), best, side) for side in ("left", "right"))
    auroc = (below + above).mean() / 2 / len(other)

    def tpir(times: np.ndarray) -> tuple[float, float]:
        """For queries that count so often."""
        strangers = times[order].cumsum()
        kept = int(np.searchsorted(strangers, rate * strangers[-1], side="right"))  # that may be above the threshold
        stranger = other[order[kept]]  # the first that may not
        found = times[recognised[answers.own[recognised] > stranger]].sum()
        return 100 * float(found / strangers[-1]), float(stranger)

    value, threshold = tpir(np.ones(len(other)))
    drawn = [
        tpir(times[group].astype(np.float64))[0]
        for block in drawn_times(len(asking), resamples, seed)
        for times in block
    ]
    return {
        "fpir": 100 * rate,
        "tpir": value,
        "tpir_interval": interval(np.array(drawn), CONFIDENCE),
        "threshold": threshold,
        "auroc": float(auroc),
    }


def identification_metrics(
    embeds: np.ndarray,
    labels: np.ndarray,
    *,
    references: int = 1,
    distractors: np.ndarray | None = None,
    rounds: int = ROUNDS,
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Verification, one-shot identification and open set, see above.

    Args: see `one_shot_answers`.

    Returns:
        Numbers of `images`, `classes`, `references`, `rounds`; and `verification`, `one_shot`, `open_set`, see
        `verification_metrics`, `one_shot_metrics`, `open_set_metrics`.

    Raises:
        ValueError: fewer than two classes, or none with an image to spare.
    """
    embeds, labels = np.ascontiguousarray(embeds, np.float32), np.unique(labels, return_inverse=True)[1]
    classes = int(labels.max()) + 1 if len(labels) else 0
    if classes < 2:
        raise ValueError(f"the images show {classes} things: to tell things apart needs at least 2")
    answers = one_shot_answers(
        embeds, labels, references=references, distractors=distractors, rounds=rounds, seed=seed
    )
    return {
        "images": len(labels),
        "classes": classes,
        "references": references,
        "rounds": rounds,
        "verification": verification_metrics(embeds, labels, resamples=resamples, seed=seed, progress=progress),
        "one_shot": one_shot_metrics(answers, levels_of(distractors), classes, resamples, seed),
        "open_set": open_set_metrics(answers, resamples, seed),
    }
