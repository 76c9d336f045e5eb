"""Fills a gallery in an engine: only what is new, changed or gone is written, and what is written stays.

An image that is there already is not encoded again where only its caption, its row or the bank of queries has changed.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from hf_vse.data.images import MAX_BROKEN_SHARE, check_broken_share
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.hub_correction import TEMPERATURE, QueryBank
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.search.build import listed_images, undecoded_rows
from hf_vse.search.filters import item_fields
from hf_vse.search.model import model_facts
from hf_vse.search.plan import Plan
from hf_vse.search.store import GalleryRow, hexadecimal, keys_of_vectors, named_rows
from hf_vse.search.vectors import MEASURED_QUERIES, NEIGHBOURS_MEASURED, TARGET_RECALL, check_unit

if TYPE_CHECKING:
    from hf_vse.search.engine import EngineStore

logger = logging.getLogger(__name__)

ENCODED_AT_ONCE = 1000  # images, after which they are written
MEASURED_BELOW = 1_000_000  # rows: recall is measured by comparing all
EFFORTS = (32, 64, 128, 256, 512)


def fill_from_images(
    store: "EngineStore",
    source: Any,
    encoder: Encoder,
    *,
    kind: str = "auto",
    recall: float = TARGET_RECALL,
    batch_size: int = 64,
    num_workers: int = 0,
    max_broken_share: float = MAX_BROKEN_SHARE,
    progress: bool = True,
    origin: dict[str, Any] | None = None,
    query_bank: Sequence[str] = (),
) -> None:
    """As `build_gallery`, for an engine. An interrupted run goes on; several processes each take a share."""
    images, facts = listed_images(source, encoder, origin)
    rows = named_rows([each.key for each in images], [each.item for each in images])
    bank, facts["hubs"] = bank_of(query_bank, encoder)
    state = PartialState()
    for turn in (state.is_main_process, not state.is_main_process):  # the first creates the table
        if turn:
            store.begin(facts, encoder.dim, len(rows), kind, recall)
        state.wait_for_everyone()
    there = store.versions()
    changed = [place for place, row in enumerate(rows) if there.get(row.name) != row.version(store.bank)]
    if len(changed) < len(rows):
        logger.info("%d of %d images are there already", len(rows) - len(changed), len(rows))
    state.wait_for_everyone()  # nobody writes before everybody has looked
    own, unreadable = changed[state.process_index :: state.num_processes], []
    for start in range(0, len(own), ENCODED_AT_ONCE):
        places = own[start : start + ENCODED_AT_ONCE]
        embeds = known_embeds(store, [rows[place] for place in places], there)
        if missing := [place for place in places if rows[place].name not in embeds]:
            unread = undecoded_rows(source, images, missing)
            made = encode_images(encoder, unread, batch_size, num_workers, progress and state.is_main_process)
            for place, each, readable in zip(missing, made.embeds.numpy(), made.readable.tolist(), strict=True):
                if readable:
                    embeds[rows[place].name] = each
                else:
                    unreadable.append(rows[place].name)
        write_rows(store, [rows[place] for place in places if rows[place].name in embeds], embeds, bank)
        logger.info("%d of %d images are written", start + len(places), len(own))
    unread_anywhere = set(gather_object(unreadable))
    if state.is_main_process:
        complete(store, rows, facts, bank, unread_anywhere, max_broken_share)
    state.wait_for_everyone()


def fill_from_vectors(
    store: "EngineStore",
    embeds: np.ndarray,
    items: Sequence[Any] | None,
    encoder: Encoder,
    *,
    made_of: str = "",
    kind: str = "auto",
    recall: float = TARGET_RECALL,
    progress: bool = True,
    query_bank: Sequence[str] = (),
) -> None:
    """The same for vectors that exist, (items, dim); `made_of` and `progress` are not needed here."""
    check_unit(embeds, "embeds")
    rows = named_rows(keys_of_vectors(embeds), list(range(len(embeds))) if items is None else items)
    facts = model_facts(encoder)
    bank, facts["hubs"] = bank_of(query_bank, encoder)
    store.begin(facts, embeds.shape[1], len(rows), kind, recall)
    there = store.versions()
    changed = {
        row.name: embeds[place] for place, row in enumerate(rows) if there.get(row.name) != row.version(store.bank)
    }
    write_rows(store, [row for row in rows if row.name in changed], changed, bank)
    complete(store, rows, facts, bank, set(), 0.0)


def bank_of(sentences: Sequence[str], encoder: Encoder) -> tuple[np.ndarray | None, dict[str, Any] | None]:
    """Vectors of a bank of queries, and what a gallery records of it."""
    if not sentences:
        return None, None
    bank = encode_texts(encoder, list(sentences)).numpy()
    return bank, {"temperature": TEMPERATURE, "bank": hexadecimal(list(sentences), 16)}


def known_embeds(store: "EngineStore", rows: Sequence[GalleryRow], there: dict[str, str]) -> dict[str, np.ndarray]:
    """Vectors of rows whose image is there, and of which only something else has changed."""
    same = [row for row in rows if there.get(row.name, "").split(".")[0] == row.version().split(".")[0]]
    if not same:
        return {}
    keys = {row.name: row.key for row in same}
    found: dict[str, np.ndarray] = {}
    for read, embeds in store.read(store.table, store.of_names(list(keys))):
        found |= {row.name: each for row, each in zip(read, embeds, strict=True) if row.key == keys[row.name]}
    return found


def write_rows(
    store: "EngineStore", rows: Sequence[GalleryRow], embeds: dict[str, np.ndarray], bank: np.ndarray | None
) -> None:
    """Rows with their vectors by name, and how near each is to the bank of queries."""
    for start in range(0, len(rows), ENCODED_AT_ONCE):
        part = rows[start : start + ENCODED_AT_ONCE]
        vectors = np.stack([embeds[row.name] for row in part])
        if bank is not None:
            near = QueryBank.fit(vectors, bank).normalizer.tolist()
            part = [row._replace(normalizer=each) for row, each in zip(part, near, strict=True)]
        store.upsert(part, vectors)


def complete(
    store: "EngineStore",
    rows: Sequence[GalleryRow],
    facts: dict[str, Any],
    bank: np.ndarray | None,
    unreadable: set[str],
    max_broken_share: float,
) -> None:
    """After all is written: removes what is gone, finds the hubs, records the facts.

    Args:
        unreadable: names of rows whose image cannot be read.

    Raises:
        ValueError: too many images cannot be read.
        OSError: the engine lacks rows that were written.
    """
    broken = sorted(str(row.item.get("file", f"row {row.place}")) for row in rows if row.name in unreadable)
    check_broken_share(dict.fromkeys(broken, "cannot be read"), len(rows), max_broken_share)
    if len(unreadable) == len(rows):
        raise ValueError(f"none of the {len(rows)} images can be read: there is nothing to search")
    whole = {row.name: row.version(store.bank) for row in rows if row.name not in unreadable}
    there = store.versions()
    if lost := sum(there.get(name) != version for name, version in whole.items()):
        raise OSError(f"{store.location}: {lost:,} of {len(whole):,} items were written and are not there: repeat it")
    store.delete([name for name in there if name not in whole])
    if bank is not None and store.changed:
        mark_hubs(store, bank)
    facts["fields"] = item_fields(row.item for row in rows if row.name in whole)
    if "root" in facts:
        facts["broken"] = broken
    store.finish(facts)


def mark_hubs(store: "EngineStore", bank: np.ndarray) -> None:
    """Marks the items that a query of the bank finds first."""
    first = store.nearest(store.table, bank, 1, None, store.chosen, exact=False)
    active = {found[0][1].name for found in first if found}
    marked = {row.name for rows, _ in store.read(store.table, store.of_hubs()) for row in rows}
    if wrong := sorted(active ^ marked):
        for rows, embeds in list(store.read(store.table, store.of_names(wrong))):
            store.upsert([row._replace(active=row.name in active) for row in rows], embeds)


def measured_plan(store: "EngineStore", plan: Plan, count: int, recall: float) -> Plan:
    """The plan with the least effort that finds `recall` of the exact neighbours of some vectors of the gallery."""
    if count > MEASURED_BELOW:
        return replace(plan, recall=None, measured_on="")
    sample = None if count <= MEASURED_QUERIES else store.below(f"{MEASURED_QUERIES * 16**8 // count:08x}")
    queries = np.concatenate([embeds for _, embeds in store.read(store.table, sample)])[:MEASURED_QUERIES]
    k = min(NEIGHBOURS_MEASURED, count)
    exact = [
        {row.name for _, row in found} for found in store.nearest(store.table, queries, k, None, plan, exact=True)
    ]
    for effort in EFFORTS:
        tried = replace(plan, effort=effort)
        found = store.nearest(store.table, queries, k, None, tried, exact=False)
        hits = [len(best & {row.name for _, row in each}) / k for best, each in zip(exact, found, strict=True)]
        plan = tried.measured(effort, float(np.mean(hits)), f"{len(queries)} vectors of the gallery")
        if plan.recall is not None and plan.recall >= recall:
            return plan
    logger.warning("recall@10 of the index is %.3f and does not reach %.3f", plan.recall, recall)
    return plan
