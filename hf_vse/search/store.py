"""What a store of galleries does: a folder on this machine, or an engine that others run at scale.

A store is opened from its location by `open_store` in `locations.py`. To write to it:

    store.begin(facts, dim, count)      what the gallery is to be: its model, and room for so many vectors
    store.versions()                    name -> version of what is there, so that only what differs is written
    store.upsert(rows, embeds)          new or changed rows, any number of times
    store.delete(names)
    store.finish(facts)                 from now on searches see the whole gallery

and `build`, which does all of it for images. Names and versions are digests, so that they have one size everywhere.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from hf_vse.embed.hub_correction import Correction
from hf_vse.search.plan import Plan

if TYPE_CHECKING:  # galleries are read without them
    from datasets import Dataset

    from hf_vse.embed.encoder import Encoder

NAME_BYTES, VERSION_BYTES = 16, 8
READ_AT_ONCE = 1000  # rows
OF_THE_STORE = ("plan", "items", "dim")  # facts that every store finds itself


class GalleryRow(NamedTuple):
    """An item of a gallery without its vector.

    Args:
        name: digest of what identifies it: its file, or else the content of its image; see `named_rows`.
        key: changes with its image.
        item: what the gallery says of it.
        place: its row in a data set or an array; 0 in a folder, whose files are sorted by name.
        normalizer, active: whether it is a hub, see `QueryBank`.
    """

    name: str
    key: str
    item: Any
    place: int = 0
    normalizer: float = 0.0
    active: bool = False

    def version(self, bank: str = "") -> str:
        """Two digests: of the image, and of what is said of it, of which the bank of queries is a part."""
        return f"{hexadecimal(self.key, VERSION_BYTES)}.{hexadecimal([self.item, self.place, bank], VERSION_BYTES)}"


class GallerySource(Protocol):
    """What a gallery can be made of: unit vectors and what is known of their images."""

    location: str

    @property
    def facts(self) -> dict[str, Any]:
        """What is recorded: `model`, `digest`, `encoder`, `root`, `origin`, `fields`, `broken`, ...

        Raises:
            OSError: there is no gallery, or it cannot be reached.
            ValueError: it is damaged.
        """

    def __len__(self) -> int: ...

    def rows(self) -> Iterator[tuple[list[GalleryRow], np.ndarray]]:
        """All rows with their vectors (rows, dim), some at a time."""


class GalleryStore(GallerySource, Protocol):
    """A gallery in one place, to search and to change."""

    @property
    def model(self) -> str | None: ...

    @property
    def plan(self) -> Plan:
        """How it is searched, and the recall that was measured."""

    def check_model(self, model: Any) -> None:
        """Raises ValueError if `model`, a name or an `Encoder`, is not what made the gallery."""

    def check_conditions(self, where: Sequence[str]) -> None:
        """Raises ValueError for a condition that cannot be asked, see `filters.py`."""

    def search(
        self,
        queries: Any,
        k: int = 10,
        model: Any = None,
        where: Sequence[str] = (),
        correction: Correction | None = None,
    ) -> tuple[np.ndarray, list[list[Any]]]:
        """Scores (queries, k) and items, best first; see `GalleryIndex.search`.

        Raises:
            OSError: the store does not answer, or only for a part of its rows.
        """

    def check_place(self, source: str | None = None) -> None:
        """Raises OSError or ValueError, before the work, if nothing can be written there."""

    def build(self, source: "str | Dataset", encoder: "Encoder", **options: Any) -> None:
        """Encodes what is new or changed of a folder or a data set; options as of `build_gallery`."""

    def build_of_vectors(
        self, embeds: np.ndarray, items: Sequence[Any] | None, encoder: "Encoder", **options: Any
    ) -> None:
        """The same for vectors that exist already; options `kind`, `recall`, `query_bank`, `progress`."""

    def begin(self, facts: dict[str, Any], dim: int, count: int, kind: str = "auto", recall: float = 0.95) -> None: ...

    def versions(self) -> dict[str, str]:
        """Name -> version of the rows that are there and made by the model of `begin`."""

    def upsert(self, rows: Sequence[GalleryRow], embeds: np.ndarray) -> None: ...

    def delete(self, names: Sequence[str]) -> None: ...

    def finish(self, facts: dict[str, Any]) -> None: ...


def hexadecimal(value: Any, size: int) -> str:
    return blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=size).hexdigest()


def named_rows(keys: Sequence[str], items: Sequence[Any]) -> list[GalleryRow]:
    """Rows with names that stay the same when others come or go; those of one file or image are numbered."""
    seen: Counter[str] = Counter()
    rows = []
    for place, (key, item) in enumerate(zip(keys, items, strict=True)):
        is_file = isinstance(item, dict) and "file" in item
        base = str(item["file"]) if is_file else key
        sorted_by_file = is_file and "row" not in item
        name = hexadecimal([base, seen[base]], NAME_BYTES)
        rows.append(GalleryRow(name, key, item, 0 if sorted_by_file else place))
        seen[base] += 1
    return rows


def keys_of_vectors(embeds: np.ndarray) -> list[str]:
    """A key for each of (items, dim), where no image is known."""
    rows = (np.ascontiguousarray(each, np.float32).data for each in embeds)
    return [blake2b(each, digest_size=NAME_BYTES).hexdigest() for each in rows]


def in_order(row: GalleryRow) -> tuple[int, tuple[str, ...], str]:
    """The order of a folder: by place, then by file as its builder sorts them."""
    file = row.item.get("file") if isinstance(row.item, dict) else None
    return row.place, () if file is None else PurePosixPath(str(file)).parts, row.name


def move_gallery(source: GallerySource, target: GalleryStore, kind: str = "auto", recall: float = 0.95) -> None:
    """Copies a gallery into another store, vectors untouched; only what is new, changed or gone there is written."""
    facts = {name: value for name, value in source.facts.items() if name not in OF_THE_STORE}
    bank = (facts.get("hubs") or {}).get("bank", "")
    there: dict[str, str] | None = None
    seen: set[str] = set()
    for rows, embeds in source.rows():
        if there is None:
            target.begin(facts, embeds.shape[1], len(source), kind, recall)
            there = target.versions()
        seen.update(row.name for row in rows)
        changed = [place for place, row in enumerate(rows) if there.get(row.name) != row.version(bank)]
        if changed:
            target.upsert([rows[place] for place in changed], embeds[changed])
    if there is None:
        raise ValueError(f"{source.location} holds no items: there is nothing to move")
    target.delete([name for name in there if name not in seen])
    target.finish(facts)
