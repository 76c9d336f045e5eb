"""Links as a CSV file, in one line for each record that asks, and which of them are the least certain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_vse.files import check_output_file, write_table
from hf_vse.link.run import Linkage

COLUMNS = ("a", "b", "score", "runner_up", "runner_up_score")
CLUSTER = "cluster"


def check_links_file(path: str | Path, columns: Sequence[str] = COLUMNS, what: str = "links") -> Path:
    """The path, if links, or a table of other columns, can be written there: it is new, or holds such a table.

    Raises:
        OSError, ValueError: it cannot be written, or holds something else.
    """
    path = check_output_file("--output", path)
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            header = file.readline(200)
        if not header.startswith(",".join(columns).encode()):
            raise ValueError(f"--output {path} is there and holds no {what}: give another name, or remove it")
    return path


def write_links(linkage: Linkage, path: Path) -> None:
    """Writes the links, whole or not at all.

    `a` and `b` are the names of the linked records; one of them is empty where a record has no match, and
    `runner_up`, the best candidate that was not linked, then is the best of all. Of one catalogue, `b` is the best
    duplicate of `a`, and `cluster` names the first record of its cluster.
    """
    columns = COLUMNS if linkage.clusters is None else (*COLUMNS, CLUSTER)
    write_table(path, columns, (line_of(linkage, row) for row in range(len(linkage.asking))))


def line_of(linkage: Linkage, row: int) -> list[Any]:
    own, others = linkage.asking.names[row], linkage.others.names
    link, runner_up = int(linkage.links[row]), int(linkage.runners_up[row])
    pair = [own, others[link] if link >= 0 else ""]
    pair = pair[::-1] if linkage.mode == "one_to_many" else pair
    line = [*pair, number(linkage.scores[row]), others[runner_up] if runner_up >= 0 else ""]
    line.append(number(linkage.runner_up_scores[row]))
    return line if linkage.clusters is None else [*line, others[int(linkage.clusters[row])]]


def number(score: float) -> str:
    return f"{score:.6f}" if np.isfinite(score) else ""


def least_certain(linkage: Linkage, count: int) -> np.ndarray:
    """The rows of the records that are nearest to another decision, the nearest first.

    A link could have been refused, or gone to its runner-up (not in clusters, where both may be right); a record
    without a match could have been linked to its best candidate. Records without a candidate are certain.
    """
    above = linkage.scores - linkage.threshold
    if linkage.clusters is None:
        before_runner_up = np.where(linkage.runners_up >= 0, linkage.scores - linkage.runner_up_scores, np.inf)
        above = np.minimum(above, before_runner_up)
    distance = np.where(linkage.links >= 0, above, np.abs(linkage.threshold - linkage.runner_up_scores))
    order = np.argsort(distance, kind="stable")
    return order[np.isfinite(distance[order])][:count]


def linkage_summary(linkage: Linkage) -> dict[str, Any]:
    """Counts, threshold and metrics, for a person and as JSON."""
    linked = linkage.links >= 0
    record: dict[str, Any] = {"mode": linkage.mode, "records": len(linkage.asking)}
    if linkage.clusters is None:
        record |= {"others": len(linkage.others), "links": int(linked.sum()), "without": int((~linked).sum())}
        record["others_linked"] = len(np.unique(linkage.links[linked]))
    else:
        sizes = np.unique(linkage.clusters, return_counts=True)[1]
        record |= {"clusters": len(sizes), "with_duplicates": int((sizes > 1).sum())}
        record |= {"duplicates": int((sizes - 1).sum()), "largest": int(sizes.max())}
    record |= {"threshold": round(linkage.threshold, 6), "chosen": linkage.chosen}
    record["left_out"] = linkage.asking.left_out + (linkage.others.left_out if linkage.clusters is None else [])
    if linkage.judged:
        judged = {by: {name: round(value, 4) for name, value in of.items()} for by, of in linkage.judged.items()}
        record |= {"metrics": judged, "judged_on": linkage.judged_on}
    return record
