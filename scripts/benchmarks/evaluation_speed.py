"""Evaluation time: `retrieval_metrics` compared with the published loop over queries, and galleries of a million.

    python scripts/benchmarks/evaluation_speed.py [--output evaluation_speed.json]

First, 5,000 images and 25,000 captions (COCO's test set) with 1,024 dimensions. The published code (VSE++ and its
successors) loops over the queries in NumPy: similarities to all candidates, a full sort, the rank of the best
positive. It uses float64, and its recalls must equal ours; the loop is timed in float32 as well. All queries take
minutes: with `--queries 250` the loop runs for 250 images and their captions, its time is scaled up, and only these
queries are compared.

Second, a million images in a memory-mapped float16 file, most of them without text: seconds, and the peak memory of a
fresh process. Mapped pages of the file count as memory, although the system may reclaim them at any time.

Third, a million texts against a million images, which takes an hour on two cores: the fixed cost of every process and
the time of one share are measured, and the total time is scaled up from them.

Fourth, all numbers of a report for a set of COCO's size, from existing embeddings.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import record, status_bytes

from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.evaluation.judge import Texts, judge_embeddings
from hf_vse.evaluation.metrics import RECALL_LEVELS, retrieval_metrics, retrieval_ranks

IMAGES, CAPTIONS, DIM = 5000, 5, 1024
GALLERY_DIM = 512
WRITTEN_AT_ONCE = 10_000


def unit_vectors(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dim), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def captions_of(rng: np.random.Generator, image_embeds: np.ndarray, noise: float) -> np.ndarray:
    """Five consecutive unit vectors per image: the image vector plus noise of length `noise`."""
    own = image_embeds.astype(np.float32).repeat(CAPTIONS, axis=0)
    texts = own + noise * unit_vectors(rng, *own.shape)
    return texts / np.linalg.norm(texts, axis=1, keepdims=True)


def published_ranks(images: np.ndarray, texts: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the first images and of their captions, as in the published code: a full sort for each query."""
    image_ranks = np.zeros(queries, dtype=int)
    for image in range(queries):
        order = np.argsort(np.dot(images[image], texts.T))[::-1]
        mine = range(CAPTIONS * image, CAPTIONS * (image + 1))
        image_ranks[image] = min(np.where(order == text)[0][0] for text in mine)
    text_ranks = np.zeros(CAPTIONS * queries, dtype=int)
    for image in range(queries):
        scores = np.dot(texts[CAPTIONS * image : CAPTIONS * (image + 1)], images.T)
        for caption in range(CAPTIONS):
            order = np.argsort(scores[caption])[::-1]
            text_ranks[CAPTIONS * image + caption] = np.where(order == image)[0][0]
    return image_ranks, text_ranks


def recalls(image_ranks, text_ranks) -> dict[str, float]:
    both = {"i2t": np.asarray(image_ranks), "t2i": np.asarray(text_ranks)}
    return {
        f"{name}_r{k}": round(100 * float((ranks < k).mean()), 4)
        for name, ranks in both.items()
        for k in RECALL_LEVELS
    }


def seconds_of_metrics(data: tuple[np.ndarray, ...], repeats: int = 3) -> list[float]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        retrieval_metrics(*data)
        seconds.append(time.perf_counter() - start)
    return seconds


def compare(queries: int, noise: float = 9.0) -> dict:
    """Times ours before, between and after the others, so that load on the machine affects all."""
    rng = np.random.default_rng(0)
    images = unit_vectors(rng, IMAGES, DIM)
    texts = captions_of(rng, images, noise)
    data = images, texts, np.arange(IMAGES).repeat(CAPTIONS)
    image_ranks, text_ranks = retrieval_ranks(*data)
    found = {"hf_vse": recalls(image_ranks[:queries], text_ranks[: CAPTIONS * queries])}
    ours, published = seconds_of_metrics(data), {}
    for dtype in (np.float64, np.float32):
        converted = images.astype(dtype), texts.astype(dtype)
        start = time.perf_counter()
        ranks = published_ranks(*converted, queries)
        published[dtype.__name__] = (time.perf_counter() - start) * IMAGES / queries
        found[f"published_{dtype.__name__}"] = recalls(*ranks)
        ours += seconds_of_metrics(data)
    if found["hf_vse"] != found["published_float64"]:
        sys.exit(f"the recalls differ: {found}")
    return {
        "images": IMAGES,
        "texts": len(texts),
        "dim": DIM,
        "hf_vse_seconds": round(median(ours), 3),
        "published_seconds": {name: round(seconds, 1) for name, seconds in published.items()},
        "times_faster": {name: round(seconds / median(ours), 1) for name, seconds in published.items()},
        "images_timed_the_published_way": queries,
        "recalls_of_these": found,
    }


