"""Rows that a model computes once and keeps on disk, found again by what they were computed from.

FOLDER/described.json          what the rows are, for people; its digest is part of the name of the folder
FOLDER/ITEMS.CONTENT.arrow     a shard: a column `key` that names the items, and the columns computed from them

A folder stands for one encoder (weights and preparation), a key for the content of one item. So a changed weight,
setting or item is never answered with an old row, and new items are the only ones that are computed.

A shard gets its name when all of it is on the disk. The name holds a digest of its keys, by which it is found, and a
digest of its bytes, by which damage is noticed. Every process writes shards of its own, and no shard is ever changed.
"""

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hf_vse.data.features import feature_column, feature_values
from hf_vse.files import whole_file, write_text

logger = logging.getLogger(__name__)

KEY, ROWS = "key", "rows"
KEY_ENCODING = "utf-8", "surrogatepass"  # a key may hold the name of a file, which may be no Unicode
DESCRIBED_FILE = "described.json"
SHARD_FILE = re.compile(r"[0-9a-f]{16}\.[0-9a-f]{16}\.arrow")
OWN_FILE = re.compile(r"described\.json|\.described\.\d+\.json|\.?[0-9a-f]{16}\.[0-9a-f]{16}(\.\d+)?\.arrow")
SHARD = 1024  # items
SECONDS = 60.0  # after which a shard is written with fewer items, so that a kill costs little of a slow run

Batches = Iterable[tuple[Sequence[int] | np.ndarray, np.ndarray]]  # places of items, and a row for each: (items, ...)


class Store:
    """The shards in one folder.

    Args:
        folder: holds rows of one encoder only; it is made with the first shard.
        described: text for `described.json`.
    """

    def __init__(self, folder: str | Path, described: str = ""):
        self.folder = Path(folder)
        self.described = described
        self.known: dict[str, tuple[Any, int]] = {}
        self.seen: set[tuple[Path, int]] = set()

    @classmethod
    def of(cls, root: str | Path, kind: str, described: Mapping[str, Any]) -> "Store":
        """The store below `root` of everything that was computed as `described`: weights, preparation, precision."""
        text = json.dumps(described, indent=1, sort_keys=True, default=str)
        return cls(Path(root) / f"{kind}-{digest(text.encode(), 12)}", text)

    def write(self, keys: Sequence[str], columns: Mapping[str, pa.Array]) -> None:
        """Writes a shard: for each key one entry of each column."""
        table = pa.table({KEY: pa.array([key.encode(*KEY_ENCODING) for key in keys], pa.binary())} | dict(columns))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        with whole_file(self.folder / f"{keys_digest(keys)}.{digest(content)}.arrow") as path:
            path.write_bytes(content)
        if self.described and not (self.folder / DESCRIBED_FILE).is_file():
            with suppress(FileNotFoundError):  # two machines wrote it at once, under the same unfinished name
                write_text(self.folder / DESCRIBED_FILE, self.described)

    def find(self, keys: Sequence[str]) -> tuple[Path, pa.Table] | None:
        """The shard that was written for exactly these keys, memory-mapped."""
        for path in sorted(self.folder.glob(f"{keys_digest(keys)}.*.arrow")):
            if (table := whole_table(path)) is not None and keys_of(table) == list(keys):
                return path, table
        return None

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The places of the keys for which no shard has a row."""
        there = self.index()
        return [place for place, key in enumerate(keys) if key not in there]

    def index(self) -> dict[str, tuple[np.ndarray, int]]:
        """For each key the rows of its shard, memory-mapped, and its place in them."""
        shards = (path for path in self.folder.glob("[!.]*") if SHARD_FILE.fullmatch(path.name))
        there = {(path, path.stat().st_ino) for path in shards}  # a file may have taken the place of a damaged one
        for path, _ in sorted(there - self.seen):
            if (table := whole_table(path)) is not None:
                self.add(keys_of(table), feature_values(table.column(ROWS).chunk(0))[1])
        self.seen |= there
        return self.known

    def add(self, keys: Sequence[str], rows: Any) -> None:
        """Knows these rows as well, an array or what is read like one, which lie elsewhere."""
        self.known |= {key: (rows, place) for place, key in enumerate(keys)}

    def fill(self, keys: Sequence[str], batches: Batches, made_by: str) -> None:
        """Writes what is computed batch by batch, in shards: an error loses nothing, a kill at most `SECONDS`.

        Args:
            keys: of all items.
            batches: places in `keys`, and their rows.
            made_by: what computes them, for the error.

        Raises:
            ValueError: a row that is not a number.
        """
        pending: list[tuple[Sequence[int] | np.ndarray, np.ndarray]] = []
        begun = time.monotonic()
        try:
            for places, rows in batches:
                check_rows(places, rows, made_by)
                pending.append((places, rows))
                if sum(len(each) for each, _ in pending) >= SHARD or time.monotonic() - begun > SECONDS:
                    whole, pending = pending, []
                    self.write_batches(keys, whole)
                    begun = time.monotonic()
        finally:
            self.write_batches(keys, pending)

    def write_batches(self, keys: Sequence[str], batches: list[tuple[Sequence[int] | np.ndarray, np.ndarray]]) -> None:
        if batches:
            of_batches = [keys[place] for places, _ in batches for place in places]
            self.write(of_batches, {ROWS: feature_column(np.concatenate([rows for _, rows in batches]))})

    def read(self, keys: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What `fill` has written: for every shard with some of the keys their places and their rows.

        Raises:
            ValueError: rows of different shapes.
        """
        known = self.index()
        of_shard: dict[int, tuple[Any, list[int], list[int]]] = {}
        for place, key in enumerate(keys):
            if key in known:
                shard, row = known[key]
                _, places, rows = of_shard.setdefault(id(shard), (shard, [], []))
                places.append(place)
                rows.append(row)
        shapes = {shard.shape[1:] for shard, _, _ in of_shard.values()}
        if len(shapes) > 1:
            raise ValueError(
                f"{self.folder} holds rows of shapes {' and '.join(map(str, sorted(shapes)))}, "
                "by two encoders that have the same digest: remove the folder"
            )
        for shard, places, rows in of_shard.values():
            yield np.array(places), shard[rows]

    def remove(self) -> None:
        """The shards, and the folder if nothing else is in it; may be repeated wherever it was interrupted."""
        for path in self.folder.glob("*"):
            if OWN_FILE.fullmatch(path.name):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def whole_table(path: Path) -> pa.Table | None:
    """A shard, memory-mapped; None, with one line in the log, where it is damaged."""
    try:
        if digest(pa.memory_map(str(path)).read_buffer()) != path.name.split(".")[1]:
            raise ValueError("its content has changed")
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, ValueError) as error:
        logger.warning("%s is damaged (%s) and not used: its rows are computed again; remove it", path, error)
        return None


def check_rows(places: Sequence[int] | np.ndarray, rows: np.ndarray, made_by: str) -> None:
    """Raises ValueError for a row that is not a number, which would be kept for ever."""
    bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{made_by} gives what is not a number for {bad.sum()} of {len(rows)} inputs, the first is number "
            f"{places[int(bad.argmax())]}: its weights are damaged or its training diverged"
        )


def digest(content: Any, size: int = 8) -> str:
    return blake2b(content, digest_size=size).hexdigest()


def keys_of(table: pa.Table) -> list[str]:
    return [key.decode(*KEY_ENCODING) for key in table.column(KEY).to_pylist()]


def keys_digest(keys: Sequence[str]) -> str:
    return digest(json.dumps(list(keys)).encode())
