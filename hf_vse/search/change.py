"""A large gallery changes by what is new and what is gone; the segments that it has are linked into the new version.

Until `finish` nothing is seen of it. Too many dead rows, or too many segments, and the whole is written anew.
"""

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_vse.search import segments
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.header import FAISS_FILE, FORMAT, items_file, read_header, vectors_file
from hf_vse.search.plan import EXACT_VALUES, choose_plan
from hf_vse.search.segments import read_segments, write_dead, write_segment, write_segments
from hf_vse.search.storage import (
    check_listed_files,
    locked,
    make_current,
    new_version,
    remove_leftovers,
    version_folder,
)
from hf_vse.search.store import GalleryRow
from hf_vse.search.vectors import SMALL_SUBSET, check_unit

logger = logging.getLogger(__name__)

GROWS_ABOVE = EXACT_VALUES  # numbers; smaller galleries are written as a whole, in the order of their source
MOST_DEAD = 0.2  # of the rows
MOST_SEGMENTS = 128


class GalleryChange:
    """See above.

    Args:
        folder: of the gallery; checked by `check_place`.
        facts: as in the header.
        options: `kind` and `recall` of the index.
        is_locked: the caller holds the lock.
    """

    def __init__(
        self, folder: Path, facts: dict[str, Any], dim: int, options: dict[str, Any], is_locked: bool = False
    ):
        self.folder, self.options, self.is_locked = folder, options, is_locked
        self.has_hubs = bool(facts.get("hubs"))  # they are found among all, which have to be in memory
        self.base, self.header = base_of(folder, facts, dim, options)
        self.pending: dict[str, tuple[GalleryRow, np.ndarray]] = {}
        self.written: list[dict[str, Any]] = []
        self.gone: set[str] = set()
        self.stack = ExitStack()
        self.version: Path | None = None

    def versions(self) -> dict[str, str]:
        """Name -> version of what is there and stays."""
        if self.base is None:
            return {}
        items = self.base.items
        assert isinstance(items, segments.SegmentItems)  # a base was read from a folder
        columns = [items.column(name).to_numpy() for name in ("name", "version")]
        half = segments.VERSION_BYTES
        return {
            columns[0][row].hex(): f"{columns[1][row][:half].hex()}.{columns[1][row][half:].hex()}"
            for row in self.base.rows
        }

    def upsert(self, rows: Sequence[GalleryRow], embeds: np.ndarray) -> None:
        check_unit(embeds, f"vectors for {self.folder}")
        self.pending |= {row.name: (row, each) for row, each in zip(rows, embeds, strict=True)}
        self.gone -= {row.name for row in rows}
        if len(self.pending) >= segments.SEGMENT_ROWS and not self.has_hubs:
            self.spill()

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self.pending.pop(name, None)
        self.gone.update(names)

    def open(self) -> Path:
        if self.version is None:
            if not self.is_locked:
                self.stack.enter_context(locked(self.folder))
            self.version = self.stack.enter_context(new_version(self.folder))
        return self.version

    def spill(self) -> None:
        if self.pending:
            rows, embeds = zip(*self.pending.values(), strict=True)
            self.written.append(write_segment(self.open(), rows, np.stack(embeds)))
            self.pending = {}

    def finish(self, facts: dict[str, Any]) -> None:
        """Makes all of it the gallery."""
        with self.stack:
            self.spill()
            dead = self.dead_of_base()
            if self.base is not None and not (self.written or dead.any()):
                known = {name: fact for name, fact in self.base.facts.items() if name != "fields"}
                if facts == known:
                    return
            self.complete(self.open(), facts, dead)
            remove_leftovers(self.folder)

    def dead_of_base(self) -> np.ndarray:
        """(rows of the base,) booleans, with those that were dead before."""
        if self.base is None:
            return np.zeros(0, bool)
        dead = np.zeros(len(self.base.everything), bool) if self.base.alive is None else ~self.base.alive
        assert isinstance(self.base.everything, segments.SegmentItems)  # it was read from a folder
        return dead | among(self.base.everything.column("name"), self.names_of_written() + self.gone_names())

    def names_of_written(self) -> list[pa.Array]:
        return [segments.read_table(self.open() / items_file(each["name"])).column("name") for each in self.written]

    def gone_names(self) -> list[pa.Array]:
        return [pa.array(map(bytes.fromhex, self.gone), segments.ROW_COLUMNS["name"])]

    def dead_of_written(self) -> np.ndarray:
        """Rows that were written again, or deleted, later."""
        dead, later = [np.zeros(0, bool)], self.gone_names()
        for names in reversed(self.names_of_written()):
            dead.append(among(names, later))
            later.append(names)
        return np.concatenate(dead[::-1])

    def complete(self, version: Path, facts: dict[str, Any], dead: np.ndarray) -> None:
        kept = self.header["segments"] if self.header else []
        linked = self.link(version, kept) if self.header else {}
        everything = kept + self.written
        dim = self.base.embeds.shape[1] if self.base is not None else 0
        if not everything:
            raise ValueError(f"{self.folder} would hold no items: there is nothing to search")
        if not dim:
            dim = segments.read_array(version / vectors_file(everything[0]["name"]), "embeds", check=False).shape[1]
        alive = ~np.concatenate([dead, self.dead_of_written()])
        if not alive.any():
            raise ValueError(f"{self.folder} would hold no items: there is nothing to search")
        items, embeds = read_segments(version, {"segments": everything, "dim": dim})
        too_many = len(everything) > MOST_SEGMENTS or (~alive).sum() > MOST_DEAD * len(alive)
        base = None if too_many else self.base  # to grow
        plan = choose_plan(int(alive.sum()), dim, self.options["kind"]) if base is None else base.plan
        gallery = GalleryIndex.without_index(embeds, items, dict(facts), plan, None if alive.all() else alive)
        if base is None and not alive.all():
            everything = write_segments(version, gallery.stored())
            for path in list(version.iterdir()):
                if not any(each["name"] in path.name for each in everything):
                    path.unlink()
            linked = {}
            items, embeds = read_segments(version, {"segments": everything, "dim": dim})
            gallery = GalleryIndex.without_index(embeds, items, dict(facts), plan)
        indexed = self.index(version, gallery, linked, base)
        if gallery.alive is not None:
            write_dead(version, gallery.alive)
        shape = {"items": len(gallery), "dim": dim, "plan": gallery.plan.to_dict(), "indexed": indexed}
        shape |= {"segments": everything, "settings": index_settings(self.options), "recipe": None}
        make_current(self.folder, version, shape | facts | {"fields": gallery.fields}, linked)

    def link(self, version: Path, kept: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Links the files of segments into the new version; what the header says of them."""
        names = [of(each["name"]) for each in kept for of in (items_file, vectors_file)]
        for name in names:
            link(version_folder(self.folder, self.header["version"]) / name, version / name)
        return {name: self.header["files"][name] for name in names}

    def index(self, version: Path, gallery: GalleryIndex, linked: dict[str, Any], base: GalleryIndex | None) -> int:
        """The index of the vectors: that of the base, which grows when too much is not in it, or a new one.

        Returns:
            How many rows are in it.
        """
        count = len(gallery.vectors.embeds)
        if base is None:
            gallery.vectors.build(None, self.options["recall"], progress=False)
            gallery.vectors.save(version / FAISS_FILE)
            return count
        if base.plan.kind == "exact":
            return count
        indexed = base.vectors.faiss.ntotal
        if count - indexed <= SMALL_SUBSET:
            link(version_folder(self.folder, self.header["version"]) / FAISS_FILE, version / FAISS_FILE)
            linked[FAISS_FILE] = self.header["files"][FAISS_FILE]
            return indexed
        gallery.vectors.faiss = base.vectors.faiss
        gallery.vectors.add(indexed)
        gallery.vectors.save(version / FAISS_FILE)
        return count


def base_of(
    folder: Path, facts: dict[str, Any], dim: int, options: dict[str, Any]
) -> tuple[GalleryIndex | None, dict[str, Any]]:
    """The gallery that a change adds to, all of it verified, and its header; None and {} if it is small, or of another
    model or index."""
    try:
        header = read_header(folder)
        small = header["items"] * header["dim"] <= GROWS_ABOVE
        known = (header["format"], header["dim"], header.get("digest"), header.get("settings"))
        if small or known != (FORMAT, dim, facts.get("digest"), index_settings(options)) or facts.get("hubs"):
            return None, {}
        check_listed_files(folder, header, header["files"], whole=True)
        base = GalleryIndex.of_version(folder, header)
        return (None, {}) if base.hubs is not None else (base, header)
    except FileNotFoundError:
        return None, {}
    except (OSError, ValueError) as error:
        logger.warning("the gallery in %s is not used (%s): it is written anew", folder, error)
        return None, {}


def index_settings(options: dict[str, Any]) -> str:
    return f"{options['kind']} {options['recall']}"


def among(names: pa.Array | pa.ChunkedArray, others: Sequence[pa.Array]) -> np.ndarray:
    found = pc.is_in(names, value_set=pa.chunked_array(others, segments.ROW_COLUMNS["name"]).combine_chunks())
    return found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy()


def link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
