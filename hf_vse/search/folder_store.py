"""A gallery in a folder as a store: `GalleryIndex` reads and searches it, `build.py` fills it from images.

What `upsert` and `delete` are given is held in memory, or in segments where it is much, until `finish` writes a new
version and swaps it in.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_vse.embed.hub_correction import Correction, QueryBank
from hf_vse.search.change import GalleryChange, index_settings
from hf_vse.search.gallery import GalleryIndex, Where, recipe_of
from hf_vse.search.plan import Plan, bytes_on_disk, choose_plan
from hf_vse.search.storage import check_place, locked, remove_leftovers
from hf_vse.search.store import READ_AT_ONCE, GalleryRow, hexadecimal, in_order
from hf_vse.search.vectors import TARGET_RECALL


class FolderStore:
    """See `GalleryStore`."""

    def __init__(self, location: str | Path):
        self.folder = Path(location)
        self.location = str(self.folder)

    @cached_property
    def gallery(self) -> GalleryIndex:
        return GalleryIndex.load(self.folder)

    @property
    def facts(self) -> dict[str, Any]:
        hubs, facts = self.gallery.hubs, self.gallery.facts | {"fields": self.gallery.fields}
        if hubs is None:
            return facts
        bank = hexadecimal([hubs.normalizer.tolist(), hubs.active.tolist()], 16)
        return facts | {"hubs": {"temperature": hubs.temperature, "bank": bank}}

    @property
    def model(self) -> str | None:
        return self.gallery.model

    @property
    def plan(self) -> Plan:
        return self.gallery.plan

    def __len__(self) -> int:
        return len(self.gallery)

    def check_model(self, model: Any) -> None:
        self.gallery.check_model(model)

    def check_conditions(self, where: Sequence[str]) -> None:
        self.gallery.check_conditions(where)

    def search(
        self,
        queries: Any,
        k: int = 10,
        model: Any = None,
        where: Where = (),
        correction: Correction | None = None,
    ) -> tuple[np.ndarray, list[list[Any]]]:
        return self.gallery.search(queries, k, model, where, correction)

    def check_place(self, source: str | None = None) -> None:
        check_place(self.folder, source)

    def build(self, source: Any, encoder: Any, **options: Any) -> None:
        from hf_vse.search.build import build_gallery

        self.__dict__.pop("gallery", None)
        self.gallery = build_gallery(source, encoder, self.folder, **options)

    def build_of_vectors(self, embeds: np.ndarray, items: Any, encoder: Any, **options: Any) -> None:
        from accelerate import PartialState

        from hf_vse.search.build import build_of_vectors

        made_of = options.pop("made_of")
        if PartialState().is_main_process:
            self.gallery = build_of_vectors(embeds, items, encoder, self.folder, made_of, **options)

    def rows(self) -> Iterator[tuple[list[GalleryRow], np.ndarray]]:
        hubs, place = self.gallery.hubs, 0
        for rows, embeds in self.gallery.stored(most=READ_AT_ONCE):
            if hubs is not None:
                own = self.gallery.rows[place : place + len(rows)]
                marks = zip(rows, hubs.normalizer[own].tolist(), hubs.active[own].tolist(), strict=True)
                rows = [row._replace(normalizer=normalizer, active=active) for row, normalizer, active in marks]
            yield rows, embeds
            place += len(rows)

    def begin(
        self, facts: dict[str, Any], dim: int, count: int, kind: str = "auto", recall: float = TARGET_RECALL
    ) -> None:
        self.options: dict[str, Any] = {"kind": kind, "recall": recall}
        check_place(self.folder, needed=bytes_on_disk(choose_plan(count, dim, kind), count, dim))
        self.change = GalleryChange(self.folder, facts, dim, self.options)
        self.__dict__.pop("gallery", None)

    def versions(self) -> dict[str, str]:
        """None if the folder is written as a whole, see `change.py`."""
        return self.change.versions()

    def upsert(self, rows: Sequence[GalleryRow], embeds: np.ndarray) -> None:
        self.change.upsert(rows, embeds)

    def delete(self, names: Sequence[str]) -> None:
        self.change.delete(names)

    def finish(self, facts: dict[str, Any]) -> None:
        hubs = facts.get("hubs")
        facts = {name: value for name, value in facts.items() if name not in ("hubs", "fields")}
        if hubs or not (self.change.written or self.change.base):
            self.write_whole(facts, hubs)
        else:
            self.change.finish(facts)
        self.__dict__.pop("gallery", None)

    def write_whole(self, facts: dict[str, Any], hubs: dict[str, Any] | None) -> None:
        """All that is pending, in the order of a folder, unless the folder holds just that."""
        rows = sorted(self.change.pending.values(), key=lambda pair: in_order(pair[0]))
        keys, items = [row.key for row, _ in rows], [row.item for row, _ in rows]
        marks = [(row.normalizer, row.active) for row, _ in rows] if hubs else []
        recipe = recipe_of(keys, items, facts, self.options, hubs, marks)
        with locked(self.folder):
            if GalleryIndex.unchanged(self.folder, recipe) is None:
                embeds = np.stack([each for _, each in rows])
                plan = choose_plan(len(embeds), embeds.shape[1], self.options["kind"])
                gallery = GalleryIndex.without_index(embeds, items, facts, plan)
                gallery.vectors.build(None, self.options["recall"], progress=False)
                if hubs:
                    normalizer = np.array([row.normalizer for row, _ in rows], np.float32)
                    gallery.hubs = QueryBank(
                        normalizer, np.array([row.active for row, _ in rows]), hubs["temperature"]
                    )
                gallery.write(self.folder, recipe, keys, index_settings(self.options))
            remove_leftovers(self.folder)
