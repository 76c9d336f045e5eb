"""What is lost and what is answered wrongly while engines for galleries and their users are killed.

    python scripts/benchmarks/engine_faults.py --programs .venv-engines [--engines milvus ...] [--output FILE]

`make engines` runs it. A gallery has 2,000 items, compared exactly, so that every answer can be checked: scores belong
to the items, and no item that was there all the time is missing. An answer is right, or it is said that there is none
(an error); the program fails if one is wrong without a sign, or if a row is lost whose writing was confirmed.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from engine_servers import Milvus, MilvusCluster, PostgreSQL, Servers, private_network
from measuring import record

from hf_vse.embed.encoder import Encoder
from hf_vse.evaluation.environment import environment
from hf_vse.search import fill
from hf_vse.search.locations import open_store

ROWS, DIM, K = 2000, 32, 10
WRITTEN_AT_ONCE = 50  # rows, so that many writings are interrupted
KILLED_AFTER = 8  # of them
SETTLED = 6.0  # seconds until a search sees the last writings of others
TRIED_FOR = 90.0  # seconds until answers are to be right again
KINDS = {"pgvector": PostgreSQL, "milvus": Milvus, "cluster": MilvusCluster}
SEARCHING = {"pgvector": ["postgres"], "milvus": ["standalone"], "cluster": ["querynode", "proxy"]}  # killed then
WRITING = {"pgvector": ["postgres"], "milvus": ["standalone"], "cluster": ["datanode"]}


class Plain(Encoder):
    name, digest, dim = "plain", "0" * 32, DIM


class State(NamedTuple):
    """What a gallery holds in one version of its source: vectors by name of file."""

    version: int

    def rows(self) -> dict[str, np.ndarray]:
        """In the second version every tenth item is another, and as many are gone and new."""
        kept = [n for n in range(ROWS) if self.version == 1 or n % 10 != 1]
        numbers = kept if self.version == 1 else [*kept, *range(ROWS, ROWS + ROWS // 10)]
        return {f"{n}.jpg": self.vector(n) for n in numbers}

    def vector(self, number: int) -> np.ndarray:
        made = np.random.default_rng((number, self.version if number % 10 == 0 else 1)).normal(size=DIM)
        return (made / np.linalg.norm(made)).astype(np.float32)

    def index(self, location: str, log: Path) -> str:
        """Writes it; the names of rows are logged when their writing is confirmed."""
        fill.ENCODED_AT_ONCE = WRITTEN_AT_ONCE
        store = open_store(location)
        upsert = store.upsert

        def logged(rows: Any, embeds: np.ndarray) -> None:
            upsert(rows, embeds)
            with log.open("a") as file:
                file.write("".join(f"{row.name}\n" for row in rows))

        store.upsert = logged
        rows = self.rows()
        items = [{"file": name, "v": self.version} for name in rows]
        try:
            store.build_of_vectors(np.stack(list(rows.values())), items, Plain(), kind="exact", progress=False)
        except (OSError, ValueError) as error:
            return str(error)
        return ""


class Judge:
    """Right or wrong, for a gallery that may be in one of some states."""

    def __init__(self, *versions: int):
        self.states = [State(version).rows() for version in versions]
        first, *others = self.states
        same = [name for name in first if all(np.array_equal(first[name], each.get(name)) for each in others)]
        self.same, self.vectors = np.array(same), np.stack([first[name] for name in same])

    def wrong(self, query: np.ndarray, scores: np.ndarray, items: list[dict]) -> str:
        """Why an answer cannot be; empty if it can."""
        names = [item["file"] for item in items]
        if len(names) != K or len(set(names)) != K:
            return f"{len(set(names))} different items of {K}"
        for name, score in zip(names, scores.tolist(), strict=True):
            if not any(name in state and abs(state[name] @ query - score) < 1e-4 for state in self.states):
                return f"{name} does not score {score:.5f}"
        better = self.same[self.vectors @ query > scores[-1] + 1e-4]
        return f"{min(missing)} is missing" if (missing := set(better.tolist()) - set(names)) else ""


def queries() -> np.ndarray:
    made = np.random.default_rng(7).normal(size=(50, DIM))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def read(location: str, versions: tuple[int, ...], stop: Path) -> dict[str, Any]:
    """Searches until a file is there: how many answers were right, said to be none, or wrong."""
    judge, asked = Judge(*versions), queries()
    told: dict[str, Any] = {"right": 0, "said": 0, "wrong": 0, "examples": [], "last_failure": 0.0}
    store, number = open_store(location), 0
    while number == 0 or not stop.exists():
        query = asked[number % len(asked)]
        number += 1
        try:
            scores, items = store.search(query[None], K)
            reason, sign = judge.wrong(query, scores[0], items[0]), "wrong"
        except (OSError, ValueError) as error:
            reason, sign = str(error), "said"
        told[sign if reason else "right"] += 1
        if reason:
            told["last_failure"] = time.time()
            if reason[:80] not in [each[:80] for each in told["examples"]]:
                told["examples"].append(reason)
        time.sleep(0.02)
    return told


def names_there(location: str) -> set[str]:
    """Of the rows that are stored, whether or not a search sees them yet."""
    store = open_store(location)

    def names() -> set[str]:
        store.begin({"model": Plain.name, "digest": Plain.digest}, DIM, ROWS, "exact")
        return set(store.versions())

    return answered(names, set())


def whole(location: str, version: int) -> dict[str, int]:
    """Rows that are missing, foreign or changed, and wrong answers, while nothing else goes on."""
    expected, store, judge = State(version).rows(), open_store(location), Judge(version)

    def state() -> dict[str, int]:
        answers = zip(queries(), *store.search(queries(), K), strict=True)
        wrong = sum(bool(judge.wrong(*each)) for each in answers)
        there = {row.item["file"]: each for rows, of in store.rows() for row, each in zip(rows, of, strict=True)}
        lost = sum(name not in there or not np.array_equal(there[name], each) for name, each in expected.items())
        return {"lost": lost + len(there.keys() - expected.keys()), "wrong": wrong}

    return answered(state, {"lost": len(expected), "wrong": 0})


def answered(work: Callable[[], Any], otherwise: Any) -> Any:
    """What it returns as soon as the engine answers; `otherwise` if it never does."""
    end = time.monotonic() + TRIED_FOR
    while time.monotonic() < end:
        try:
            return work()
        except (OSError, ValueError):
            time.sleep(1)
    return otherwise


class Running:
    """A function in a process of its own; this one never talks to an engine, so that it can be forked."""

    def __init__(self, work: Callable[..., Any], *arguments: Any):
        fork = multiprocessing.get_context("fork")
        self.answers, sender = fork.Pipe(duplex=False)
        self.process = fork.Process(target=lambda: sender.send(work(*arguments)), daemon=True)
        self.process.start()
        sender.close()

    def result(self) -> Any:
        try:
            return self.answers.recv()
        finally:
            self.process.join()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


class Faults:
    """Each method is a fault; it returns what was seen."""

    def __init__(self, kind: str, servers: Servers, location: str, work: Path):
        self.kind, self.servers, self.location, self.work, self.number = kind, servers, location, work, 0

    def place(self) -> tuple[str, Path]:
        """A gallery that is not there yet, and a file for a log."""
        self.number += 1
        return self.location.format(f"faults_{self.number}"), self.work / f"{self.kind}-{self.number}.log"

    def indexer_killed_during_upserts(self) -> dict[str, Any]:
        location, log = self.place()
        indexer = Running(State(1).index, location, log)
        confirmed = wait_for_lines(log)
        indexer.kill()
        gone = confirmed - self.ask(names_there, location)
        stop = self.stopped(0.5, log)
        told = self.ask(read, location, (1,), stop)  # no gallery yet: must be said
        again = self.ask(State(1).index, location, log)
        return self.finished(location, 1, told, again) | {"confirmed_and_gone": len(gone)}

    def two_indexers_at_once(self) -> dict[str, Any]:
        location, log = self.place()
        both = [Running(State(1).index, location, log) for _ in range(2)]
        said = [error for each in both if (error := self.result_of(each))]
        again = self.ask(State(1).index, location, log) if said else ""
        return self.finished(location, 1, {"said": len(said), "examples": said}, again)

    def readers_during_writes(self) -> dict[str, Any]:
        location, log = self.place()
        self.indexed(location, log)
        stop = log.with_suffix(".stop")
        readers = [Running(read, location, (1, 2), stop) for _ in range(2)]
        time.sleep(1)
        error = self.ask(State(2).index, location, log)
        time.sleep(SETTLED)
        stop.touch()
        return self.finished(location, 2, joined([self.result_of(each) for each in readers]), error)

    def server_killed_during_search(self, role: str) -> dict[str, Any]:
        location, log = self.place()
        error = self.indexed(location, log)
        stop = log.with_suffix(".stop")
        reader = Running(read, location, (1,), stop)
        time.sleep(SETTLED)
        killed = time.time()
        self.restart(role)
        self.wait_until_right(location, log)
        stop.touch()
        told = self.result_of(reader)
        told["s_until_right"] = round(max(0.0, told["last_failure"] - killed), 1)
        return self.finished(location, 1, told, error)

    def server_killed_during_upserts(self, role: str) -> dict[str, Any]:
        location, log = self.place()
        indexer = Running(State(1).index, location, log)
        wait_for_lines(log)
        self.restart(role)
        error = self.result_of(indexer)
        confirmed = set(log.read_text().split())
        gone = confirmed - self.ask(names_there, location)
        again = self.ask(State(1).index, location, log) if error else ""
        told = {"said": bool(error), "examples": [error] if error else []}
        return self.finished(location, 1, told, again) | {"confirmed_and_gone": len(gone)}

    def indexed(self, location: str, log: Path) -> str:
        """Indexes the first version; again where the engine says that it cannot, as after the fault before."""
        end = time.monotonic() + TRIED_FOR
        while (error := self.ask(State(1).index, location, log)) and time.monotonic() < end:
            time.sleep(SETTLED)
        return error

    def ask(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self.result_of(Running(work, *arguments))

    def result_of(self, running: Running) -> Any:
        """While it works, a server that has ended by itself is started again, as those who run servers do."""
        while not running.answers.poll(1):
            self.servers.revive()
        return running.result()

    def restart(self, role: str) -> None:
        self.servers.kill(role)
        time.sleep(1)
        self.servers.start_again(role)

    def stopped(self, seconds: float, log: Path) -> Path:
        """A file that appears after some seconds."""
        stop = log.with_suffix(".stop")
        Running(lambda: (time.sleep(seconds), stop.touch()))
        return stop

    def wait_until_right(self, location: str, log: Path) -> None:
        """Until three looks in a row found only right answers."""
        end, right = time.monotonic() + TRIED_FOR, 0
        while right < 3 and time.monotonic() < end:
            stop = self.stopped(1.0, log.with_name(f"{log.stem}-{time.monotonic_ns()}"))
            told = self.ask(read, location, (1,), stop)
            right = right + 1 if told["right"] and not told["said"] and not told["wrong"] else 0

    def finished(self, location: str, version: int, told: dict[str, Any], error: str) -> dict[str, Any]:
        if error:
            told = told | {"examples": [*told.get("examples", []), error]}
        time.sleep(SETTLED)
        at_last = self.ask(whole, location, version)
        wrong = told.get("wrong", 0) + at_last["wrong"]
        told.pop("last_failure", None)
        told["examples"] = [each.replace(location, "GALLERY") for each in told.get("examples", [])]
        return {"right": 0, "said": 0} | told | {"wrong": wrong, "lost": at_last["lost"], "ended": not error}


def joined(told: list[dict[str, Any]]) -> dict[str, Any]:
    counted = {name: sum(each[name] for each in told) for name in ("right", "said", "wrong")}
    return counted | {"examples": [example for each in told for example in each["examples"]]}


def wait_for_lines(log: Path) -> set[str]:
    end = time.monotonic() + TRIED_FOR
    while time.monotonic() < end:
        lines = set(log.read_text().split()) if log.exists() else set()
        if len(lines) >= KILLED_AFTER * WRITTEN_AT_ONCE:
            return lines
        time.sleep(0.01)
    raise TimeoutError(f"{log}: the indexer wrote too little in {TRIED_FOR} s")


def of_engine(kind: str, work: Path, programs: Path | None, only: str) -> list[dict[str, Any]]:
    server = KINDS[kind](work / kind, *([] if kind == "pgvector" else [programs]))
    rows = []
    with server:
        location = server.location if kind == "pgvector" else f"{server.location}/{{}}"
        faults = Faults(kind, server, location, work)
        plans: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("indexer killed during upserts", faults.indexer_killed_during_upserts),
            ("two indexers at once", faults.two_indexers_at_once),
            ("readers during writes", faults.readers_during_writes),
        ]
        plans += [
            (f"{role} killed during search", partial(faults.server_killed_during_search, role))
            for role in SEARCHING[kind]
        ]
        plans += [
            (f"{role} killed during upserts", partial(faults.server_killed_during_upserts, role))
            for role in WRITING[kind]
        ]
        for name, fault in (each for each in plans if only in each[0]):
            begun = time.monotonic()
            rows.append({"engine": kind, "fault": name} | fault() | {"took_s": round(time.monotonic() - begun, 1)})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def without_places(result: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """The result with folders of this machine by other names."""
    text = json.dumps(result)
    for place, name in places.items():
        text = text.replace(place, name)
    return json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="*", choices=list(KINDS), default=["pgvector", "milvus"])
    parser.add_argument("--programs", type=Path, help="folder with the package milvus, as `make engines` fills it")
    parser.add_argument("--only", default="", help="faults whose name contains it [all]")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    private_network()
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        Path(folder).chmod(0o755)
        rows: list[dict[str, Any]] = []
        for kind in arguments.engines:
            rows += of_engine(kind, Path(folder), arguments.programs, arguments.only)
            result = {"command": " ".join(sys.argv), "items": ROWS, "dim": DIM, "faults": rows}
            places = {folder: "FOLDER", str(arguments.programs): "PROGRAMS", str(arguments.output): "OUTPUT"}
            record(without_places(result, places) | {"environment": environment()}, arguments.output)
    if bad := [
        row for row in rows if row["wrong"] or row["lost"] or row.get("confirmed_and_gone") or not row["ended"]
    ]:
        sys.exit("\n".join(f"{row['engine']}, {row['fault']}: {row}" for row in bad))


if __name__ == "__main__":
    main()
