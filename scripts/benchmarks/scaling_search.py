"""Machines, memory and money for galleries of 50 million to 10 billion vectors: calculated, nothing is run.

    python scripts/benchmarks/scaling_search.py --output scripts/benchmarks/results/scaling_search.json

Bytes of a vector come from the records of `engines.py` (a graph in every engine) and, if it is there, of
`large_gallery.py` (a folder with compressed vectors), divided by the number of vectors there. What is not measured
follows from the layout:

    folder, compressed   in memory a code of a byte for 8 values and a number of 8 bytes; on the disk that, the vector
                         in half precision, and its item
    Milvus, DiskANN      in memory codes and cache, 0.125 + 0.1 of the bytes of the vectors, as Milvus 2.3 comes; on
                         the disk the vector and 56 neighbours of 4 bytes, a whole number of them in a sector of 4,096
                         bytes (Subramanya et al., DiskANN, NeurIPS 2019)

A machine offers a share of its memory and of its disk. Prices are options; their defaults are assumed: list prices on
demand of one kind of machine, as known in 2025, that were not looked up again. State your own. A copy of everything in
an object store is counted for Milvus, which needs one. Network, people and a second copy for failures are not.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from measuring import record

RESULTS = Path(__file__).parent / "results"
SIZES = {"50 M": 50_000_000, "100 M": 100_000_000, "1 B": 1_000_000_000, "10 B": 10_000_000_000}
HOURS_OF_A_MONTH = 730
ITEM_BYTES = 200  # of an item with its name and version
CODES_AND_CACHE, NEIGHBOURS, SECTOR = 0.125 + 0.1, 56, 4096  # of DiskANN in Milvus
SHARE_OF_MEMORY, SHARE_OF_DISK = 0.75, 0.8  # that are used
ONE_SERVER = ("folder", "pgvector")  # a gallery there is not divided among machines


class Bytes(NamedTuple):
    """Of one vector with its item."""

    engine: str
    index: str
    memory: float
    disk: float
    measured_at: int  # vectors; 0: calculated


def bytes_of_vectors(results: Path, dim: int) -> list[Bytes]:
    found = []
    large = results / "large_gallery.json"
    if large.is_file():
        of = json.loads(large.read_text(encoding="utf-8"))
        count = of["searched"]["items"]
        memory = of["searched"]["resident_bytes"]["of_which_own"]  # mapped files can be dropped
        found.append(
            Bytes("folder", of["searched"]["plan"]["kind"], memory / count, of["bytes_on_disk"] / count, count)
        )
    else:
        code = dim // 8 + 8
        found.append(Bytes("folder", "pq", code, code + 2 * dim + ITEM_BYTES, 0))
    engines = results / "engines.json"
    if engines.is_file():
        measured = json.loads(engines.read_text(encoding="utf-8"))
        count = measured["vectors"]
        for engine, of in measured["engines"].items():
            if engine != "milvus_lite":  # embedded, for tests
                found.append(
                    Bytes(engine, of["plan"]["kind"], needed_memory(of) / count, of["bytes"]["disk"] / count, count)
                )
    found.append(Bytes("milvus", "DiskANN", CODES_AND_CACHE * 4 * dim, bytes_of_diskann(dim), 0))
    return found


def needed_memory(of: dict[str, Any]) -> int:
    """Of the client and the servers; PostgreSQL leaves its index to the cache of files, which has to hold it."""
    return of["bytes"]["client"] + of["bytes"]["servers"] - of["bytes"]["servers_empty"] + of["bytes"].get("index", 0)


def bytes_of_diskann(dim: int) -> float:
    node = 4 * dim + 4 * (NEIGHBOURS + 1)
    return SECTOR / (SECTOR // node) if node <= SECTOR else SECTOR * math.ceil(node / SECTOR)


def needs(of: Bytes, vectors: int, machine: argparse.Namespace) -> dict[str, Any]:
    """What a gallery of so many vectors takes."""
    memory, disk = of.memory * vectors, of.disk * vectors
    by_memory = memory / (SHARE_OF_MEMORY * machine.memory_gib * 2**30)
    by_disk = disk / (SHARE_OF_DISK * machine.disk_tb * 1e12)
    machines = max(1, math.ceil(max(by_memory, by_disk)))
    stored = disk / 1e9 * machine.object_price if of.engine == "milvus" else 0.0
    fits = machines == 1 or of.engine not in ONE_SERVER
    return {
        "engine": of.engine,
        "index": of.index,
        "memory_gib": round(memory / 2**30, 1),
        "disk_tb": round(disk / 1e12, 3),
        "machines": machines if fits else None,
        "limited_by": "memory" if by_memory > by_disk else "disk",
        "dollars_a_month": round(machines * machine.price * HOURS_OF_A_MONTH + stored) if fits else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="AWS r6id.8xlarge, 32 threads, us-east-1, on demand, 2025")
    parser.add_argument("--memory_gib", type=float, default=256, help="of a machine [256]")
    parser.add_argument("--disk_tb", type=float, default=1.9, help="NVMe of a machine [1.9]")
    parser.add_argument("--price", type=float, default=2.4192, help="dollars per hour of a machine [2.4192, assumed]")
    parser.add_argument(
        "--object_price", type=float, default=0.023, help="dollars per GB and month, AWS S3 [0.023, assumed]"
    )
    parser.add_argument("--dim", type=int, default=512, help="[512]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with the records [results]")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = bytes_of_vectors(arguments.results, arguments.dim)
    stated = ("machine", "memory_gib", "disk_tb", "price", "object_price", "dim")
    result = {
        "what": "calculated from measured bytes and stated prices",
        "stated": {name: getattr(arguments, name) for name in stated},
        "used_of_memory_and_disk": [SHARE_OF_MEMORY, SHARE_OF_DISK],
        "bytes_of_a_vector": [each._asdict() for each in found],
        "needs": {name: [needs(each, size, arguments) for each in found] for name, size in SIZES.items()},
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
