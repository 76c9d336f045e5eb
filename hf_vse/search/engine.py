"""A gallery in an engine for vectors: all that does not depend on which.

An engine holds a table (a collection) for each gallery and model, and a name that points to one of them. The same
images with other weights fill a table beside the old one, the name moves when it is whole, so searches never stop.

A partial answer is never passed off as a full one: the rows that answer are counted before and after a search and
compared with the number that was recorded, and a query that gets fewer results than there must be is an error.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
from accelerate import PartialState

from hf_vse.embed.encoder import Encoder
from hf_vse.embed.hub_correction import Correction, QueryBank
from hf_vse.embed.matrices import best_of
from hf_vse.search.fill import fill_from_images, fill_from_vectors, measured_plan
from hf_vse.search.filters import Condition, check_conditions, parse_conditions
from hf_vse.search.gallery import CORRECTED
from hf_vse.search.plan import EXACT_VALUES, IndexKind, Plan
from hf_vse.search.queries import check_made_by, checked_queries
from hf_vse.search.store import GalleryRow, hexadecimal
from hf_vse.search.vectors import TARGET_RECALL, check_unit

logger = logging.getLogger(__name__)

WRITTEN_AT_ONCE = 1000
EXACT_BELOW = 10_000  # rows that fulfil conditions: so few are compared one by one, as filtered indexes miss many
COMPARED_BELOW = 1_000_000  # rows that are compared one by one if an index does not find enough
START_EFFORT = 64  # of an approximate index
MOST_EFFORT = 4096
NAMED_BROKEN = 1000  # in the facts

Found = list[list[tuple[float, GalleryRow]]]  # of each query, best first


class EngineStore(ABC):
    """See `GalleryStore`. A subclass talks to one engine.

    Args:
        location: where the gallery is.
        name: of the gallery in the engine.
    """

    kinds: dict[str, str]  # of an index -> what the engine calls it
    answers_in_part = True  # where a node is lost

    def __init__(self, location: str, name: str):
        self.location = location
        self.name = name
        self.table, self.bank, self.changed = "", "", 0

    @abstractmethod
    def current(self) -> tuple[str, dict[str, Any]] | None:
        """The table that the name points to, and its facts.

        Raises:
            ValueError: the name is that of something else.
        """

    @abstractmethod
    def has_table(self, table: str) -> bool: ...

    @abstractmethod
    def create(self, table: str, dim: int, plan: Plan) -> None: ...

    @abstractmethod
    def make_current(self, table: str, facts: dict[str, Any]) -> None:
        """Writes the facts of a table and lets the name point to it."""

    @abstractmethod
    def drop(self, table: str) -> None: ...

    @abstractmethod
    def build_index(self, table: str, plan: Plan) -> None:
        """The index of the vectors, if it is better built after they are written."""

    @abstractmethod
    def filter_of(self, conditions: Sequence[Condition]) -> Any:
        """Conditions as a filter of the engine; None for none. So are `of_names`, `of_hubs` and `below`."""

    @abstractmethod
    def of_names(self, names: Sequence[str]) -> Any: ...

    @abstractmethod
    def of_hubs(self) -> Any: ...

    @abstractmethod
    def below(self, name: str) -> Any:
        """Rows whose names, which are digests, come before one: a random sample."""

    @abstractmethod
    def count(self, table: str, where: Any = None, latest: bool = True) -> int:
        """Rows that answer now; `latest` waits for all writes before."""

    @abstractmethod
    def nearest(self, table: str, queries: np.ndarray, k: int, where: Any, plan: Plan, exact: bool) -> Found: ...

    @abstractmethod
    def stored_versions(self, table: str) -> dict[str, str]: ...

    @abstractmethod
    def read(self, table: str, where: Any = None) -> Iterator[tuple[list[GalleryRow], np.ndarray]]: ...

    @abstractmethod
    def write(self, table: str, rows: Sequence[GalleryRow], versions: Sequence[str], embeds: np.ndarray) -> None: ...

    @abstractmethod
    def remove(self, table: str, names: Sequence[str]) -> None: ...

    def whole(self) -> tuple[str, dict[str, Any]]:
        """The table and the facts of the gallery.

        Raises:
            FileNotFoundError: there is none.
        """
        found = self.current()
        if found is None:
            raise FileNotFoundError(f"{self.location} holds no gallery; make one with `hf-vse index`")
        return found

    @property
    def facts(self) -> dict[str, Any]:
        return self.whole()[1]

    @property
    def model(self) -> str | None:
        return self.facts.get("model")

    @property
    def plan(self) -> Plan:
        return Plan.of_dict(self.facts["plan"], f"{self.location}: plan")

    def __len__(self) -> int:
        return self.facts["items"]

    def check_model(self, model: Any) -> None:
        check_made_by(self.facts, model)

    def check_conditions(self, where: Sequence[str]) -> None:
        if where:
            check_conditions(parse_conditions(where), self.facts["fields"])

    def check_place(self, source: str | None = None) -> None:
        self.current()

    def search(
        self,
        queries: Any,
        k: int = 10,
        model: Any = None,
        where: Sequence[str] = (),
        correction: Correction | None = None,
    ) -> tuple[np.ndarray, list[list[Any]]]:
        table, facts = self.whole()
        if model is not None:
            check_made_by(facts, model)
        queries = checked_queries(queries, facts["dim"], k)
        if callable(where):
            raise ValueError("an engine cannot run a function of an item: give conditions, such as ['year>=2020']")
        conditions = parse_conditions(where)
        check_conditions(conditions, facts["fields"])
        if correction is not None and not facts.get("hubs"):
            raise ValueError(
                f"correction={correction!r} needs to know the hubs: build the index with --query_bank FILE"
            )
        wanted = CORRECTED * k if correction else k
        found = self.all_found(table, facts, queries, wanted, self.filter_of(conditions))
        if correction is not None:
            return corrected(found, k, correction, facts["hubs"]["temperature"])
        count = min(map(len, found), default=0)
        scores = np.array([[score for score, _ in each] for each in found], np.float32).reshape(len(found), count)
        return scores, [[row.item for _, row in each] for each in found]

    def all_found(self, table: str, facts: dict[str, Any], queries: np.ndarray, k: int, where: Any) -> Found:
        """The `k` best rows that fulfil a filter, or all if there are fewer.

        Raises:
            OSError: only a part of the rows answers.
        """
        plan = Plan.of_dict(facts["plan"], f"{self.location}: plan")
        self.check_whole(table, facts)
        total = facts["items"]
        allowed = total if where is None else self.count(table, where, latest=False)
        k = min(k, allowed)
        if k == 0:
            return [[] for _ in queries]
        effort = min(MOST_EFFORT, round(plan.effort * max(1.0, total / allowed)))
        few = where is not None and allowed <= EXACT_BELOW
        found = self.nearest(table, queries, k, where, replace(plan, effort=effort), exact=few)
        if min(map(len, found)) < k and allowed <= COMPARED_BELOW:
            found = self.nearest(table, queries, k, where, plan, exact=True)
        self.check_whole(table, facts)
        if (least := min(map(len, found))) < k:
            raise OSError(f"{self.location}: a query got {least} results of {k} that there are: repeat it")
        return found

    def check_whole(self, table: str, facts: dict[str, Any]) -> None:
        """Raises OSError if fewer rows answer than were recorded."""
        if (
            self.answers_in_part and self.count(table, latest=False) < facts["items"]
        ):  # or the last writes are not seen yet
            if (answering := self.count(table)) < facts["items"]:
                raise OSError(
                    f"{self.location}: only {answering:,} of {facts['items']:,} items answer; a part of the engine "
                    "may be lost or loading: repeat the command later, or index again if it stays"
                )

    def build(self, source: Any, encoder: Encoder, **options: Any) -> None:
        fill_from_images(self, source, encoder, **options)

    def build_of_vectors(
        self, embeds: np.ndarray, items: Sequence[Any] | None, encoder: Encoder, **options: Any
    ) -> None:
        if PartialState().is_main_process:
            fill_from_vectors(self, embeds, items, encoder, **options)

    def begin(
        self, facts: dict[str, Any], dim: int, count: int, kind: str = "auto", recall: float = TARGET_RECALL
    ) -> None:
        """Chooses the table: the current one if the same model made it, or one beside it."""
        self.recall, self.changed = recall, 0
        self.bank = (facts.get("hubs") or {}).get("bank", "")
        there = self.current()
        if there is not None and (there[1].get("digest"), there[1]["dim"]) == (facts.get("digest"), dim):
            if kind in ("auto", there[1]["plan"]["kind"]):
                self.table, self.chosen = there[0], Plan.of_dict(there[1]["plan"], f"{self.location}: plan")
                return
        self.chosen = self.plan_for(count, dim, kind)
        self.table = f"{self.name}__{hexadecimal([facts.get('digest'), dim, self.chosen.kind], 8)}"
        if not self.has_table(self.table):
            self.create(self.table, dim, self.chosen)
            logger.info("%s is filled; searches see it when it is whole", self.table)

    def plan_for(self, count: int, dim: int, kind: str) -> Plan:
        size = f"{count:,} vectors of {dim}"
        reason = "asked for"
        if kind == "auto":
            few = count * dim <= EXACT_VALUES
            kind, reason = (
                ("exact", f"{size} are compared in milliseconds") if few else ("hnsw", f"{size} are too many")
            )
        if kind not in self.kinds:
            raise ValueError(f"index kind must be auto, {', '.join(self.kinds)} in {self.location}; got {kind!r}")
        return Plan(cast(IndexKind, kind), self.kinds[kind], reason, effort=0 if kind == "exact" else START_EFFORT)

    def versions(self) -> dict[str, str]:
        return self.stored_versions(self.table)

    def rows(self) -> Iterator[tuple[list[GalleryRow], np.ndarray]]:
        table, facts = self.whole()
        self.check_whole(table, facts)
        return self.read(table)

    def upsert(self, rows: Sequence[GalleryRow], embeds: np.ndarray) -> None:
        check_unit(embeds, f"vectors for {self.location}")
        for start in range(0, len(rows), WRITTEN_AT_ONCE):
            part = rows[start : start + WRITTEN_AT_ONCE]
            versions = [row.version(self.bank) for row in part]
            self.write(self.table, part, versions, np.asarray(embeds[start : start + WRITTEN_AT_ONCE], np.float32))
        self.changed += len(rows)

    def delete(self, names: Sequence[str]) -> None:
        there = self.current()
        if names and there is not None and there[0] == self.table:  # fewer are expected before there are fewer
            self.make_current(self.table, there[1] | {"items": max(0, there[1]["items"] - len(names))})
        for start in range(0, len(names), WRITTEN_AT_ONCE):
            self.remove(self.table, names[start : start + WRITTEN_AT_ONCE])
        self.changed += len(names)

    def finish(self, facts: dict[str, Any]) -> None:
        there = self.current()
        self.build_index(self.table, self.chosen)
        count, dim = self.count(self.table), len(self.one_vector())
        before = None if there is None or there[0] != self.table else there[1]
        kept = before is not None
        if self.chosen.kind != "exact" and (self.changed > count // 10 or not kept):
            self.chosen = measured_plan(self, self.chosen, count, self.recall)
        facts = facts | {"items": count, "dim": dim, "plan": self.chosen.to_dict()}
        if "broken" in facts:
            facts["broken"] = facts["broken"][:NAMED_BROKEN]
        if before is None or facts != before:
            self.make_current(self.table, facts)
        if there is not None and not kept:
            self.drop(there[0])

    def one_vector(self) -> np.ndarray:
        for _, embeds in self.read(self.table):
            return embeds[0]
        raise ValueError(f"{self.location} would hold no items: there is nothing to search")


def corrected(found: Found, k: int, kind: Correction, temperature: float) -> tuple[np.ndarray, list[list[Any]]]:
    """The `k` best after the correction of hubs, from more candidates, as `GalleryIndex.corrected`."""
    rows = [row for each in found for _, row in each]
    scores = np.array([score for each in found for score, _ in each], np.float32).reshape(len(found), -1)
    marks = np.array([row.normalizer for row in rows], np.float32), np.array([row.active for row in rows], bool)
    places = np.arange(len(rows)).reshape(scores.shape)
    scores, places = best_of(QueryBank(*marks, temperature).rescore_found(scores, places, kind), places, k)
    return scores, [[rows[place].item for place in of_query] for of_query in places.tolist()]
