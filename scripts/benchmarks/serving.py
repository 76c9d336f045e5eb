"""Queries per second and response times of `hf-vse serve`, beside bare FAISS on the same vectors in the same run.

    python scripts/benchmarks/serving.py --model DIR [--items 100000] [--output FILE]

The gallery, a graph (HNSW), holds synthetic clusters of the model's dimension; queries are sentences, each another one
than before.

    faiss            the index of the gallery alone, one query vector at a time, encoded beforehand
    encode + faiss   the text tower and the index in one process, one sentence at a time
    server           1, 8 and 32 clients; each asks again when its answer is there, on a connection that stays open
    batches of one   the same server with --batch 1 --wait_ms 0

Before anything is timed, the answers are compared with those of the index. Clients and server share the machine.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from measuring import record

from hf_vse.embed.encoder import Encoder
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.environment import environment
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.model import model_facts

K = 10
CLUSTERS = 500
COMPARED = 50  # sentences
WARM_UP = 1.0  # seconds of each contender
COLOURS = "red green blue yellow black white orange purple".split()
THINGS = "dog cat child boat horse house tree kite".split()
SENTENCES = [
    f"a {one} {thing} beside a {other} {another}"
    for one, thing, other, another in product(COLOURS, THINGS, COLOURS, THINGS)
]
SERVERS = {"server": (), "batches of one": ("--batch", "1", "--wait_ms", "0")}


def make_gallery(encoder: Encoder, items: int, folder: Path) -> GalleryIndex:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLUSTERS, encoder.dim)).astype(np.float32)
    vectors = centres[rng.integers(CLUSTERS, size=items)] + rng.standard_normal((items, encoder.dim), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    made = GalleryIndex(vectors, [{"file": f"{row:08d}.jpg"} for row in range(items)], kind="hnsw")
    made.facts |= model_facts(encoder)
    made.save(folder)
    return made


@contextmanager
def running_server(folder: Path, options: tuple[str, ...]) -> Iterator[int]:
    """The port of `hf-vse serve`."""
    command = [sys.executable, "-m", "hf_vse.cli", "serve", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"items at http://127.0.0.1:(\d+)", line):
                    break
            else:
                raise SystemExit(said)
            yield int(found[1])
        finally:
            process.terminate()


class Connection:
    """HTTP/1.1 on one connection, without the cost of a library."""

    def __init__(self, port: int):
        self.port = port

    async def __aenter__(self) -> "Connection":
        for _ in range(100):  # the server is about to listen
            try:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
                return self
            except ConnectionRefusedError:
                await asyncio.sleep(0.1)
        raise SystemExit("the server does not listen")

    async def __aexit__(self, *_: Any) -> None:
        self.writer.close()

    async def get(self, target: str) -> bytes:
        self.writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        head = await self.reader.readuntil(b"\r\n\r\n")
        body = await self.reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"{head.decode()}{body.decode()}")
        return body

    async def search(self, sentence: str) -> bytes:
        return await self.get(f"/search?q={quote(sentence)}&k={K}")


async def load(port: int, clients: int, seconds: float) -> dict[str, Any]:
    sentences, taken, since = cycle(SENTENCES), [], time.perf_counter() + WARM_UP

    async def client() -> None:
        async with Connection(port) as server:
            while (start := time.perf_counter()) < since + seconds:
                await server.search(next(sentences))
                if start >= since:
                    taken.append(time.perf_counter() - start)

    before = await batches(port)
    await asyncio.gather(*(client() for _ in range(clients)))
    queries, calls = np.subtract(await batches(port), before)
    return {"clients": clients} | summary(taken, seconds) | {"queries_per_batch": round(float(queries / calls), 2)}


async def batches(port: int) -> tuple[float, float]:
    """Queries and calls so far, asked on a connection of its own: the server closes one that is idle for seconds."""
    async with Connection(port) as server:
        text = (await server.get("/metrics")).decode()
    return tuple(float(re.search(rf"hf_vse_batch_size_{each} (\S+)", text)[1]) for each in ("sum", "count"))


async def check_answers(port: int, gallery: GalleryIndex, encoder: Encoder) -> None:
    wanted = gallery.search(encoder.query(SENTENCES[:COMPARED]), K)[0]
    async with Connection(port) as server:
        for sentence, scores in zip(SENTENCES, wanted, strict=False):
            results = json.loads(await server.search(sentence))["queries"][0]["results"]
            if not np.allclose([result["score"] for result in results], scores, rtol=0, atol=1e-4):
                raise SystemExit(f"{sentence}: the server answers {results}, the gallery has the scores {scores}")


def one_at_a_time(work: Any, inputs: Any, seconds: float) -> dict[str, Any]:
    inputs, taken, since = cycle(inputs), [], time.perf_counter() + WARM_UP
    while (start := time.perf_counter()) < since + seconds:
        work(next(inputs))
        if start >= since:
            taken.append(time.perf_counter() - start)
    return summary(taken, seconds)


def summary(taken: list[float], seconds: float) -> dict[str, Any]:
    p50, p95 = np.percentile(taken, [50, 95]) * 1000
    return {
        "queries_per_second": round(len(taken) / seconds, 1),
        "p50_ms": round(float(p50), 2),
        "p95_ms": round(float(p95), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="whose text tower encodes the queries")
    parser.add_argument("--items", type=int, default=100_000, help="[100000]")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32], help="[1 8 32]")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement [10]")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    encoder = load_encoder(arguments.model)
    with tempfile.TemporaryDirectory() as place:
        gallery = make_gallery(encoder, arguments.items, Path(place) / "index")
        index, parameters = gallery.vectors.faiss, gallery.vectors.parameters(K, None)
        vectors = encoder.query(SENTENCES[:1000])[:, None]  # (1000, 1, dim)
        bare = {
            "faiss": one_at_a_time(
                lambda query: index.search(query, K, params=parameters), vectors, arguments.seconds
            ),
            "encode + faiss": one_at_a_time(
                lambda sentence: index.search(encoder.query(sentence), K, params=parameters),
                SENTENCES,
                arguments.seconds,
            ),
        }
        print(bare, flush=True)
        served: dict[str, list[dict[str, Any]]] = {}
        for name, options in SERVERS.items():
            with running_server(Path(place) / "index", options) as port:
                asyncio.run(check_answers(port, gallery, encoder))
                served[name] = [asyncio.run(load(port, each, arguments.seconds)) for each in arguments.clients]
            print(name, served[name], flush=True)
    facts = {"items": arguments.items, "dim": encoder.dim, "plan": gallery.plan.to_dict(), "model": encoder.facts()}
    record(facts | {"bare": bare, "served": served, "environment": environment()}, arguments.output)


if __name__ == "__main__":
    main()
