"""A gallery that is indexed once and queried often.

INDEX/gallery.json            its model, its index and measured recall, and what was left out
INDEX/versions/VERSION/
    items-SEGMENT.arrow       what the vectors represent
    vectors-SEGMENT.safetensors
    dead.safetensors          rows that are no longer in it; see `segments.py`
    index.faiss               the FAISS index of its first rows, unless the search is exact
    hubs.safetensors          which items are hubs, if a query bank was given

Items and vectors stay memory-mapped. `storage.py` replaces a gallery safely while others read it. Format 3, with
`items.jsonl`, `gallery.safetensors` and `keys.json`, is read as well; the next `hf-vse index` writes format 4.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_vse.data.features import read_array
from hf_vse.embed.hub_correction import Correction, QueryBank
from hf_vse.embed.matrices import as_vectors, best_of
from hf_vse.files import numbered_lines, parse_json, read_json
from hf_vse.search.filters import Fields, check_conditions, item_fields, matching, parse_conditions
from hf_vse.search.header import (
    DEAD_FILE,
    FAISS_FILE,
    FORMAT,
    HEADER_FILE,
    HUBS_FILE,
    ITEMS_FILE,
    KEYS_FILE,
    NOT_FACTS,
    OLD_FORMAT,
    VECTORS_FILE,
    json_digest,
    read_header,
)
from hf_vse.search.plan import Plan, bytes_on_disk, choose_plan
from hf_vse.search.queries import check_made_by, checked_queries
from hf_vse.search.segments import (
    SEGMENT_ROWS,
    SegmentItems,
    SegmentVectors,
    of_rows,
    read_alive,
    read_segments,
    write_segments,
)
from hf_vse.search.storage import (
    check_listed_files,
    check_place,
    locked,
    make_current,
    new_version,
    remove_leftovers,
    version_folder,
)
from hf_vse.search.store import GalleryRow, keys_of_vectors, named_rows
from hf_vse.search.vectors import TARGET_RECALL, VectorIndex, check_unit

CORRECTED = 10  # candidates per result that are corrected
MOST_MASKS = 16  # of conditions, kept for the next query

Where = Sequence[str] | Callable[[Any], bool]


class GalleryIndex:
    """Unit vectors and the items that they represent.

    Args:
        embeds: (items, dim) unit vectors, kept as float16 or float32.
        items: one per vector, any JSON value: a file name, an id, a dict; default: its row.
        model: name of the model that made the vectors; queries must come from the same model.
        kind: `auto`, or `exact`, `ivf`, `hnsw`, `pq`, see `plan.py`.
        queries: vectors of typical queries, to tune and measure an approximate index.
        recall: share of the ten nearest neighbours that an approximate index should find.

    Example:
        index = GalleryIndex(image_embeds, file_names, model="org/vse-hardnce")
        index.save("gallery")
        scores, items = GalleryIndex.load("gallery").search(text_embeds, k=5)
    """

    def __init__(
        self,
        embeds: Any,
        items: Sequence[Any] | None = None,
        model: str | None = None,
        *,
        kind: str = "auto",
        queries: Any = None,
        recall: float = TARGET_RECALL,
        progress: bool = False,
    ):
        vectors = as_vectors("embeds", embeds)
        vectors = np.ascontiguousarray(vectors, np.float16 if vectors.dtype == np.float16 else np.float32)
        check_unit(vectors, "embeds")
        queries = None if queries is None else np.asarray(queries, np.float32)
        self.take(vectors, items, {"model": model}, choose_plan(len(vectors), vectors.shape[1], kind))
        self.vectors.build(queries, recall, progress)

    def take(
        self,
        embeds: np.ndarray | SegmentVectors,
        items: Sequence[Any] | None,
        facts: dict[str, Any],
        plan: Plan,
        alive: np.ndarray | None = None,
    ) -> "GalleryIndex":
        """Sets all parts of a gallery except the FAISS index.

        Args:
            alive: which rows are in the gallery; default: all.
        """
        everything = items if isinstance(items, SegmentItems) else list(range(len(embeds)) if items is None else items)
        if len(everything) != len(embeds):
            raise ValueError(f"there are {len(everything)} items for {len(embeds)} vectors; give one for each")
        self.everything = everything  # with what is dead, as `vectors` and `hubs`
        self.alive = alive
        self.facts = facts
        self.vectors = VectorIndex(embeds, plan)
        self.masks: dict[tuple[str, ...], np.ndarray] = {}
        self.hubs: QueryBank | None = None
        self.keys: Sequence[str] | None = None  # of the images of a gallery of format 3
        return self

    @classmethod
    def without_index(cls, *parts: Any) -> "GalleryIndex":
        """A gallery whose `vectors` are built or loaded later; see `take`."""
        return cls.__new__(cls).take(*parts)

    @classmethod
    def build(cls, source: Any, encoder: Any, folder: str | Path, **options: Any) -> "GalleryIndex":
        """Encodes a folder of photographs or a data set into `folder`; see `build_gallery`."""
        from hf_vse.search.build import build_gallery

        return build_gallery(source, encoder, folder, **options)

    def __len__(self) -> int:
        return len(self.everything) if self.alive is None else len(self.rows)

    @cached_property
    def rows(self) -> np.ndarray:
        """(items,) the places of the items among all that is stored."""
        return np.arange(len(self.everything)) if self.alive is None else np.flatnonzero(self.alive)

    @property
    def items(self) -> Sequence[Any]:
        if self.alive is None:
            return self.everything
        assert isinstance(self.everything, SegmentItems)  # only what was read from a folder has dead rows
        return self.everything.only(self.rows)

    @property
    def embeds(self) -> np.ndarray | SegmentVectors:
        """(items, dim) float32 or float16."""
        return self.vectors.embeds if self.alive is None else of_rows(self.vectors.embeds, self.rows)

    @property
    def model(self) -> str | None:
        return self.facts.get("model")

    @property
    def plan(self) -> Plan:
        """How it is searched, and the recall that was measured."""
        return self.vectors.plan

    def learn_hubs(self, queries: Any) -> None:
        """Finds, with typical queries (unit vectors, (queries, dim)), which items appear too often; see `search`."""
        found = QueryBank.fit(self.embeds, queries)
        normalizer, active = np.zeros(len(self.everything), np.float32), np.zeros(len(self.everything), bool)
        normalizer[self.rows], active[self.rows] = found.normalizer, found.active
        self.hubs = QueryBank(normalizer, active, found.temperature)

    def search(
        self,
        queries: Any,
        k: int = 10,
        model: Any = None,
        where: Where = (),
        correction: Correction | None = None,
    ) -> tuple[np.ndarray, list[list[Any]]]:
        """The `k` best items for every query.

        Args:
            queries: (queries, dim) unit vectors.
            model: what made them, an `Encoder` or its name; refused if it is not what made the gallery.
            where: conditions that an item must fulfil, such as `["year>=2020"]`, or a function of the item.
            correction: lowers the scores of the hubs that `learn_hubs` found: `qbnorm` or `inverted_softmax`. The
                returned scores are the corrected ones, see `embed/hub_correction.py`.

        Returns:
            `scores` (queries, k), best first, and the items of every query; fewer than `k` if the gallery has fewer.
        """
        if model is not None:
            self.check_model(model)
        queries = checked_queries(queries, self.vectors.embeds.shape[1], k)
        allowed = self.allowed(where)
        if allowed is not None and not allowed.any():
            return np.empty((len(queries), 0), np.float32), [[] for _ in queries]
        if correction is None:
            scores, rows = self.vectors.search(queries, k, allowed)
        else:
            scores, rows = self.corrected(queries, k, allowed, correction)
        return scores, [[self.everything[row] for row in found] for found in rows.tolist()]

    def corrected(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None, correction: Correction
    ) -> tuple[np.ndarray, np.ndarray]:
        """Corrects more candidates than requested, because the order changes."""
        if self.hubs is None:
            raise ValueError(
                f"correction={correction!r} needs to know the hubs: build the index with --query_bank FILE"
            )
        scores, rows = self.vectors.search(queries, min(CORRECTED * k, len(self)), allowed)
        return best_of(self.hubs.rescore_found(scores, rows, correction), rows, k)

    def allowed(self, where: Where) -> np.ndarray | None:
        """Booleans for all that is stored, or None if all of it is allowed. The last masks of conditions are kept."""
        if callable(where):
            allowed = np.zeros(len(self.everything), bool)
            allowed[self.rows] = np.fromiter((bool(where(item)) for item in self.items), bool, len(self))
            return allowed
        conditions = (where,) if isinstance(where, str) else tuple(where)
        if not conditions:
            return self.alive
        if conditions not in self.masks:
            if isinstance(self.everything, SegmentItems):
                found = self.everything.matching(conditions, self.fields)
            else:
                found = matching(self.everything, conditions, self.fields)
            if len(self.masks) >= MOST_MASKS:
                del self.masks[next(iter(self.masks))]
            self.masks[conditions] = found if self.alive is None else found & self.alive
        return self.masks[conditions]

    def check_conditions(self, where: Sequence[str]) -> None:
        """Raises ValueError for a condition that cannot be asked, see `filters.py`."""
        if where:
            check_conditions(parse_conditions(where), self.fields)

    @property
    def fields(self) -> Fields:
        """What the items say of themselves, and of what kind; see `item_fields`."""
        if "fields" not in self.facts:  # a gallery that was not saved, or before fields were recorded
            if isinstance(self.everything, SegmentItems):
                self.facts["fields"] = self.everything.fields(self.alive)
            else:
                self.facts["fields"] = item_fields(self.everything)
        return self.facts["fields"]

    def check_model(self, model: Any) -> None:
        """Raises ValueError if `model`, a name or an `Encoder`, is not what made the gallery."""
        check_made_by(self.facts, model)

    def save(self, folder: str | Path) -> None:
        """Writes the gallery. Readers see the previous one until the new one is complete.

        Raises:
            OSError, ValueError: the folder cannot be written, or holds something else, see `check_place`.
        """
        folder = check_place(folder, needed=bytes_on_disk(self.plan, *self.embeds.shape))
        with locked(folder):
            self.compact().write(folder)

    def compact(self) -> "GalleryIndex":
        """Itself, or if rows of it are dead, or not in its index, the same gallery with a new one."""
        indexed = self.vectors.embeds if self.vectors.faiss is None else range(self.vectors.faiss.ntotal)
        if self.alive is None and len(indexed) == len(self.everything):
            return self
        made = self.without_index(self.embeds, self.items, self.facts, self.plan)
        made.vectors.build(None, self.plan.recall or TARGET_RECALL, progress=False)
        if self.hubs is not None:
            marks = self.hubs.normalizer[self.rows], self.hubs.active[self.rows]
            made.hubs = QueryBank(*marks, self.hubs.temperature)
        return made

    def write(
        self, folder: Path, recipe: str | None = None, keys: Sequence[str] | None = None, settings: str | None = None
    ) -> None:
        """The same, for callers that have checked and locked the folder.

        Args:
            recipe: digest of everything that the gallery is made of, see `unchanged`.
            keys: one per vector, identifies its image, so that it is not encoded again.
            settings: of its index, see `change.py`.
        """
        with new_version(folder) as version:
            facts: dict[str, Any] = {"segments": write_segments(version, self.stored(keys))}
            self.vectors.save(version / FAISS_FILE)
            if self.hubs is not None:
                self.hubs.save(version / HUBS_FILE)
            facts |= {"items": len(self), "dim": self.vectors.embeds.shape[1], "recipe": recipe}
            facts |= {"settings": settings}
            make_current(folder, version, facts | {"plan": self.plan.to_dict()} | self.facts | {"fields": self.fields})
        remove_leftovers(folder)

    def stored(
        self, keys: Sequence[str] | None = None, most: int = SEGMENT_ROWS
    ) -> Iterator[tuple[list[GalleryRow], np.ndarray]]:
        """All rows with their vectors (rows, dim), at most so many at a time."""
        items, embeds = self.items, self.embeds
        named = items if keys is None and isinstance(items, SegmentItems) else None
        rows: list[GalleryRow] = []
        if named is None:
            keys = keys or self.keys or keys_of_vectors(np.asarray(embeds))
            rows = named_rows(keys, items)
        for start in range(0, len(items), most):
            stop = min(start + most, len(items))
            yield rows[start:stop] if named is None else named.gallery_rows(start, stop), embeds[start:stop]

    @classmethod
    def load(cls, folder: str | Path) -> "GalleryIndex":
        """Reads one complete version of a gallery. Its vectors are memory-mapped.

        Raises:
            OSError: there is none, or a file is missing.
            ValueError: it is damaged, or of another format.
        """
        folder = Path(folder)
        while True:
            header = read_header(folder)
            try:
                return cls.of_version(folder, header)
            except (OSError, ValueError):
                if read_header(folder)["version"] == header["version"]:
                    raise  # otherwise it was replaced during the read: read the new version

    @classmethod
    def of_version(cls, folder: Path, header: dict[str, Any]) -> "GalleryIndex":
        """The gallery that a header names."""
        check_listed_files(folder, header, header["files"].keys())
        version = version_folder(folder, header["version"])
        old = header["format"] == OLD_FORMAT
        items, embeds = old_parts(version) if old else read_segments(version, header)
        alive = read_alive(version, len(embeds)) if DEAD_FILE in header["files"] else None
        count = len(embeds) if alive is None else int(alive.sum())
        if (count, embeds.shape[1]) != (header["items"], header["dim"]):
            raise ValueError(
                f"{version} holds {embeds.dtype} {(count, embeds.shape[1])}, {folder / HEADER_FILE} says "
                f"{header['items']} items of dim {header['dim']}: build the gallery again"
            )
        facts = {name: value for name, value in header.items() if name not in NOT_FACTS}
        index = cls.without_index(embeds, items, facts, header["plan"], alive)
        if KEYS_FILE in header["files"]:
            index.keys = read_json(version / KEYS_FILE, list)
        index.vectors.load(version / FAISS_FILE, header.get("indexed", len(embeds)))
        if HUBS_FILE in header["files"]:
            index.hubs = QueryBank.load(version / HUBS_FILE)
            if len(index.hubs.active) != len(embeds):
                raise ValueError(f"{version / HUBS_FILE} is of another gallery: build the gallery again")
        return index

    @classmethod
    def unchanged(cls, folder: str | Path, recipe: str) -> "GalleryIndex | None":
        """The gallery in a folder, if it is complete and has this recipe; see `recipe_of`."""
        try:
            header = read_header(Path(folder))
            if header.get("recipe") != recipe:
                return None
            check_listed_files(Path(folder), header, header["files"], whole=True)
            return cls.load(folder)
        except (OSError, ValueError):
            return None


def recipe_of(*values: Any) -> str:
    """Digest of everything that a gallery is made of. An unchanged gallery is not written again."""
    return json_digest(FORMAT, *values)


def old_parts(version: Path) -> tuple[list[Any], np.ndarray]:
    """Items and vectors of a gallery of format 3."""
    path = version / ITEMS_FILE
    items = [parse_json(line, f"{path}, line {number}") for number, line in numbered_lines(path)]
    return items, read_array(version / VECTORS_FILE, "embeds")
