"""Known pairs, from a CSV file with the columns `a` and `b`.

A line says that two records are the same. With an empty `b` it says that `a` has no match, with an empty `a` that `b`
has none. A record that the file names is known entirely: the pairs in the file are all that it has.

A column `judged`, where there is one, says what a person said of the pair: `yes`, `no`, or `unsure`, which counts for
nothing. A record that is only in pairs that are not the same counts as one without a match.
"""

import csv
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from io import StringIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from hf_vse.files import read_text
from hf_vse.link.matching import components

Pairs = Sequence[tuple[int | None, int | None]]  # rows of the two catalogues
LEFT_OUT = -1  # the row of a record that has no vector
JUDGED = "judged"
Judgement = Literal["yes", "no", "unsure"]
FEW = 20  # labelled records, below which all of them choose a threshold and judge it


def read_labels(
    path: str | Path,
    first: Mapping[str, int],
    second: Mapping[str, int],
) -> Pairs:
    """The pairs of a file.

    Args:
        first, second: name -> row, or `LEFT_OUT`, of the records of the two catalogues; for duplicates one and the
            same.

    Raises:
        OSError: there is no such file.
        ValueError: no columns a and b, a line that names no record or an unknown one, another judgement than those
            above, no line, or a record that has a match and has none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"labels {path} does not exist: give a CSV file with the columns a and b")
    try:
        reader = csv.DictReader(StringIO(read_text(path), newline=""), strict=True)
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise ValueError(f"labels {path} is not a valid CSV file ({error}): write it again") from error
    if not {"a", "b"} <= set(reader.fieldnames or ()):
        raise ValueError(
            f"labels {path} has the columns {', '.join(reader.fieldnames or ())}: name two of them a and b"
        )
    pairs: dict[str, list[tuple[int | None, int | None]]] = {each: [] for each in get_args(Judgement)}
    for number, line in lines:
        where = f"labels {path}, line {number}"
        rows: list[int | None] = []
        for column, known in (("a", first), ("b", second)):
            name = line[column] or None
            if name is not None and name not in known:
                raise ValueError(f"{where}: {column} is {name!r:.60}, which no record is named")
            rows.append(None if name is None else known[name])
        if rows == [None, None]:
            raise ValueError(f"{where} names no record: fill in a or b")
        pairs[judgement_of(line, where)].append((rows[0], rows[1]))
    if not pairs["yes"] and not pairs["no"]:
        raise ValueError(f"labels {path} has no line that tells anything: write a pair in each")
    for own, other in (("a", "b"), ("b", "a")):
        same = [line for _, line in lines if (line.get(JUDGED) or "yes") == "yes"]
        without = {line[own] for line in same if not line[other]}
        if both := without & {line[own] for line in same if line[other]}:
            raise ValueError(
                f"labels {path} says of {own} {min(both)!r:.60} that it has a match and that it has none: remove one"
            )
    return pairs["yes"] + without_match(pairs["yes"], pairs["no"])


def judgement_of(line: Mapping[str, str | None], where: str) -> Judgement:
    """What a line says of its pair.

    Args:
        where: file and line, for errors.
    """
    said = line.get(JUDGED) or "yes"
    for judgement in get_args(Judgement):
        if said == judgement:
            return judgement
    raise ValueError(f"{where}: {JUDGED} is {said!r:.60}: write one of {', '.join(get_args(Judgement))}")


def without_match(same: Pairs, different: Pairs) -> list[tuple[int | None, int | None]]:
    """The records of pairs that are not the same, as ones without a match, but for those that have one elsewhere."""
    found: list[tuple[int | None, int | None]] = []
    for side in (0, 1):
        matched = {pair[side] for pair in same}
        rows = dict.fromkeys(pair[side] for pair in different if pair[side] not in matched | {None})
        found += [(row, None) if side == 0 else (None, row) for row in rows]
    return found


def truth_of(pairs: Pairs, asking: int) -> dict[int, AbstractSet[int]]:
    """For each record of the asking catalogue (0 or 1) that the pairs name, its matches in the other one.

    What was left out, and the records that match it, are not known.
    """
    truth: dict[int, set[int]] = {}
    for pair in pairs:
        own, other = pair[asking], pair[1 - asking]
        if own is not None:
            truth.setdefault(own, set()).update([] if other is None else [other])
    return {own: matches for own, matches in truth.items() if own != LEFT_OUT and LEFT_OUT not in matches}


def halves(labelled: Sequence[int]) -> tuple[list[int], list[int]]:
    """Those that choose a threshold and those that judge it, drawn with a fixed seed; few do both."""
    if len(labelled) < FEW:
        return list(labelled), list(labelled)
    order = np.random.default_rng(0).permutation(len(labelled))
    middle = len(order) // 2
    return [labelled[place] for place in order[:middle]], [labelled[place] for place in order[middle:]]


def true_clusters(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one catalogue that pairs name, and the cluster of each."""
    named = sorted({row for pair in pairs for row in pair if row is not None and row != LEFT_OUT})
    place = {row: number for number, row in enumerate(named)}
    edges = [(place[a], place[b]) for a, b in pairs if a in place and b in place]
    ends = np.array(edges, np.int64).reshape(-1, 2)
    return np.array(named, np.int64), components(len(named), ends[:, 0], ends[:, 1])
