"""Which thing of a labelled gallery a photograph shows, or that it shows none (open-set identification).

A thing has one or several views: photographs, crops of them, names, sentences. They pool to one vector, the unit mean
of its photographs and that of its texts, weighted like the two of a record (CLIPPINGS, arXiv 2304.03464). One view of
each is enough (one-shot identification of logos, arXiv 2211.12926). A photograph gets the nearest thing, or is unknown
below a threshold:

    things = embed_things(read_records("gallery"), encoder)
    chosen = choose_threshold(things)
    found = identify(things, encode_images(encoder, photographs).embeds.numpy(), chosen.threshold)
    found.things  # for every photograph the row in things.labels, or -1
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from hf_vse.embed.encoder import Encoder
from hf_vse.embed.matrices import mean_of_rows
from hf_vse.link.candidates import NOBODY, find_candidates
from hf_vse.link.labels import halves
from hf_vse.link.metrics import linkage_metrics
from hf_vse.link.pooling import pooled_vectors
from hf_vse.link.records import Records, some_records, vectors_of_records
from hf_vse.link.threshold import FALSE_ACCEPT_RATE, threshold_for_f1, threshold_for_false_accepts

logger = logging.getLogger(__name__)

ENTITY = "entity"  # the field that names a thing, where there is one


@dataclass
class Things:
    """What can be recognised.

    Args:
        labels: a name for each thing, unique.
        embeds: (things, dim) float32 unit vectors.
        views: the records, with the vector of the photograph of each, or of the texts of one that has none.
        owner: (views,) the thing of each.
        photographs: (views,) whether it has a photograph.
    """

    labels: list[str]
    embeds: np.ndarray
    views: Records
    owner: np.ndarray
    photographs: np.ndarray


class Known(NamedTuple):
    """Photographs of which it is known what they show: `embeds` (photographs, dim) and `owner` (photographs,), the
    thing of each, -1 for what is not in the gallery."""

    embeds: np.ndarray
    owner: np.ndarray


class Chosen(NamedTuple):
    """A threshold, in words how it was chosen, and how good it is on photographs that did not choose it."""

    threshold: float
    how: str
    judged: dict[str, float] | None = None
    judged_on: int = 0


class Identified(NamedTuple):
    """For each photograph the row of a thing, or -1 for unknown, its score, the nearest view of that thing, and the
    best thing that it was not taken for; -1 and -inf where there is none."""

    things: np.ndarray
    scores: np.ndarray
    views: np.ndarray
    runners_up: np.ndarray
    runner_up_scores: np.ndarray


def labels_of(records: Records, name: str | None = None) -> list[str]:
    """What each record is a view of.

    Args:
        name: the field; default: `entity` where records have it, else the folder of each image, else the name of the
            record, each of which then is a thing of its own.

    Raises:
        ValueError: a record has no such field, or no single value there.
    """
    fields = [item if isinstance(item, dict) else {} for item in records.items]
    if name is None and any(item.get(ENTITY) is not None for item in fields):
        name = ENTITY
    if name is None:
        folders = [PurePosixPath(str(item.get("file", ""))).parent.as_posix() for item in fields]
        return list(records.names) if "." in folders else folders
    values = records.values(name)
    if None in values:
        raise ValueError(
            f"{records.names[values.index(None)]} of {records.source} has no {name!r}: fill it in, or name another "
            "field with --label"
        )
    return [str(value) for value in values]


def has_labels(records: Records) -> bool:
    """Whether a field or folders say what each record shows, and there is more than one such thing."""
    labels = labels_of(records)
    return labels != records.names and len(set(labels)) > 1


def embed_things(
    records: Records,
    encoder: Encoder,
    image_weight: float = 0.5,
    *,
    label: str | None = None,
    label_is_text: bool = False,
    **options: Any,
) -> Things:
    """Pools the views of each thing.

    Args:
        label: see `labels_of`.
        label_is_text: the label of a thing, in words, is a text of it too.
        options: see `vectors_of_records`.

    Raises:
        ValueError: see `labels_of` and `vectors_of_records`.
    """
    labels = labels_of(records, label)
    if label_is_text:
        first = {each: row for row, each in reversed(list(enumerate(labels)))}
        texts = [[*each] for each in records.texts]
        for each, row in first.items():
            texts[row].append(each.replace("_", " ").replace("-", " "))
        records = replace(records, texts=texts)
    images, sentences = vectors_of_records(records, encoder, image_weight, **options)
    kept = np.flatnonzero(images.any(axis=1) | sentences.any(axis=1))
    records, images, sentences = some_records(records, kept), images[kept], sentences[kept]
    numbers: dict[str, int] = {}
    owner = np.array([numbers.setdefault(labels[row], len(numbers)) for row in kept], np.int64)
    of_images, of_texts = (mean_of_rows(each, owner, len(numbers)) for each in (images, sentences))
    report_kinds(of_images, of_texts, list(numbers), image_weight)
    photographs = np.asarray(images.any(axis=1))
    views = replace(records, embeds=np.where(photographs[:, None], images, sentences))
    return Things(list(numbers), pooled_vectors(of_images, of_texts, image_weight), views, owner, photographs)


def report_kinds(images: np.ndarray, texts: np.ndarray, labels: Sequence[str], image_weight: float) -> None:
    """Warns of things with other kinds of views than most, as photographs score higher with photographs."""
    kinds = np.stack([images.any(axis=1), texts.any(axis=1)], axis=1)
    if image_weight == 1:
        kinds = kinds[:, :1]
    different = (kinds != kinds.mean(axis=0).round().astype(bool)).any(axis=1)
    if different.any():
        logger.warning(
            "%s of %s things (first: %s) lack photographs or texts that the others have, or have more; scores of "
            "different kinds of views are hard to compare: give all the same kinds, or --image_weight 1",
            f"{int(different.sum()):,}",
            f"{len(labels):,}",
            labels[int(different.argmax())],
        )


def known_photographs(things: Things, records: Records, encoder: Encoder, label: str | None, **options: Any) -> Known:
    """The photographs of records and the things that they show, by the labels of both.

    Raises:
        ValueError: a record has no photograph, or none shows a thing of the gallery.
    """
    labels = labels_of(records, label)
    images, _ = vectors_of_records(replace(records, texts=[[] for _ in records.texts]), encoder, 1.0, **options)
    numbers = {each: number for number, each in enumerate(things.labels)}
    owner = np.array([numbers.get(each, NOBODY) for each in labels], np.int64)
    if (owner < 0).all():
        raise ValueError(
            f"no record of {records.source} shows a thing of the gallery (first labels: {labels[0]!r:.60} there, "
            f"{things.labels[0]!r:.60} here): use the same labels, or name their field with --label"
        )
    readable = images.any(axis=1)
    return Known(images[readable], owner[readable])


def identify(things: Things, queries: np.ndarray, threshold: float) -> Identified:
    """The nearest thing of each photograph.

    Args:
        queries: (photographs, dim) float32 unit vectors.
        threshold: the score from which on a photograph shows the nearest thing.
    """
    scores, rows = find_candidates(queries, things.embeds, 2)
    sure = scores[:, 0] >= threshold
    return Identified(
        np.where(sure, rows[:, 0], NOBODY),
        np.where(sure, scores[:, 0], -np.inf),
        np.array([nearest_view(things, *each) for each in zip(queries, rows[:, 0], strict=True)], np.int64),
        np.where(sure, rows[:, 1], rows[:, 0]),
        np.where(sure, scores[:, 1], scores[:, 0]),
    )


def nearest_view(things: Things, query: np.ndarray, thing: int) -> int:
    rows = np.flatnonzero(things.owner == thing)
    return int(rows[(things.views.vectors_of_all[rows] @ query).argmax()])


def stranger_scores(things: Things, known: Known) -> np.ndarray:
    """(photographs,) the score of each with the best thing that it does not show: as if its own were not there."""
    scores, rows = find_candidates(known.embeds, things.embeds, 2)
    return np.where(rows[:, 0] == known.owner, scores[:, 1], scores[:, 0])


def choose_threshold(
    things: Things,
    known: Known | None = None,
    *,
    threshold: float | None = None,
    false_accept_rate: float | None = None,
) -> Chosen:
    """The score from which on a photograph shows a thing.

    By a rate: the share of photographs of other things than those of the gallery that may be taken for one of them. It
    is the quantile of what photographs score with the best thing that they do not show. Without known photographs, or
    with too few, those are the photographs of the gallery, each compared with all other things.

    Args:
        known: half of them choose, the other half judge; fewer than 20 do both.
        threshold: given; then it is only judged.
        false_accept_rate: default: the highest F1 on `known`, and without them 0.01.

    Raises:
        ValueError: nothing tells how alike strangers are.
    """
    choose, judge = (None, None) if known is None else halves_of(known)
    if threshold is not None:
        return judged(things, Chosen(threshold, "given"), known)
    if choose is not None and false_accept_rate is None:
        scores, rows = find_candidates(choose.embeds, things.embeds, 1)
        true_pairs = int((choose.owner >= 0).sum())
        found = threshold_for_f1(scores[:, 0], rows[:, 0] == choose.owner, true_pairs)
        return judged(things, Chosen(found, f"highest F1 on {len(choose.owner):,} known photographs"), judge)
    rate = FALSE_ACCEPT_RATE if false_accept_rate is None else false_accept_rate
    asked, what = choose, "known photographs"
    if asked is None:
        asked = Known(things.views.vectors_of_all[things.photographs], things.owner[things.photographs])
        what = "photographs of the gallery"
    if len(things.labels) < 2 or not len(asked.owner):
        raise ValueError(
            "nothing tells how alike strangers are: the gallery has one thing alone, or no photograph; give "
            "--threshold NUMBER, or --labelled"
        )
    if rate * len(asked.owner) < 1:
        logger.warning(
            "a false-accept rate of %g cannot be told from %d photographs; the threshold is about the highest score "
            "of any with another thing than its own", rate, len(asked.owner),
        )  # fmt: skip
    found = threshold_for_false_accepts(stranger_scores(things, asked), rate)
    how = f"false-accept rate {rate:g}, from {len(asked.owner):,} {what} and the things that they do not show"
    return judged(things, Chosen(found, how), judge)


def halves_of(known: Known) -> tuple[Known, Known]:
    """Those that choose a threshold, and those that judge it."""
    choose, judge = halves(list(range(len(known.owner))))
    return Known(known.embeds[choose], known.owner[choose]), Known(known.embeds[judge], known.owner[judge])


def judged(things: Things, chosen: Chosen, known: Known | None) -> Chosen:
    """With metrics on photographs, if there are any: `accuracy` (unknown is right for strangers), `precision`,
    `recall` and `f1` of what was recognised, `top1` of those that show a thing, whatever the score, and
    `false_accept_rate`: of all, each as if its own thing were not in the gallery."""
    if known is None:
        return chosen
    found = identify(things, known.embeds, chosen.threshold)
    best = np.where(found.things >= 0, found.things, found.runners_up)
    truth = {row: {own} if own >= 0 else set() for row, own in enumerate(known.owner.tolist())}
    links = {row: thing if thing >= 0 else None for row, thing in enumerate(found.things.tolist())}
    metrics = linkage_metrics(links, truth)
    del metrics["ari"]
    enrolled = known.owner >= 0
    metrics["top1"] = float((best == known.owner)[enrolled].mean()) if enrolled.any() else float("nan")
    metrics["false_accept_rate"] = float((stranger_scores(things, known) >= chosen.threshold).mean())
    return chosen._replace(judged=metrics, judged_on=len(known.owner))
