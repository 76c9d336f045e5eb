"""Response times of the demo with many concurrent visitors, and whether its memory stays constant.

    python scripts/benchmarks/space_load.py --model DIR --dataset PARQUET [--output space_load.json]
    python scripts/benchmarks/space_load.py --url http://127.0.0.1:7860

Starts the demo on this machine (or uses a running one). Every visitor sends the next request as soon as the answer
arrives: sentences, images (a new upload each time) and labels, mixed by `--mix`. A response time runs from the first
byte of the request, including the upload, to the last byte of the answer. Then `--requests` new visitors send one
request each while the resident memory of the demo is measured (Linux, and only if it was started here). Needs the
extra `demo`.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import PIL.Image
from measuring import record, status_bytes

from hf_vse.evaluation.environment import environment

DEMO = Path(__file__).parents[2] / "spaces_demo"
SENTENCES = (
    "a small red circle",
    "two blue stars above a ring",
    "a dog runs on the beach",
    "children play in the snow",
)
LABELS = "circle, square, star, ring, dog, cat, beach, snow"
KINDS = ("search_by_text", "search_by_image", "zero_shot")
PHOTOGRAPHS = 32  # distinct images, 640 x 480
WARM_UP = 300  # requests until threads, sessions and caches stop growing
BETWEEN_READINGS = 100  # requests
AT_ONCE = 4  # concurrent requests while memory is measured
SECONDS_TO_ANSWER = 60


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="VSE_MODEL of the demo to start")
    parser.add_argument("--dataset", help="VSE_DATASET of the demo to start")
    parser.add_argument("--url", help="use a running demo")
    parser.add_argument("--visitors", type=int, default=32, help="concurrent visitors [32]")
    parser.add_argument("--seconds", type=float, default=60, help="length of the measurement [60]")
    parser.add_argument("--pause", type=float, default=0, help="seconds a visitor waits before asking again [0]")
    parser.add_argument("--mix", type=int, nargs=3, default=[6, 3, 1], help="sentences, images, labels [6 3 1]")
    parser.add_argument(
        "--requests", type=int, default=2000, help="requests while memory is measured, 0 for none [2000]"
    )
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    arguments = parser.parse_args()
    if not arguments.url and not (arguments.model and arguments.dataset):
        parser.error("give --url of a running demo, or --model and --dataset to start one")
    return arguments


@contextmanager
def running_demo(arguments: argparse.Namespace) -> Iterator[tuple[str, int | None]]:
    """The URL of the demo and, if it is started here, its process id."""
    if arguments.url:
        yield arguments.url.rstrip("/"), None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = {name: str(Path(value).resolve()) if Path(value).exists() else value for name, value in
             (("VSE_MODEL", arguments.model), ("VSE_DATASET", arguments.dataset))}  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=DEMO,
            env=os.environ | names | {"GRADIO_SERVER_PORT": str(port)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            while not answers(url):
                if process.poll() is not None:
                    log.seek(0)
                    raise SystemExit(log.read().decode()[-2000:])
                time.sleep(0.5)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/config", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def photographs() -> list[bytes]:
    """JPEG files of coarse noise, about as large as photographs."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(PHOTOGRAPHS):
        file = BytesIO()
        coarse = PIL.Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        coarse.resize((640, 480)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


async def ask(web: httpx.AsyncClient, session: str, kind: str, files: list[bytes]) -> Any:
    """Sends one request of a visitor; raises if the answer is an error."""
    if kind == "search_by_text":
        return await call(web, session, kind, [random.choice(SENTENCES), 12])
    upload = await web.post("/gradio_api/upload", files={"files": ("photo.jpg", random.choice(files), "image/jpeg")})
    upload.raise_for_status()
    photograph = {"path": upload.json()[0], "meta": {"_type": "gradio.FileData"}}
    rest = [8] if kind == "search_by_image" else [LABELS, "a {}"]
    return await call(web, session, kind, [photograph, *rest])


async def call(web: httpx.AsyncClient, session: str, endpoint: str, data: list) -> Any:
    event = await web.post(f"/gradio_api/call/{endpoint}", json={"data": data, "session_hash": session})
    event.raise_for_status()
    answer = await web.get(f"/gradio_api/call/{endpoint}/{event.json()['event_id']}")
    lines = answer.text.strip().splitlines()
    if answer.status_code != 200 or lines[-2] != "event: complete":
        raise ValueError(answer.text[-300:])
    return json.loads(lines[-1].removeprefix("data: "))


async def measure(url: str, arguments: argparse.Namespace) -> tuple[dict[str, list[float]], Counter[str], float]:
    """Seconds of each answer by endpoint, failure counts by message, and the total time."""
    seconds: dict[str, list[float]] = defaultdict(list)
    failures: Counter[str] = Counter()
    files = photographs()
    limits = httpx.Limits(max_connections=2 * arguments.visitors)

    async def visitor(web: httpx.AsyncClient, session: str, end: float) -> None:
        await asyncio.sleep(random.random() * arguments.pause)  # visitors do not all arrive at once
        while time.perf_counter() < end:
            kind = random.choices(KINDS, arguments.mix)[0]
            start = time.perf_counter()
            try:
                await ask(web, session, kind, files)
                seconds[kind].append(time.perf_counter() - start)
            except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
                failures[f"{kind}: {type(error).__name__}: {str(error)[:200]}"] += 1
            await asyncio.sleep(arguments.pause)

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=SECONDS_TO_ANSWER) as web:
        for kind in KINDS:
            await ask(web, "first", kind, files)  # the first requests are slower
        start = time.perf_counter()
        end = start + arguments.seconds
        await asyncio.gather(*(visitor(web, f"visitor{number}", end) for number in range(arguments.visitors)))
        return seconds, failures, time.perf_counter() - start


