"""Links that `hf-vse link` has written, read again so that a person judges them, and what the person says.

    LINKS.csv           the links, see `output.py`
    LINKS.csv.json      where the two catalogues are, the mode and the threshold
    LINKS.judged.csv    judgements: columns a, b and judged, as `read_labels` takes it

The judgements are of pairs. They are written after each one, whole or not at all.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import numpy as np

from hf_vse.files import check_output_file, read_json, read_text, write_json, write_table
from hf_vse.link.candidates import NOBODY
from hf_vse.link.labels import JUDGED, Judgement, judgement_of
from hf_vse.link.output import CLUSTER, COLUMNS, least_certain
from hf_vse.link.records import absolute_source, read_records, some_records
from hf_vse.link.run import Linkage, Mode, asking_side

FIELDS = ("a", "b", JUDGED)  # of judgements
DESCRIBED = ("a", "b", "name", "text", "mode", "threshold", "chosen")


def described_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def check_described_file(path: Path) -> None:
    """Checks that `write_description` can write beside the links: nothing is there, or what it has written.

    Raises:
        OSError, ValueError: it cannot be written, or holds something else.
    """
    file = check_output_file("--output", described_file(path))
    if file.is_file() and not set(DESCRIBED) <= read_json(file, dict).keys():
        raise ValueError(f"{file}, which goes with --output, holds something else: give another --output")


def write_description(linkage: Linkage, path: Path, name: str | None, text: str) -> None:
    """Writes what the links do not say: the catalogues, and how they were read (see `read_records`)."""
    sources = [absolute_source(str(each.source)) for each in (linkage.asking, linkage.others)]
    first, second = reversed(sources) if linkage.mode == "one_to_many" else sources
    both = first, None if linkage.mode == "clusters" else second
    facts = (*both, name, text, linkage.mode, linkage.threshold, linkage.chosen)
    write_json(described_file(path), dict(zip(DESCRIBED, facts, strict=True)))


def read_description(path: str | Path) -> dict[str, Any]:
    """What `write_description` has written beside links.

    Raises:
        OSError, ValueError: there are no links, or nothing beside them says where the records are.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"links {path} does not exist: give a file that `hf-vse link` has written")
    file = described_file(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist, which says where the records are: run `hf-vse link` again")
    facts = read_json(file, dict)
    if missing := [name for name in DESCRIBED if name not in facts]:
        raise ValueError(f"{file} has no {missing[0]!r}: run `hf-vse link` again")
    if facts["mode"] not in get_args(Mode):
        raise ValueError(f"{file}: mode is {facts['mode']!r:.60}: run `hf-vse link` again")
    return facts


def read_links(path: str | Path) -> Linkage:
    """The links of a file with their records, which have no vectors.

    Raises:
        OSError, ValueError: see `read_description` and `read_records`, or the links are not of these catalogues.
    """
    path, facts = Path(path), read_description(path)
    how = facts["name"], facts["text"]
    first = read_records(facts["a"], *how)
    second = first if facts["b"] is None else read_records(facts["b"], *how)
    asking, others = (second, first) if facts["mode"] == "one_to_many" else (first, second)
    reader = csv.DictReader(StringIO(read_text(path), newline=""))
    lines = list(reader)
    if tuple(reader.fieldnames or ())[: len(COLUMNS)] != COLUMNS or not lines:
        raise ValueError(f"{path} holds no links: give a file that `hf-vse link` has written")
    own, other = ("a", "b")[:: -1 if asking_side(facts["mode"]) else 1]
    place, rows_of = ({as_written(name): row for row, name in enumerate(each.names)} for each in (others, asking))

    def row_in(known: dict[str, int], name: str | None) -> int:
        if name and name not in known:
            raise ValueError(f"{path} names {name!r:.60}, which its catalogues do not have: run `hf-vse link` again")
        return known[name] if name else NOBODY

    rows = [row_in(rows_of, line[own]) for line in lines]
    numbers = {name: np.array([score_of(line[name]) for line in lines]) for name in ("score", "runner_up_score")}
    clusters = None
    if facts["mode"] == "clusters":
        clusters = np.array([row_in(place, line[CLUSTER]) for line in lines], np.int64)
    return Linkage(
        mode=facts["mode"],
        asking=some_records(asking, np.array(rows)),
        others=others,
        threshold=facts["threshold"],
        chosen=facts["chosen"],
        links=np.array([row_in(place, line[other]) for line in lines], np.int64),
        scores=numbers["score"],
        runners_up=np.array([row_in(place, line["runner_up"]) for line in lines], np.int64),
        runner_up_scores=numbers["runner_up_score"],
        clusters=clusters,
    )


def as_written(name: str) -> str:
    """A name as it is in a table: half a character is escaped, see `write_table`."""
    return name.encode(errors="backslashreplace").decode()


def score_of(cell: str) -> float:
    return float(cell) if cell else -math.inf


def questions(linkage: Linkage) -> list[int]:
    """The rows of the asking records that a person is asked about, the least certain first.

    Of two records that are each other's best duplicate one is asked about.
    """
    rows, seen = [], set()
    for row in least_certain(linkage, len(linkage.asking)).tolist():
        pair = frozenset((linkage.asking.names[row], linkage.others.names[proposed(linkage, row)]))
        if linkage.clusters is None or pair not in seen:
            rows.append(row)
        seen.add(pair)
    return rows


def proposed(linkage: Linkage, row: int) -> int:
    """What a record may be the same as: its link, else its best candidate."""
    return int(linkage.links[row] if linkage.links[row] >= 0 else linkage.runners_up[row])


class Judgements:
    """What a person says of pairs of records, one pair of each asking record, kept in a file.

    Args:
        path: the file; it is read if it is there.
        linkage: of the pairs.

    Raises:
        OSError, ValueError: it cannot be written, or is no such file of these records.
    """

    def __init__(self, path: Path, linkage: Linkage):
        self.path = check_output_file("judgements", path)
        self.linkage = linkage
        self.side = asking_side(linkage.mode)
        self.of: dict[int, tuple[int, Judgement]] = {}  # asking row -> row of the other, judgement; in order
        self._lock = Lock()
        if path.is_file():
            self._read()

    def judge(self, row: int, other: int, judgement: Judgement) -> None:
        """Keeps what is said of a pair, instead of what was said of this asking record before."""
        with self._lock:
            self.of[row] = other, judgement
            write_table(self.path, FIELDS, self._lines())

    def text(self) -> str:
        """The content of the file."""
        return read_text(self.path) if self.path.is_file() else f"{','.join(FIELDS)}\n"

    def _lines(self) -> Iterator[tuple[str, ...]]:
        for row, (other, judgement) in self.of.items():
            pair = self.linkage.asking.names[row], self.linkage.others.names[other]
            yield *(pair[::-1] if self.side else pair), judgement

    def _read(self) -> None:
        known = [{as_written(name): row for row, name in enumerate(each.names)} for each in self._catalogues()]
        reader = csv.DictReader(StringIO(read_text(self.path), newline=""))
        if not set(FIELDS) <= set(reader.fieldnames or ()):
            raise ValueError(f"{self.path} holds no judgements of links: move it away")
        for line in reader:
            where = f"{self.path}, line {reader.line_num}"
            for column, names in zip("ab", known, strict=True):
                if line[column] not in names:
                    raise ValueError(
                        f"{where}: {column} is {line[column]!r:.60}, which these links do not have: move it away"
                    )
            rows = known[0][line["a"]], known[1][line["b"]]
            self.of[rows[self.side]] = rows[1 - self.side], judgement_of(line, where)

    def _catalogues(self) -> Sequence[Any]:
        both = self.linkage.asking, self.linkage.others
        return both[::-1] if self.side else both


def judged_file(links: Path) -> Path:
    return links.with_name(f"{links.stem}.judged.csv")
