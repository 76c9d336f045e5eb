"""A gallery that is indexed once and queried often.

INDEX/gallery.json            its model, its index and measured recall, and what was left out
INDEX/versions/VERSION/
    items.jsonl               one line per vector: what it represents
    gallery.safetensors       the vectors, memory-mapped when loaded
    keys.json                 the key of the image of each vector; absent if the vectors came as an array
    index.faiss               the FAISS index, unless the search is exact
    hubs.safetensors          which items are hubs, if a query bank was given

`storage.py` replaces it safely while others read it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hf_vse.data.features import read_array
from hf_vse.embed.hub_correction import Correction, QueryBank
from hf_vse.embed.matrices import as_vectors, best_of
from hf_vse.files import numbered_lines, parse_json
from hf_vse.search.filters import Fields, check_conditions, item_fields, matching, parse_conditions
from hf_vse.search.header import (
    FAISS_FILE,
    FORMAT,
    HEADER_FILE,
    HUBS_FILE,
    ITEMS_FILE,
    KEYS_FILE,
    NOT_FACTS,
    VECTORS_FILE,
    json_digest,
    read_header,
    to_json,
)
from hf_vse.search.plan import Plan, bytes_on_disk, choose_plan
from hf_vse.search.queries import check_made_by, checked_queries
from hf_vse.search.storage import (
    check_listed_files,
    check_place,
    keep_keys,
    locked,
    make_current,
    new_version,
    remove_leftovers,
    version_folder,
)
from hf_vse.search.vectors import TARGET_RECALL, VectorIndex, check_unit

CORRECTED = 10  # candidates per result that are corrected

Where = Sequence[str] | Callable[[Any], bool]


class GalleryIndex:
    """Unit vectors and the items that they represent.

    Args:
        embeds: (items, dim) unit vectors.
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
        vectors = np.ascontiguousarray(as_vectors("embeds", embeds), np.float32)
        check_unit(vectors, "embeds")
        queries = None if queries is None else np.asarray(queries, np.float32)
        self.take(vectors, items, {"model": model}, choose_plan(*vectors.shape, kind))
        self.vectors.build(queries, recall, progress)

    def take(
        self, embeds: np.ndarray, items: Sequence[Any] | None, facts: dict[str, Any], plan: Plan
    ) -> "GalleryIndex":
        """Sets all parts of a gallery except the FAISS index."""
        self.items = list(range(len(embeds))) if items is None else list(items)
        if len(self.items) != len(embeds):
            raise ValueError(f"there are {len(self.items)} items for {len(embeds)} vectors; give one for each")
        self.facts = facts
        self.vectors = VectorIndex(embeds, plan)
        self.masks: dict[tuple[str, ...], np.ndarray] = {}
        self.hubs: QueryBank | None = None
        return self

    @classmethod
    def without_index(
        cls, embeds: np.ndarray, items: Sequence[Any], facts: dict[str, Any], plan: Plan
    ) -> "GalleryIndex":
        """A gallery whose `vectors` are built or loaded later."""
        return cls.__new__(cls).take(embeds, items, facts, plan)

    @classmethod
    def build(cls, source: Any, encoder: Any, folder: str | Path, **options: Any) -> "GalleryIndex":
        """Encodes a folder of photographs or a data set into `folder`; see `build_gallery`."""
        from hf_vse.search.build import build_gallery

        return build_gallery(source, encoder, folder, **options)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def embeds(self) -> np.ndarray:
        """(items, dim) float32."""
        return self.vectors.embeds

    @property
    def model(self) -> str | None:
        return self.facts.get("model")

    @property
    def plan(self) -> Plan:
        """How it is searched, and the recall that was measured."""
        return self.vectors.plan

    def learn_hubs(self, queries: Any) -> None:
        """Finds, with typical queries (unit vectors, (queries, dim)), which items appear too often; see `search`."""
        self.hubs = QueryBank.fit(self.embeds, queries)

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
        queries = checked_queries(queries, self.embeds.shape[1], k)
        allowed = self.allowed(where)
        if allowed is not None and not allowed.any():
            return np.empty((len(queries), 0), np.float32), [[] for _ in queries]
        if correction is None:
            scores, rows = self.vectors.search(queries, k, allowed)
        else:
            scores, rows = self.corrected(queries, k, allowed, correction)
        return scores, [[self.items[row] for row in found] for found in rows.tolist()]

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
        """(items,) booleans, or None if all items are allowed. Masks of conditions are cached."""
        if callable(where):
            return np.fromiter((bool(where(item)) for item in self.items), bool, len(self.items))
        conditions = (where,) if isinstance(where, str) else tuple(where)
        if not conditions:
            return None
        if conditions not in self.masks:
            self.masks[conditions] = matching(self.items, conditions, self.fields)
        return self.masks[conditions]

    def check_conditions(self, where: Sequence[str]) -> None:
        """Raises ValueError for a condition that cannot be asked, see `filters.py`."""
        if where:
            check_conditions(parse_conditions(where), self.fields)

    @property
    def fields(self) -> Fields:
        """What the items say of themselves, and of what kind; see `item_fields`."""
        if "fields" not in self.facts:  # a gallery that was not saved, or before fields were recorded
            self.facts["fields"] = item_fields(self.items)
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
            self.write(folder)

    def write(self, folder: Path, recipe: str | None = None, keys: Sequence[str] | None = None) -> None:
        """The same, for callers that have checked and locked the folder.

        Args:
            recipe: digest of everything that the gallery is made of, see `unchanged`.
            keys: one per vector, identifies its image, so that it is not encoded again; default: the keys of the
                replaced gallery, if its vectors are the same.
        """
        with new_version(folder) as version:
            save_file({"embeds": np.ascontiguousarray(self.embeds)}, version / VECTORS_FILE)
            with (version / ITEMS_FILE).open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(to_json(item) + "\n" for item in self.items)
            if keys is None:
                keep_keys(folder, version)
            else:
                (version / KEYS_FILE).write_text(json.dumps(keys), encoding="utf-8")
            self.vectors.save(version / FAISS_FILE)
            if self.hubs is not None:
                self.hubs.save(version / HUBS_FILE)
            shape = {"items": len(self), "dim": self.embeds.shape[1], "plan": self.plan.to_dict(), "recipe": recipe}
            make_current(folder, version, shape | self.facts | {"fields": self.fields})
        remove_leftovers(folder)

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
        check_listed_files(folder, header, header["files"].keys() - {KEYS_FILE})
        version = version_folder(folder, header["version"])
        embeds = read_array(version / VECTORS_FILE, "embeds")
        if embeds.shape != (header["items"], header["dim"]) or embeds.dtype != np.float32:
            raise ValueError(
                f"{version / VECTORS_FILE} holds {embeds.dtype} {embeds.shape}, {folder / HEADER_FILE} says "
                f"{header['items']} items of dim {header['dim']}: build the gallery again"
            )
        path = version / ITEMS_FILE
        items = [parse_json(line, f"{path}, line {number}") for number, line in numbered_lines(path)]
        facts = {name: value for name, value in header.items() if name not in NOT_FACTS}
        index = cls.without_index(embeds, items, facts, header["plan"])
        index.vectors.load(version / FAISS_FILE)
        if HUBS_FILE in header["files"]:
            index.hubs = QueryBank.load(version / HUBS_FILE)
            if len(index.hubs.active) != len(index):
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
