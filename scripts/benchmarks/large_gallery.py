"""A folder gallery of up to tens of millions: opening, memory, filtered queries, and a change of 1,000 items.

    python scripts/benchmarks/large_gallery.py FOLDER --size 10000000 [--kind pq] [--output FILE]

The gallery is grown in FOLDER, which must be new, from synthetic clusters as in `search_speed.py`: 512 dimensions in
float16, items with a file, a year and a place. What building took is kept in FOLDER.built.json, so that a run that was
broken off later goes on from there. The condition `year=YEAR` keeps 2 %. Each measurement runs in a process
of its own; seconds are of the clock, and `cpu_s` of the processor, which others do not disturb.

    first query   with a condition that was not asked before, so that its column is read and compared
    change        500 items are replaced, 500 are new, 500 are gone; `written_bytes` are files that were not there
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import record, status_bytes
from search_speed import BLOCK, DIM, K, grown, seeds, unit

from hf_vse.evaluation.environment import environment
from hf_vse.search.folder_store import FolderStore
from hf_vse.search.store import GalleryRow, named_rows

YEARS, PLACES, CHANGED = 50, 200, 500
FACTS = {"model": "synthetic", "digest": "synthetic"}
QUERIES = 100


def rows_of(first: int, stop: int, seed: int) -> list[GalleryRow]:
    chance = np.random.default_rng((seed, first)).integers(YEARS * PLACES, size=stop - first)
    items = [
        {"file": f"{row // 1000:06}/{row:09}.jpg", "year": 1970 + each % YEARS, "place": f"place {each // YEARS}"}
        for row, each in zip(range(first, stop), chance.tolist(), strict=True)
    ]
    return named_rows([f"{item['file']} {seed}" for item in items], items)


def of_seeds() -> tuple[np.ndarray, np.ndarray]:
    return seeds(argparse.Namespace(model=None), np.random.default_rng(0))


def half(vectors: np.ndarray) -> np.ndarray:
    return unit(vectors).astype(np.float16)


def fill(folder: Path, size: int, kind: str) -> dict[str, Any]:
    store, rng, photographs = FolderStore(folder), np.random.default_rng(1), of_seeds()[0]
    store.begin(FACTS, DIM, size, kind)
    for first in range(0, size, BLOCK):
        rows = rows_of(first, min(first + BLOCK, size), seed=0)
        store.upsert(rows, half(grown(photographs, len(rows), rng)))
    written = time.process_time()
    store.finish(FACTS)
    return {"index_cpu_s": round(time.process_time() - written, 1), "peak_bytes": status_bytes("VmHWM")}


def search(folder: Path) -> dict[str, Any]:
    before, begun, spent = status_bytes("VmRSS"), time.perf_counter(), time.process_time()
    gallery = FolderStore(folder).gallery
    opened = {"s": time.perf_counter() - begun, "cpu_s": time.process_time() - spent}
    memory = {"imports": before, "opened": status_bytes("VmRSS")}
    queries = of_seeds()[1][:QUERIES]
    asked = [f"year={1970 + number % YEARS}" for number in range(QUERIES)]
    taken = {
        "plain": [milliseconds(lambda query=query: gallery.search(query[None], K)) for query in queries],
        "filtered_first": [
            milliseconds(lambda query=query, where=where: gallery.search(query[None], K, where=[where]))
            for query, where in zip(queries[:15], asked, strict=False)
        ],
        "filtered": [
            milliseconds(lambda query=query: gallery.search(query[None], K, where=asked[:1])) for query in queries
        ],
    }
    kept = float(gallery.allowed(asked[:1]).sum() / len(gallery))
    memory |= {"after_queries": status_bytes("VmRSS"), "of_which_own": status_bytes("RssAnon")}
    return {
        "items": len(gallery),
        "plan": gallery.plan.to_dict(),
        "open": {name: round(value, 3) for name, value in opened.items()},
        "resident_bytes": memory,
        "kept": round(kept, 4),
        "ms": {name: summary(values) for name, values in taken.items()},
    }


def milliseconds(step: Callable[[], Any]) -> tuple[float, float]:
    begun, spent = time.perf_counter(), time.process_time()
    step()
    return 1000 * (time.perf_counter() - begun), 1000 * (time.process_time() - spent)


def summary(values: list[tuple[float, float]]) -> dict[str, float]:
    clock, processor = zip(*values, strict=True)
    p95 = float(np.percentile(clock, 95))
    return {"p50": round(median(clock), 2), "p95": round(p95, 2), "cpu_p50": round(median(processor), 2)}


def change(folder: Path, size: int, kind: str) -> dict[str, Any]:
    before = {path.stat().st_ino for path in folder.glob("versions/*/*")}
    store, rng = FolderStore(folder), np.random.default_rng(2)
    store.begin(FACTS, DIM, size, kind)
    rows = rows_of(0, CHANGED, seed=1) + rows_of(size, size + CHANGED, seed=0)
    store.upsert(rows, half(grown(of_seeds()[0], len(rows), rng)))
    store.delete([row.name for row in rows_of(BLOCK, BLOCK + CHANGED, seed=0)])
    store.finish(FACTS)
    after = [path.stat() for path in folder.glob("versions/*/*")]
    written = sum(each.st_size for each in after if each.st_ino not in before)
    return {"written_bytes": written, "linked_bytes": sum(each.st_size for each in after) - written} | {
        "peak_bytes": status_bytes("VmHWM")
    }


def timed(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """In a process of its own, which has imported everything."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        done = pool.submit(clocked, work, *arguments).result()
    print(work.__name__, done, file=sys.stderr, flush=True)
    return done


def clocked(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    begun, spent = time.perf_counter(), time.process_time()
    done = work(*arguments)
    taken = {"s": round(time.perf_counter() - begun, 1), "cpu_s": round(time.process_time() - spent, 1)}
    return taken | done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=200_000)
    parser.add_argument("--kind", default="auto")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    folder, size, kind = arguments.folder, arguments.size, arguments.kind
    kept = folder.with_name(f"{folder.name}.built.json")
    if folder.exists() and not kept.is_file():
        parser.error(f"{folder} exists: give a new folder")
    if not kept.is_file():
        kept.write_text(json.dumps(timed(fill, folder, size, kind)))
    result: dict[str, Any] = {"built": json.loads(kept.read_text())}
    result |= {"bytes_on_disk": sum(path.stat().st_size for path in folder.glob("versions/*/*"))}
    result |= {"searched": timed(search, folder), "changed": timed(change, folder, size, kind)}
    result |= {"searched_after_change": timed(search, folder), "environment": environment()}
    record({"command": " ".join(sys.argv)} | result, arguments.output)


if __name__ == "__main__":
    main()
