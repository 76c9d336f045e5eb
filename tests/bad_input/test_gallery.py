"""Galleries that are damaged, of another format, or in a place where none may be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.header import FORMAT, checksum_of, to_json
from tests.bad_input.table import Case, Parts, one_clear_line

HEADER = "gallery.json"
FILES = (HEADER, "items-*.arrow", "vectors-*.safetensors", "index.faiss", "hubs.safetensors")


def graph(parts: Parts, folder: Path, seed: int = 0) -> Path:
    """A gallery of every file there is, searched by a graph, with hubs; made once and copied into `folder`."""
    made = parts.gallery.with_name(f"graph{seed}")
    if not made.exists():
        vectors = np.random.default_rng(seed).normal(size=(40, 16)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        index = GalleryIndex(vectors, [{"file": f"{seed}/{row}.jpg"} for row in range(40)], model="m", kind="hnsw")
        index.learn_hubs(vectors[:5])
        index.save(made)
    return shutil.copytree(made, folder)


def place(gallery: Path, name: str) -> Path:
    return gallery / name if name == HEADER else next(gallery.glob(f"versions/*/{name}"))


def flipped(content: bytes, share: float) -> bytes:
    at = round(share * (len(content) - 1))
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "longer": lambda content: content + b"\n\n\0",
    "garbage": lambda content: bytes(range(255, 0, -1)) * 20,
    "zero": lambda content: bytes(len(content)),
    "utf16": lambda content: content.decode("latin-1").encode("utf-16"),
    "null": lambda content: b"null",
    "list": lambda content: b"[]",
    "object": lambda content: b"{}",
    "text": lambda content: b'"text"',
    "nested": lambda content: b"[" * 100_000,
}
DAMAGES |= {f"bit {share}": lambda content, share=share: flipped(content, share) for share in (0, 0.1, 0.35, 0.8, 1)}


def damaged(name: str, change: Callable[[bytes], bytes] | None, command: str = "search"):
    """A search in a gallery one of whose files is another, or gone."""

    def arrange(parts: Parts, folder: Path) -> list[str]:
        path = place(graph(parts, folder / "g"), name)
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))
        if command == "index":
            return ["index", str(parts.photographs), str(folder / "g"), "--model", str(parts.model)]
        return ["search", str(folder / "g"), "a dog", "--correction", "qbnorm"]

    return arrange


def of_another(name: str):
    def arrange(parts: Parts, folder: Path) -> list[str]:
        other = graph(parts, folder / "other", seed=1)
        shutil.copy(place(other, name), place(graph(parts, folder / "g"), name))
        return ["search", str(folder / "g"), "a dog"]

    return arrange


def edited(change: Callable[[dict], object], command: str = "search"):
    """A search in a gallery whose header says something else, with the checksum that goes with it."""

    def arrange(parts: Parts, folder: Path) -> list[str]:
        path = graph(parts, folder / "g") / HEADER
        header = json.loads(path.read_text())
        change(header)
        if "checksum" in header:
            header["checksum"] = checksum_of(header)
        path.write_text(to_json(header))
        if command == "index":
            return ["index", str(parts.photographs), str(folder / "g"), "--model", str(parts.model)]
        return ["search", str(folder / "g"), "a dog"]

    return arrange


def without(name: str):
    return lambda header: header.pop(name)


def with_value(name: str, value: object, inner: str | None = None):
    return lambda header: (header if inner is None else header[inner]).__setitem__(name, value)


VALUES = {"null": None, "text": "text", "list": [1], "negative": -1, "huge": 2**70, "object": {}, "true": True}
FITS = {  # what a field may hold
    "model": ("null", "text"),
    "digest": ("null", "text"),
    "root": ("null", "text"),
    "origin": ("null", "object"),
    "broken": (),
}
HEADER_FIELDS = ("version", "files", "items", "dim", "plan", "model", "digest", "root", "origin", "broken")
PLAN_FITS = {"reason": ("text",), "factory": ("text",), "measured_on": ("text",), "recall": ("null",)}
PLAN_FIELDS = ("kind", "factory", "reason", "effort", "recall", "measured_on")
FORMATS = (0, 1, FORMAT - 1, FORMAT + 1, 99, -1, "3", 3.0, None, True, [FORMAT], {})


def file_cases() -> list[Case]:
    cases = []
    for name in FILES:
        says = f"{name.replace('*', '.*')}|not a gallery"
        cases.append(Case(f"gallery/{name} missing", damaged(name, None), says))
        for damage, change in DAMAGES.items():
            cases.append(Case(f"gallery/{name} {damage}", damaged(name, change), says))
        if name != HEADER:
            cases.append(Case(f"gallery/{name} of another gallery", of_another(name), says))
    return cases


def header_cases() -> list[Case]:
    cases = [Case(f"gallery/{name} absent", edited(without(name)), name) for name in HEADER_FIELDS[:6]]
    for name in HEADER_FIELDS:
        for what, value in VALUES.items():
            if what not in FITS.get(name, ()):
                cases.append(Case(f"gallery/{name} is {what}", edited(with_value(name, value)), name))
    for name in PLAN_FIELDS:
        cases.append(Case(f"gallery/plan.{name} absent", edited(lambda h, name=name: h["plan"].pop(name)), name))
        for what, value in VALUES.items():
            if what not in PLAN_FITS.get(name, ()):
                cases.append(Case(f"gallery/plan.{name} is {what}", edited(with_value(name, value, "plan")), "plan"))
    cases.append(Case("gallery/plan with another field", edited(with_value("x", 1, "plan")), "plan: x unknown"))
    cases.append(
        Case("gallery/plan without its index", edited(lambda h: h["files"].pop("index.faiss")), "index.faiss")
    )
    for kind in ("ivf", "pq"):
        cases.append(
            Case(f"gallery/plan of kind {kind}", edited(with_value("kind", kind, "plan")), "index.faiss holds")
        )
    cases.append(Case("gallery/one item more", edited(with_value("items", 41)), "41 items"))
    cases.append(Case("gallery/a file of another folder", edited(with_value("version", "../../../secret")), "version"))
    for command in ("search", "index"):
        for number in FORMATS:
            if command == "search" or not isinstance(number, int) or number > FORMAT or number < 1:
                change = with_value("format", number)
                cases.append(Case(f"gallery/{command} of format {number!r}", edited(change, command), "format"))
    cases.append(Case("gallery/newer says so", edited(with_value("format", FORMAT + 1)), "newer hf_vse.*pip install"))
    cases.append(
        Case("gallery/older says so", edited(with_value("format", 2)), "format is 2,.*build the gallery again")
    )
    return cases


def over_cases() -> list[Case]:
    """Indexing over what is there: a header that cannot be trusted is not replaced."""
    names = ("empty", "truncated", "garbage", "utf16", "null", "list", "nested")
    return [
        Case(f"gallery/index over header {name}", damaged(HEADER, DAMAGES[name], "index"), HEADER) for name in names
    ]


def indexed(source: str, index: str, *options: str, make: Callable[[Path], object] = lambda folder: None):
    """An index of photographs in the folder; `{photos}` is the folder of them."""

    def arrange(parts: Parts, folder: Path) -> list[str]:
        shutil.copytree(parts.photographs, folder / "photos")
        make(folder)
        return ["index", source, index, "--model", str(parts.model), *options]

    return arrange


def user_parts(folder: Path) -> None:
    (folder / "photos" / "parts").mkdir()
    (folder / "photos" / "parts" / "engine.txt").write_text("mine")


def a_file(folder: Path) -> None:
    (folder / "mine.txt").write_text("mine")


def a_folder_of_mine(folder: Path) -> None:
    (folder / "mine" / "parts" / "x").mkdir(parents=True)
    (folder / "mine" / "parts" / "x" / "0123456789abcdef.json").write_text("mine")


def vectors(folder: Path, **values: float) -> None:
    array = np.eye(20, 16, dtype=np.float32)
    array[16:, 0] = 1
    for row, value in values.items():
        array[int(row[1:])] *= value
    np.save(folder / "e.npy", array)
    (folder / "few.jsonl").write_text('{"file": "a"}\n' * 19)
    (folder / "bad.jsonl").write_text('{"file": "a"}\n' * 19 + "{")
    (folder / "latin1.jsonl").write_bytes(b'{"file": "\xe9"}\n' * 20)


PLACES = [
    Case("gallery/in its photographs", indexed("photos", "photos", make=user_parts), "its own photographs"),
    Case("gallery/below its photographs", indexed("photos", "photos/index"), "its own photographs"),
    Case("gallery/by another way", indexed("photos", "photos/../photos/city/../index"), "its own photographs"),
    Case("gallery/above its photographs", indexed("photos", "."), "lie in the index"),
    Case(
        "gallery/in a folder of somebody", indexed("photos", "mine", make=a_folder_of_mine), "not a gallery and holds"
    ),
    Case("gallery/a file", indexed("photos", "mine.txt", make=a_file), "is a file"),
    Case("gallery/under a file", indexed("photos", "mine.txt/index", make=a_file), "which is a file"),
    Case("gallery/a device", indexed("photos", "/dev/null"), "is a file"),
    Case("gallery/NUL in its name", indexed("photos", "a\0b"), "not a valid file name"),
    Case("gallery/name of 300", indexed("photos", "a" * 300), "cannot be used"),
    Case("gallery/no name", indexed("photos", ""), "name of a folder"),
    Case("gallery/no photographs", indexed("nowhere", "i"), "nowhere is not a folder"),
    Case("gallery/photographs are a file", indexed("mine.txt", "i", make=a_file), "not a folder"),
    Case("gallery/kind", indexed("photos", "i", "--kind", "tree"), "kind"),
    Case("gallery/pq of few", indexed("photos", "i", "--kind", "pq"), "needs at least 256"),
    Case("gallery/items without an array", indexed("photos", "i", "--items", "x"), "--items goes with"),
    Case("gallery/data_dir without a data set", indexed("photos", "i", "--data_dir", "x"), "--data_dir goes with"),
    Case("gallery/query bank missing", indexed("photos", "i", "--query_bank", "none.txt"), "query_bank none.txt"),
]


def array_case(what: str, says: str, *options: str, **values: float) -> Case:
    make = indexed("e.npy", "i", *options, make=lambda folder: vectors(folder, **values))
    return Case(f"gallery/array {what}", make, says)


ARRAYS = [
    array_case("with a row of zero", "row 3 has length 0", r3=0),
    array_case("not of unit length", "row 7 has length 10", r7=10),
    array_case("with nan", "nan", r5=float("nan")),
    array_case("without its items", "items none.jsonl does not exist", "--items", "none.jsonl"),
    array_case("with too few items", "19 lines for the 20 vectors", "--items", "few.jsonl"),
    array_case("with items that are no JSON", "bad.jsonl, line 20 is not valid JSON", "--items", "bad.jsonl"),
    array_case("with items of latin-1", "latin1.jsonl is not valid UTF-8", "--items", "latin1.jsonl"),
    array_case("with items that are a folder", "items photos does not exist", "--items", "photos"),
]
CASES = file_cases() + header_cases() + over_cases() + PLACES + ARRAYS

test_one_clear_line = one_clear_line(CASES)
