"""Queries, conditions and outputs of a search in a good gallery, whose items have file, captions and (ten) a year."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hf_vse.search.gallery import GalleryIndex
from tests.bad_input.table import Case, Parts, one_clear_line


def search(*words: str, make: Callable[[Path], object] = lambda folder: None):
    def arrange(parts: Parts, folder: Path) -> list[str]:
        make(folder)
        return ["search", str(parts.gallery), *words]

    return arrange


def where(*conditions: str):
    return search("a dog", *(word for condition in conditions for word in ("--where", condition)))


OPERATORS = ("=", "==", "!=", "<", "<=", ">", ">=")
NO_NUMBERS = ("abc", "2000-01-01", "nan", "inf", "1e999", "0x7d0", "two thousand", "''", "20 00")
TWO = ("=>2000", "=<2000", "<>2000", "===2000", "!==2000", ">>2000", "~=2000", ">=2000<=2001", "=2000!=2001")
FORMS = (
    "",
    " ",
    "year",
    "year 2000",
    "=2000",
    ">=",
    "year:2000",
    "a b=1",
    "year>=2000 and place=x=>y",
    "year>=",
    "~x",
)
CONDITIONS = [
    *(
        Case(f"search/year{sign}{value}", where(f"year{sign}{value}"), "holds numbers|two operators")
        for sign in OPERATORS
        for value in NO_NUMBERS
    ),
    *(Case(f"search/year{rest}", where(f"year{rest}"), "two operators|is none|condition") for rest in TWO),
    *(Case(f"search/file{rest}", where(f"file{rest}"), "two operators") for rest in TWO),
    *(Case(f"search/condition {form!r}", where(form), "condition") for form in FORMS),
    *(Case(f"search/unknown{sign}1", where(f"unknown{sign}1"), "no item has 'unknown'") for sign in (*OPERATORS, "~")),
    Case("search/the second condition", where("year>2000", "yaer>2000"), "'yaer'"),
]


def odd_files(folder: Path) -> None:
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")


QUERIES = [
    Case("search/empty", search(""), "a query is empty"),
    Case("search/blank", search(" \t\n"), "a query is empty"),
    Case("search/second one empty", search("a dog", ""), "a query is empty"),
    Case("search/half a character", search("a \ud83d dog"), "half a character"),
    Case("search/byte that is not text", search("caf\udce9"), "half a character"),
    Case("search/nothing", search(), "nothing to search for"),
    *(
        Case(f"search/image {name!r:.40}", search("--image", name, make=odd_files), f"{name or 'image'}")
        for name in ("empty.png", "text.png", "cut.png", "folder.png", "pipe.png", "loop.png", "none.png")
    ),
    *(
        Case(f"search/image {name!r:.40}", search("--image", name, make=odd_files), "is not a file")
        for name in ("", " ", ".", "/", "/dev/null", "/dev/zero", "a\0b")
    ),
    Case("search/image name of 300", search("--image", "a" * 300), "name"),
    *(
        Case(f"search/-k {count}", search("a dog", "-k", count), "not an integer|-k")
        for count in ("0", "-1", "x", "1.5", "")
    ),
    *(
        Case(f"search/weight {weight}", search("a dog", "--image_weight", weight), "not a number between 0 and 1")
        for weight in ("-0.1", "1.1", "nan", "half", "")
    ),
    Case("search/correction unknown", search("a dog", "--correction", "x"), "invalid choice"),
    Case("search/correction without hubs", search("a dog", "--correction", "qbnorm"), "--query_bank"),
]


def gallery(name: str):
    def arrange(parts: Parts, folder: Path) -> list[str]:
        (folder / "empty").mkdir()
        (folder / "file").write_text("x")
        (folder / "header").mkdir()
        (folder / "header" / "gallery.json").mkdir()
        return ["search", name, "a dog"]

    return arrange


GALLERIES = [
    *(
        Case(f"search/gallery {name!r:.40}", gallery(name), "holds no gallery")
        for name in ("", "none", "empty", "file", "header", "a\0b", "/dev/null")
    ),
    Case("search/gallery name of 300", gallery("a" * 300), "name"),
]


def sheet(name: str):
    def make(folder: Path) -> None:
        (folder / "file").write_text("x")
        (folder / "folder.png").mkdir()

    return search("a dog", "--sheet", name, make=make)


SHEETS = [
    Case("search/sheet a folder", sheet("folder.png"), "folder.png is a folder"),
    Case("search/sheet under a file", sheet("file/x.png"), "which is a file"),
    Case("search/sheet NUL", sheet("a\0.png"), "not a valid file name"),
    Case("search/sheet name of 300", sheet("a" * 300 + ".png"), "cannot be used"),
    *(
        Case(f"search/sheet {name!r}", sheet(name), "must end in .png")
        for name in ("", "x", "x.jpg", "x.pdf", "x.png ")
    ),
]
VALID = ["year==2001", "year=2001.0", "year != 2001", "file~LAKE", "captions~red", "file=https://x.org/?a=b", "file="]
ACCEPTED = [Case(f"search/valid {each}", where(each), accepted=True) for each in VALID]


def odd_items(parts: Parts, folder: Path) -> list[str]:
    items = [{"captions": captions} for captions in ({"en": "a"}, "a", 7, None, [], [None], [[1]])] + [
        "a",
        7,
        None,
        [1],
    ]
    GalleryIndex(np.eye(len(items), 16), items, model=str(parts.model)).save(folder / "g")
    return ["search", "g", "a dog", "-k", "20"]


ACCEPTED.append(Case("search/valid items of every kind", odd_items, accepted=True))
ACCEPTED.append(Case("search/valid -k huge", search("a dog", "-k", str(10**20)), accepted=True))
CASES = CONDITIONS + QUERIES + GALLERIES + SHEETS + ACCEPTED

test_one_clear_line = one_clear_line(CASES)
