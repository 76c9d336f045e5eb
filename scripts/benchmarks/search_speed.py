"""Search in galleries of up to a million vectors: milliseconds per query, recall, overhead over FAISS.

    python scripts/benchmarks/search_speed.py --model DIR --dataset flickr8k --data_dir DIR [--output FILE]

A model embeds the images and captions of a validation split. The gallery is grown from the images: each vector is an
image vector plus noise with the covariance of all image vectors, so that it is distributed like real ones. Queries are
captions: text vectors lie apart from image vectors, which makes approximate search harder than with queries from the
gallery itself. Half of the queries tune the index, the other half measure recall. Without --model both sides come from
synthetic clusters.

    single     one query at a time, milliseconds at the median and the 95th percentile
    overhead   time of `GalleryIndex.search` for 1,000 queries, divided by the time of the bare FAISS index; median
               over alternating rounds
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import record, status_bytes
from safetensors import safe_open
from safetensors.numpy import save_file

from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.evaluation.environment import environment
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.vectors import exact_search

DIM = 512
NOISE = 0.7  # relative to the spread of the image vectors
BLOCK = 50_000
SINGLE_QUERIES = 300
BATCH = 1000
K = 10


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def seeds(arguments: argparse.Namespace, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of the images, and of the captions in random order."""
    if arguments.model is None:
        centres = rng.normal(size=(500, DIM))
        made = [centres[rng.integers(500, size=count)] + rng.normal(size=(count, DIM)) for count in (2000, 4000)]
        return unit(made[0]), unit(made[1] + 0.5)
    vectors, made_of = getattr(arguments, "vectors", None), f"{arguments.model} {arguments.dataset} {arguments.split}"
    if vectors is not None and vectors.is_file():
        with safe_open(vectors, "np") as stored:
            if stored.metadata() != {"made_of": made_of}:
                raise ValueError(f"{vectors} is of {stored.metadata()}, not of {made_of}: give another file")
            images, texts = stored.get_tensor("images"), stored.get_tensor("texts")
        return images, texts[rng.permutation(len(texts))]
    from hf_vse.data.pairs import undecoded_images
    from hf_vse.data.schema import CAPTIONS, flatten_captions
    from hf_vse.data.sources import load_pairs

    encoder = load_encoder(arguments.model)
    split = load_pairs(arguments.dataset, data_dir=arguments.data_dir)[arguments.split]
    images = encode_images(encoder, undecoded_images(split)).embeds.numpy()
    texts = encode_texts(encoder, flatten_captions(split[CAPTIONS])[0], progress=True).numpy()
    if vectors is not None:
        save_file({"images": images, "texts": texts}, vectors, {"made_of": made_of})
    return images, texts[rng.permutation(len(texts))]


def grown(photographs: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, dim) unit vectors that are distributed like the image vectors."""
    centred = photographs - photographs.mean(axis=0)
    spread = np.linalg.svd(centred / np.sqrt(len(centred)), full_matrices=False)
    shape = (spread.S[:, None] * spread.Vh).astype(np.float32)
    vectors = np.empty((count, photographs.shape[1]), np.float32)
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        noise = rng.standard_normal((size, len(shape)), dtype=np.float32) @ shape
        vectors[start : start + size] = unit(photographs[rng.integers(len(photographs), size=size)] + NOISE * noise)
    return vectors


def milliseconds(search: Any, queries: np.ndarray) -> list[float]:
    taken = []
    for query in queries:
        start = time.perf_counter()
        search(query[None])
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def overhead(index: GalleryIndex, queries: np.ndarray, rounds: int) -> float:
    """Seconds of our search divided by those of FAISS with the same parameters."""
    index.search(queries, K)  # an exact search has its FAISS index from now on
    parameters = index.vectors.parameters(K, None)
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        index.vectors.faiss.search(queries, K, params=parameters)
        bare = time.perf_counter() - start
        start = time.perf_counter()
        index.search(queries, K)
        ratios.append((time.perf_counter() - start) / bare)
    return median(ratios)


def measure(vectors: np.ndarray, kind: str, queries: np.ndarray, rounds: int) -> dict[str, Any]:
    tuning, asked = np.array_split(queries, 2)
    before, start = status_bytes("VmRSS"), time.perf_counter()
    items = [{"file": f"{row:08d}.jpg"} for row in range(len(vectors))]
    index = GalleryIndex(vectors, items, kind=kind, queries=tuning)
    built = time.perf_counter() - start
    memory = status_bytes("VmRSS") - before
    taken = milliseconds(lambda query: index.search(query, K), asked[:SINGLE_QUERIES])
    found = index.vectors.search(asked[:SINGLE_QUERIES], K)[1]
    exact = exact_search(vectors, asked[:SINGLE_QUERIES], K)[1]
    hits = [np.isin(of_exact, of_found).mean() for of_exact, of_found in zip(exact, found, strict=True)]
    result = {
        "vectors": len(vectors),
        "dim": vectors.shape[1],
        "plan": index.plan.to_dict(),
        "build_s": round(built, 1),
        "memory_mib": round(memory / 2**20),
        "single_ms": {"p50": round(median(taken), 2), "p95": round(float(np.percentile(taken, 95)), 2)},
        "recall_at_10": round(float(np.mean(hits)), 4),
    }
    if kind != "pq":  # pq also reranks with the exact vectors, which FAISS alone does not
        batch = np.ascontiguousarray(np.resize(asked, (BATCH, asked.shape[1])))
        result["overhead"] = round(overhead(index, batch, rounds), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model whose vectors are searched [synthetic clusters]")
    parser.add_argument("--dataset", default="flickr8k")
    parser.add_argument("--data_dir")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--exact_sizes", type=int, nargs="*", default=[5000, 50_000], help="[5000 50000]")
    parser.add_argument("--size", type=int, default=1_000_000, help="size of the approximate indexes [1000000]")
    parser.add_argument("--kinds", nargs="*", default=["hnsw", "ivf", "pq"], help="[hnsw ivf pq]")
    parser.add_argument("--hnsw_size", type=int, default=100_000, help="[100000]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    photographs, captions = seeds(arguments, rng)
    sizes = [(size, "exact") for size in arguments.exact_sizes]
    sizes += [(arguments.hnsw_size if kind == "hnsw" else arguments.size, kind) for kind in arguments.kinds]
    measured = []
    for size, kind in sizes:
        measured.append(measure(grown(photographs, size, rng), kind, captions, arguments.rounds))
        print(measured[-1], flush=True)
    space = "synthetic clusters" if arguments.model is None else f"captions and photographs of {arguments.dataset}"
    record({"space": space, "measured": measured, "environment": environment()}, arguments.output)


if __name__ == "__main__":
    main()
