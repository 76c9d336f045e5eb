"""A gallery that is indexed once and queried often.

Exact inner-product search over unit vectors, by FAISS where the extra `index` is installed and by a matrix product
where it is not; both give the same answer.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

VECTORS_FILE = "gallery.safetensors"
ITEMS_FILE = "gallery.json"


class GalleryIndex:
    """Unit vectors with what they stand for.

    Args:
        embeds: (items, dim) unit vectors.
        items: for every vector anything JSON can hold: a file name, an id, a dict; default: its row.
        model: name of the model that made the vectors; queries must come from the same.

    Example:
        index = GalleryIndex(image_embeds, file_names, model="org/vse-hardnce")
        index.save("gallery")
        scores, items = GalleryIndex.load("gallery").search(text_embeds, k=5)
    """

    def __init__(self, embeds: Any, items: Sequence[Any] | None = None, model: str | None = None):
        self.embeds = np.ascontiguousarray(np.asarray(embeds), dtype=np.float32)
        if self.embeds.ndim != 2 or not len(self.embeds):
            raise ValueError(f"embeds must be a non-empty (items, dim) matrix, got shape {self.embeds.shape}")
        self.items = list(range(len(self.embeds))) if items is None else list(items)
        if len(self.items) != len(self.embeds):
            raise ValueError(f"there are {len(self.items)} items for {len(self.embeds)} vectors; give one for each")
        self.model = model
        self._faiss = _flat_index(self.embeds) if find_spec("faiss") else None

    def __len__(self) -> int:
        return len(self.items)

    def search(self, queries: Any, k: int = 10, model: str | None = None) -> tuple[np.ndarray, list[list[Any]]]:
        """The `k` best items for every query.

        Args:
            queries: (queries, dim) unit vectors.
            model: what made them; refused if it is not what made the gallery.

        Returns:
            `scores` (queries, k), best first, and for every query its items.
        """
        if model is not None and self.model is not None and model != self.model:
            raise ValueError(f"the gallery was made by {self.model!r}, the query by {model!r}; use one model for both")
        queries = np.ascontiguousarray(np.asarray(queries), dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.embeds.shape[1]:
            raise ValueError(f"queries must be (queries, {self.embeds.shape[1]}), got shape {queries.shape}")
        k = min(k, len(self))
        if self._faiss is not None:
            scores, rows = self._faiss.search(queries, k)
        else:
            similarity = queries @ self.embeds.T
            rows = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            scores = np.take_along_axis(similarity, rows, axis=1)
        return scores, [[self.items[row] for row in found] for found in rows]

    def save(self, folder: str | Path) -> None:
        """Writes vectors as safetensors and items as JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"embeds": self.embeds}, folder / VECTORS_FILE)
        content = {"model": self.model, "items": self.items}
        (folder / ITEMS_FILE).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "GalleryIndex":
        folder = Path(folder)
        if not (folder / ITEMS_FILE).is_file():
            raise FileNotFoundError(f"{folder} holds no gallery: {ITEMS_FILE} is missing; make one with save()")
        content = json.loads((folder / ITEMS_FILE).read_text(encoding="utf-8"))
        return cls(load_file(folder / VECTORS_FILE)["embeds"], content["items"], content["model"])


def _flat_index(embeds: np.ndarray):
    import faiss

    index = faiss.IndexFlatIP(embeds.shape[1])
    index.add(embeds)
    return index