async def measure_memory(url: str, process: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Resident memory in MB every BETWEEN_READINGS requests after the warm-up; each request has a new visitor."""
    files, readings = photographs(), []
    async with httpx.AsyncClient(base_url=url, timeout=SECONDS_TO_ANSWER) as web:
        for number in range(-WARM_UP, arguments.requests + 1, AT_ONCE):
            if number >= 0 and number % BETWEEN_READINGS == 0:
                readings.append(round(status_bytes("VmRSS", f"/proc/{process}/status") / 2**20, 1))
            kinds = random.choices(KINDS, arguments.mix, k=AT_ONCE)
            await asyncio.gather(*(ask(web, f"new{number}-{place}", kind, files) for place, kind in enumerate(kinds)))
    return {
        "warm_up": WARM_UP,
        "requests": arguments.requests,
        "resident_mb": readings,
        "growth_mb": round(readings[-1] - readings[0], 1),
        "spread_mb": round(max(readings) - min(readings), 1),
    }


def summary(seconds: list[float]) -> dict[str, float]:
    quantiles = np.percentile(seconds, [50, 95, 99]) if seconds else [float("nan")] * 3
    times = {
        f"p{share}_ms": round(1000 * float(value), 1) for share, value in zip((50, 95, 99), quantiles, strict=True)
    }
    return {"answers": len(seconds)} | times


def main() -> None:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the demo stops too
    random.seed(0)
    with running_demo(arguments) as (url, process):
        facts = asyncio.run(about(url))
        seconds, failures, wall = asyncio.run(measure(url, arguments))
        watched = process is not None and arguments.requests > 0
        memory = asyncio.run(measure_memory(url, process, arguments)) if watched else None
    total = sum(map(len, seconds.values()))
    result = {
        "what": "visitors of the demo who ask again after a pause (s), client and server on one machine",
        "visitors": arguments.visitors,
        "seconds": round(wall, 1),
        "pause": arguments.pause,
        "answers": total,
        "answers_per_second": round(total / wall, 1),
        "errors": sum(failures.values()),
        "kinds_of_errors": dict(failures),
        "memory": memory,
        "endpoints": {kind: summary(times) for kind, times in sorted(seconds.items())},
        "demo": {
            name: facts[name] for name in ("image_tower", "text_tower", "parameters", "photographs", "sentences")
        },
        "environment": environment(),
    }
    record(result, arguments.output)


async def about(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(base_url=url, timeout=SECONDS_TO_ANSWER) as web:
        return (await call(web, "first", "about", []))[0]


if __name__ == "__main__":
    main()