def write_gallery(folder: Path, images: int, texts: int, noise: float = 4.6) -> None:
    """Writes images.npy (images, dim) in chunks, without memory-mapping, and the texts of a few of the images."""
    rng = np.random.default_rng(0)
    described = np.sort(rng.choice(images, texts // CAPTIONS, replace=False))
    header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": (images, GALLERY_DIM)}
    own = []
    with open(folder / "images.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, images, WRITTEN_AT_ONCE):
            chunk = unit_vectors(rng, min(WRITTEN_AT_ONCE, images - first), GALLERY_DIM).astype(np.float16)
            chunk.tofile(file)
            own.append(chunk[described[(described >= first) & (described < first + len(chunk))] - first])
    np.save(folder / "texts.npy", captions_of(rng, np.concatenate(own), noise).astype(np.float16))
    np.save(folder / "owner.npy", described.repeat(CAPTIONS))


def peak_gib() -> float:
    return status_bytes("VmHWM") / 2**30


def evaluate_gallery(folder: Path) -> dict:
    """Runs in a separate process, so that its peak memory includes nothing else."""
    imports = peak_gib()
    images, texts, owner = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "texts", "owner"))
    start = time.perf_counter()
    metrics = retrieval_metrics(images, texts, owner, distractors=True)
    seconds = time.perf_counter() - start
    return {
        "images": len(images),
        "texts": len(texts),
        "dim": images.shape[1],
        "dtype": str(images.dtype),
        "file_gib": round(images.nbytes / 2**30, 3),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak_gib(), 3),
        "peak_gib_after_imports": round(imports, 3),
        "peak_gib_without_imports": round(peak_gib() - imports, 3),
        "metrics": {name: round(value, 2) for name, value in metrics.items()},
    }


def write_million(folder: Path, count: int) -> None:
    """Writes images.npy and texts.npy (count, dim) in chunks, with one caption per image."""
    rng = np.random.default_rng(0)
    header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": (count, GALLERY_DIM)}
    with open(folder / "images.npy", "wb") as images, open(folder / "texts.npy", "wb") as texts:
        for file in (images, texts):
            np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, count, WRITTEN_AT_ONCE):
            own = unit_vectors(rng, min(WRITTEN_AT_ONCE, count - first), GALLERY_DIM)
            noisy = own + 4.6 * unit_vectors(rng, *own.shape)
            own.astype(np.float16).tofile(images)
            (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float16).tofile(texts)


def evaluate_million(folder: Path, shares: int) -> dict:
    """Runs in a separate process: times the fixed cost of every process, and one share of the pairs."""
    images, texts = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "texts"))
    owner = np.arange(len(images))
    seconds = []
    for share in ((0, len(images) ** 2), (0, shares)):  # the first holds a single tile
        start = time.perf_counter()
        retrieval_ranks(images, texts, owner, share=share)
        seconds.append(time.perf_counter() - start)
    alone, with_share = seconds
    return {
        "images": len(images),
        "texts": len(texts),
        "dim": images.shape[1],
        "shares": shares,
        "seconds_every_process": round(alone, 1),
        "seconds_of_a_share": round(with_share - alone, 1),
        "minutes_scaled_up": round((alone + shares * (with_share - alone)) / 60, 1),
        "peak_gib": round(peak_gib(), 3),
    }


def judge_everything(noise: float = 9.0) -> dict:
    """Seconds for all protocols, intervals and diagnostics."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(unit_vectors(rng, IMAGES, DIM))
    texts = torch.from_numpy(captions_of(rng, images.numpy(), noise))
    owner = torch.arange(IMAGES).repeat_interleave(CAPTIONS)
    pairs = PairEmbeddings(images, texts, owner, torch.arange(IMAGES), 0)
    words = [" ".join(rng.choice(["a", "red", "dog", "runs", "on", "the", "beach"], 9)) for _ in range(len(texts))]
    start = time.perf_counter()
    judge_embeddings(pairs, Texts(captions=words), name="noise", facts={}, source="coco", diagnostics=True)
    return {"images": IMAGES, "texts": len(texts), "dim": DIM, "seconds": round(time.perf_counter() - start, 1)}


def in_fresh_process(write: Callable[[Path], None], measure: Callable[[Path], dict]) -> dict:
    """Writes the files here and measures in a new process, which starts with the peak memory of its parent."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            return fresh.submit(measure, Path(folder)).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=IMAGES, help="images timed with the published loop [all 5,000]")
    parser.add_argument("--gallery", type=int, default=1_000_000, help="images in the mapped file [1,000,000]")
    parser.add_argument("--texts", type=int, default=5000, help="query texts for it, five per image [5,000]")
    parser.add_argument("--shares", type=int, default=250, help="number of shares of all pairs; one is measured [250]")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    where = environment()
    # First, while this process is small.
    gallery = in_fresh_process(
        partial(write_gallery, images=arguments.gallery, texts=arguments.texts), evaluate_gallery
    )
    million = in_fresh_process(
        partial(write_million, count=arguments.gallery), partial(evaluate_million, shares=arguments.shares)
    )
    result = {
        "what": "retrieval_metrics against a loop over queries that sorts; memory-mapped galleries; a whole report",
        "coco_sized": compare(min(arguments.queries, IMAGES)),
        "gallery": gallery,
        "million": million,
        "everything": judge_everything(),
        "environment": where,
    }
    record(result, arguments.output)


if __name__ == "__main__":
    main()
