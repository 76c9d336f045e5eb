"""Engines for galleries beside the folder: one set of vectors in each, through the same store, in one run.

    python scripts/benchmarks/engines.py --model DIR --data_dir DIR --programs .venv-engines [--output FILE]
    python scripts/benchmarks/engines.py --size 5000                # synthetic clusters; without a server of Milvus

Vectors are grown from those of a model as in `search_speed.py`, queries are captions. Every engine is filled and
searched by a process of its own and stopped before the next begins; all of them build a graph (HNSW).

    load, build    seconds to write all rows, and from then until searches see them and their recall is measured;
                   `cpu_s` are seconds of processors, of the client and the servers
    query          one at a time with all checks of the store, milliseconds; `batch`: 1,000 at once, queries per second
    filter         a condition that keeps 2 %, and one that keeps 20 %
    change         500 items replaced, 500 new, 500 gone, until searches see it
    recall         share of the exact ten nearest neighbours, here and after every filter
    bytes          of memory after the searches: the client beyond its imports, and the servers; and on the disk
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from engine_servers import Milvus, PostgreSQL, Servers, private_network
from large_gallery import YEARS, rows_of
from measuring import record
from search_speed import BATCH, K, grown, seeds

from hf_vse.evaluation.environment import environment
from hf_vse.search.filters import item_fields
from hf_vse.search.locations import open_store
from hf_vse.search.store import GalleryRow, GalleryStore
from hf_vse.search.vectors import exact_search

ENGINES = ("folder", "milvus_lite", "milvus", "pgvector")
LOADED_AT_ONCE = 10_000
CHANGED = 500
RECALL = 0.99  # that the stores choose the effort of searches for, with vectors of the gallery as queries
FILTERED_QUERIES = 50
FILTERS = {"2 %": ("year=1970",), "20 %": ("year>=1970", "year<1980")}
KEPT = {"2 %": (1970, 1970), "20 %": (1970, 1979)}


def server_of(engine: str, folder: Path, programs: Path | None) -> tuple[AbstractContextManager, str]:
    """What has to run, and the location of a gallery in it."""
    if engine == "milvus":
        server = Milvus(folder, programs)
        return server, f"{server.location}/photos"
    if engine == "pgvector":
        server = PostgreSQL(folder)
        return server, server.location.format("photos")
    return nullcontext(), {"folder": str(folder), "milvus_lite": f"milvus+lite://{folder}.db/photos"}[engine]


class Meter:
    """Seconds of the clock and of processors, of this process and its servers."""

    def __init__(self, servers: Servers | None):
        self.servers = servers

    def __call__(self, step: Callable[[], Any]) -> dict[str, float]:
        begun, spent = time.perf_counter(), self.processor()
        step()
        return {"s": round(time.perf_counter() - begun, 2), "cpu_s": round(self.processor() - spent, 2)}

    def processor(self) -> float:
        own = sum(os.times()[:4])
        return own + (self.servers.processor_seconds() if self.servers else 0.0)


def measured(engine: str, work: Path, programs: Path | None, vectors: Path, queries: np.ndarray) -> dict[str, Any]:
    embeds = np.load(vectors, mmap_mode="r")
    server, location = server_of(engine, work / engine, programs)
    with server as servers:
        return of_store(engine, open_store(location), Meter(servers), embeds, queries, work / engine)


def of_store(
    engine: str, store: GalleryStore, meter: Meter, embeds: np.ndarray, queries: np.ndarray, folder: Path
) -> dict[str, Any]:
    size = len(embeds)
    facts = {"model": "grown", "digest": "grown", "fields": item_fields(row.item for row in rows_of(0, 1000, seed=0))}
    imported, empty = own_bytes(), servers_bytes(meter)

    def load() -> None:
        store.begin(facts, embeds.shape[1], size, "hnsw", RECALL)
        store.versions()
        for first in range(0, size, LOADED_AT_ONCE):
            rows = rows_of(first, min(first + LOADED_AT_ONCE, size), seed=0)
            store.upsert(rows, embeds[first : first + len(rows)])

    result: dict[str, Any] = {"load": meter(load), "build": meter(lambda: store.finish(facts))}
    result["plan"] = store.plan.to_dict()
    result |= searched(store, meter, embeds, queries)
    result["bytes"] = {
        "client": own_bytes() - imported,
        "servers": servers_bytes(meter),
        "servers_empty": empty,
        "disk": sum(
            path.lstat().st_blocks * 512 for at in (folder, folder.with_suffix(".db")) for path in at.rglob("*")
        ),
    }
    if engine == "pgvector":
        result["bytes"]["index"] = store.ask("select pg_indexes_size(%s::regclass)", [store.whole()[0]])[0][0]
    rows, places = changed_rows(size)
    result["change"] = meter(lambda: change(store, facts, embeds, rows, places))
    if len(store) != size:
        raise ValueError(f"{store.location} holds {len(store)} items after the change instead of {size}")
    return result


def searched(store: GalleryStore, meter: Meter, embeds: np.ndarray, queries: np.ndarray) -> dict[str, Any]:
    store.search(queries[:5], K)
    batch = np.ascontiguousarray(np.resize(queries, (BATCH, queries.shape[1])))
    found: list[list[Any]] = []
    result: dict[str, Any] = {"query_ms": milliseconds(store, queries, found)}
    result["recall"] = recall(embeds, np.arange(len(embeds)), queries, found)
    taken = meter(lambda: store.search(batch, K))
    result["batch"] = taken | {"queries_per_s": round(BATCH / taken["s"], 1)}
    years = np.array([row.item["year"] for row in rows_by_blocks(len(embeds))])
    result["filters"] = {}
    for name, where in FILTERS.items():
        some, found = queries[:FILTERED_QUERIES], []
        kept = np.flatnonzero((years >= KEPT[name][0]) & (years <= KEPT[name][1]))
        taken_ms = milliseconds(store, some, found, where)
        result["filters"][name] = {"kept": len(kept), "ms": taken_ms, "recall": recall(embeds, kept, some, found)}
    return result


def rows_by_blocks(size: int) -> list[Any]:
    """The rows as `load` made them: their years are drawn for each block."""
    starts = range(0, size, LOADED_AT_ONCE)
    return [row for first in starts for row in rows_of(first, min(first + LOADED_AT_ONCE, size), seed=0)]


def milliseconds(
    store: GalleryStore, queries: np.ndarray, found: list[list[Any]], where: tuple[str, ...] = ()
) -> dict[str, float]:
    """Of one query at a time; what they find is put into `found`."""
    taken = []
    for query in queries:
        start = time.perf_counter()
        found += store.search(query[None], K, where=where)[1]
        taken.append(1000 * (time.perf_counter() - start))
    return {"p50": round(median(taken), 2), "p95": round(float(np.percentile(taken, 95)), 2)}


def recall(embeds: np.ndarray, kept: np.ndarray, queries: np.ndarray, found: list[list[Any]]) -> float:
    """Share of the `K` best of the rows `kept` that were found; a file is named by its row."""
    exact = kept[exact_search(embeds[kept], queries, K)[1]]
    rows = [{int(Path(item["file"]).stem) for item in of_query} for of_query in found]
    return round(
        float(np.mean([len(some & set(best)) / K for some, best in zip(rows, exact.tolist(), strict=True)])), 4
    )


def changed_rows(size: int) -> tuple[list[GalleryRow], list[int]]:
    """What is to be there after the change, and the vector of each."""
    before = rows_by_blocks(size)
    rows = rows_of(0, CHANGED, seed=1) + before[2 * CHANGED :] + rows_of(size, size + CHANGED, seed=0)
    places = [*range(CHANGED, 2 * CHANGED), *range(2 * CHANGED, size), *range(CHANGED)]
    return rows, places


def change(
    store: GalleryStore, facts: dict[str, Any], embeds: np.ndarray, rows: list[GalleryRow], places: list[int]
) -> None:
    store.begin(facts, embeds.shape[1], len(rows), "hnsw", RECALL)
    there = store.versions()
    new = [number for number, row in enumerate(rows) if there.get(row.name) != row.version()]
    store.upsert([rows[number] for number in new], embeds[[places[number] for number in new]])
    wanted = {row.name for row in rows}
    store.delete([name for name in there if name not in wanted])
    store.finish(facts)


def servers_bytes(meter: Meter) -> int:
    of = ("Pss_Anon", "Pss_Shmem")
    return sum(meter.servers.status_bytes(field, "smaps_rollup") for field in of) if meter.servers else 0


def own_bytes() -> int:
    """Memory of this process, without what it maps of files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def ratios(measured: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each engine divided by the folder."""
    folder = measured.get("folder")
    paths = {"load": ("load", "cpu_s"), "build": ("build", "cpu_s"), "query": ("query_ms", "p50")}
    paths |= {"batch": ("batch", "s"), "change": ("change", "s"), "disk": ("bytes", "disk")}
    return {
        engine: {name: round(of[one][two] / folder[one][two], 2) for name, (one, two) in paths.items()}
        for engine, of in measured.items()
        if folder and engine != "folder"
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=200_000, help="[200000]")
    parser.add_argument("--queries", type=int, default=300, help="asked one by one [300]")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, help="[all; milvus with --programs]")
    parser.add_argument("--programs", type=Path, help="folder with the package milvus, as `make engines` fills it")
    parser.add_argument("--work", type=Path, help="folder for the galleries, must not exist [a temporary one]")
    parser.add_argument("--model", help="model whose vectors are grown [synthetic clusters]")
    parser.add_argument(
        "--vectors", type=Path, help="keeps its vectors in this safetensors file, or takes them from it"
    )
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--data_dir")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    engines = arguments.engines or [each for each in ENGINES if each != "milvus" or arguments.programs]
    if "milvus" in engines and arguments.programs is None:
        parser.error("milvus needs --programs FOLDER: `make engines` fills .venv-engines")
    if arguments.size < 2 * CHANGED:
        parser.error(f"--size must be at least {2 * CHANGED}")
    private_network()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="engines"))
    work.mkdir(exist_ok=arguments.work is None)
    work.chmod(0o755)  # PostgreSQL is another user there
    rng = np.random.default_rng(0)
    photographs, queries = seeds(arguments, rng)
    np.save(work / "vectors.npy", grown(photographs, arguments.size, rng))
    found = {}
    for engine in engines:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            given = (engine, work, arguments.programs, work / "vectors.npy", queries[: arguments.queries])
            found[engine] = pool.submit(measured, *given).result()
        print(engine, found[engine], file=sys.stderr, flush=True)
    space = "synthetic clusters" if arguments.model is None else f"captions and photographs of {arguments.dataset}"
    result = {"command": " ".join(sys.argv), "space": space, "vectors": arguments.size, "dim": photographs.shape[1]}
    result |= {"kept_of_years": YEARS, "cores": len(os.sched_getaffinity(0)), "engines": found}
    record(result | {"ratios_to_the_folder": ratios(found), "environment": environment()}, arguments.output)


if __name__ == "__main__":
    main()
