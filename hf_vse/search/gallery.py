"""A gallery that is indexed once and queried often.

INDEX/gallery.json          which model made it, how it is searched and how well, what was left out
INDEX/items.jsonl           a line for each vector: what it stands for
INDEX/gallery.safetensors   the vectors, memory-mapped when loaded
INDEX/index.faiss           the FAISS index, unless the search is exact
INDEX/hubs.safetensors      which items are hubs, where a bank of queries has told
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hf_vse.data.features import read_array
from hf_vse.search.compression import as_vectors
from hf_vse.search.filters import matching
from hf_vse.search.hubness import Correction, QueryBank
from hf_vse.search.plan import Plan, choose_plan
from hf_vse.search.vectors import TARGET_RECALL, VectorIndex

FORMAT = 2
HEADER_FILE = "gallery.json"
ITEMS_FILE = "items.jsonl"
VECTORS_FILE = "gallery.safetensors"
FAISS_FILE = "index.faiss"
HUBS_FILE = "hubs.safetensors"
CORRECTED = 10  # times as many candidates as results are corrected

Where = Sequence[str] | Callable[[Any], bool]


class GalleryIndex:
    """Unit vectors with what they stand for.

    Args:
        embeds: (items, dim) unit vectors.
        items: for every vector anything JSON can hold: a file name, an id, a dict; default: its row.
        model: name of the model that made the vectors; queries must come from the same.
        kind: `auto`, or `exact`, `ivf`, `hnsw`, `pq`, see `plan.py`.
        queries: vectors such as will be asked, to tune and measure an index that is not exact.
        recall: share of the ten nearest neighbours that such an index should find.

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
        queries = None if queries is None else np.asarray(queries, np.float32)
        self.take(vectors, items, {"model": model}, choose_plan(*vectors.shape, kind))
        self.vectors.build(queries, recall, progress)

    def take(
        self, embeds: np.ndarray, items: Sequence[Any] | None, facts: dict[str, Any], plan: Plan
    ) -> "GalleryIndex":
        """Sets what a gallery consists of, apart from the FAISS index."""
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
        """A gallery whose `vectors` have yet to be built or loaded."""
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
        """Finds out from typical queries (queries, dim), unit vectors, which items come up too often; see `search`."""
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
            model: what made them, a name or an `Encoder`; refused if it is not what made the gallery.
            where: conditions that an item must fulfil, such as `["year>=2020"]`, or a function of the item.
            correction: takes from hubs their unearned places, as `learn_hubs` knows them: `qbnorm` or
                `inverted_softmax`. Scores are then corrected ones, see `hubness.py`.

        Returns:
            `scores` (queries, k), best first, and for every query its items; fewer than `k` where there are no more.
        """
        if model is not None:
            self.check_model(model)
        queries = np.ascontiguousarray(np.asarray(queries), dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embeds.shape[1]:
            raise ValueError(f"queries must be (queries, {self.embeds.shape[1]}), got shape {queries.shape}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
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
        """Corrects more candidates than are asked for, so that others may come up."""
        if self.hubs is None:
            raise ValueError(
                f"correction={correction!r} needs to know the hubs: build the index with --query_bank FILE"
            )
        scores, rows = self.vectors.search(queries, min(CORRECTED * k, len(self)), allowed)
        scores = self.hubs.rescore_found(scores, rows, correction)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)

    def allowed(self, where: Where) -> np.ndarray | None:
        """(items,) booleans, or None where everything is; conditions are looked up once."""
        if callable(where):
            return np.fromiter((bool(where(item)) for item in self.items), bool, len(self.items))
        conditions = (where,) if isinstance(where, str) else tuple(where)
        if not conditions:
            return None
        if conditions not in self.masks:
            self.masks[conditions] = matching(self.items, conditions)
        return self.masks[conditions]

    def check_model(self, model: Any) -> None:
        """Raises ValueError if `model`, a name or an `Encoder`, is not what made the gallery."""
        name, digest = (model, None) if isinstance(model, str) else (model.name, model.digest)
        known = self.facts.get("digest")
        same = digest == known if digest and known else name == self.model
        if self.model is not None and not same:
            raise ValueError(
                f"the gallery was made by {self.model!r}, the query by {name!r}"
                f"{' with other weights' if name == self.model else ''}; use one model for both"
            )

    def save(self, folder: str | Path) -> None:
        """Writes the gallery; the header last, so that a folder without it is no gallery yet."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HEADER_FILE).unlink(missing_ok=True)
        unfinished = folder / f"{VECTORS_FILE}.new"  # the file that it replaces may be mapped into memory
        save_file({"embeds": np.ascontiguousarray(self.embeds)}, unfinished)
        unfinished.replace(folder / VECTORS_FILE)
        with (folder / ITEMS_FILE).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in self.items)
        self.vectors.save(folder / FAISS_FILE)
        if self.hubs is None:
            (folder / HUBS_FILE).unlink(missing_ok=True)
        else:
            self.hubs.save(folder / HUBS_FILE)
        header = {"format": FORMAT, "items": len(self), "dim": self.embeds.shape[1], "plan": self.plan.to_dict()}
        text = json.dumps(header | self.facts, indent=1, ensure_ascii=False)
        (folder / HEADER_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "GalleryIndex":
        """Reads a gallery; its vectors stay on disk until they are needed."""
        folder = Path(folder)
        header = read_header(folder)
        facts = {key: value for key, value in header.items() if key not in ("format", "items", "dim", "plan")}
        embeds = read_array(folder / VECTORS_FILE, "embeds")
        with (folder / ITEMS_FILE).open(encoding="utf-8") as file:
            items = [json.loads(line) for line in file]
        index = cls.without_index(embeds, items, facts, Plan(**header["plan"]))
        index.vectors.load(folder / FAISS_FILE)
        if (folder / HUBS_FILE).is_file():
            index.hubs = QueryBank.load(folder / HUBS_FILE)
        return index


def read_header(folder: Path) -> dict[str, Any]:
    """What `gallery.json` says."""
    path = folder / HEADER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no gallery: {HEADER_FILE} is missing; make one with `hf-vse index`")
    header = json.loads(path.read_text(encoding="utf-8"))
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is of format {header.get('format')!r}, not {FORMAT}: build the gallery again")
    return header
