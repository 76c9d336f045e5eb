"""`metadata.jsonl` of the photographs that are indexed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bad_input.table import Case, Parts, one_clear_line

GOOD = {"file_name": "city/00.png", "captions": ["red circle"], "year": 2000}


def with_bytes(content: bytes | None, make: Callable[[Path], object] = lambda photographs: None):
    """An index of the photographs with that file beside them."""

    def arrange(parts: Parts, folder: Path) -> list[str]:
        photographs = shutil.copytree(parts.photographs, folder / "photos")
        if content is not None:
            (photographs / "metadata.jsonl").write_bytes(content)
        make(photographs)
        return ["index", "photos", "index", "--model", str(parts.model)]

    return arrange


def with_line(line: str, encoding: str = "utf-8"):
    """A good line, a wrong one, a good one."""
    last = json.dumps(GOOD | {"file_name": "city/02.png"})
    return with_bytes("\n".join([json.dumps(GOOD), line, last]).encode(encoding))


def with_fields(**fields: object):
    return with_line(json.dumps({"file_name": "lake/01.png"} | fields))


LINES = {
    "null": "null",
    "a list": "[]",
    "text": '"city/00.png"',
    "a number": "7",
    "true": "true",
    "cut off": '{"file_name": "lake/01.png", "capt',
    "with single quotes": "{'file_name': 'lake/01.png'}",
    "two objects": '{"file_name": "lake/01.png"} {"file_name": "lake/03.png"}',
    "nested 100,000 deep": '{"file_name": "lake/01.png", "x": ' + "[" * 100_000,
    "csv": "lake/01.png,a dog",
}
NAMES = {
    "null": None,
    "empty": "",
    "blank": "  ",
    "a number": 7,
    "a list": ["lake/01.png"],
    "an object": {},
    "true": True,
    "absolute": "/etc/passwd",
    "of Windows": "C:\\photos\\a.png",
    "of a share": "\\\\server\\a.png",
    "leading out": "../secret.png",
    "leading out below": "lake/../../secret.png",
    "leading out with backslashes": "..\\secret.png",
    "an address": "https://example.org/a.png",
    "an address of a file": "file:///etc/passwd",
    "with NUL": "a\0.png",
}
CAPTIONS = {
    "null": None,
    "a number": 7,
    "true": True,
    "an object": {"en": "a dog"},
    "a list of numbers": [1, 2],
    "a list with null": ["a dog", None],
    "a nested list": [["a dog"]],
    "a list of objects": [{"raw": "a dog"}],
    "half a character": ["a \ud800 dog"],
}
REFUSED = [
    *(Case(f"metadata/line {name}", with_line(line), "metadata.jsonl, line 2") for name, line in LINES.items()),
    *(
        Case(f"metadata/file_name {name}", with_fields(file_name=value), "metadata.jsonl, line 2: file_name is ")
        for name, value in NAMES.items()
    ),
    *(
        Case(f"metadata/captions {name}", with_fields(captions=value), "metadata.jsonl, line 2: captions ")
        for name, value in CAPTIONS.items()
    ),
    Case("metadata/file_name absent", with_line('{"captions": ["a dog"]}'), "line 2 has no file_name"),
    Case("metadata/file_name misspelt", with_line('{"filename": "lake/01.png"}'), "line 2 has no file_name"),
    Case(
        "metadata/latin-1",
        with_line('{"file_name": "lake/01.png", "captions": ["caf\xe9"]}', "latin-1"),
        "not valid UTF-8",
    ),
    Case("metadata/utf-16", with_line(json.dumps(GOOD), "utf-16"), "not valid UTF-8"),
    Case("metadata/garbage", with_bytes(bytes(range(256))), "not valid UTF-8"),
    Case("metadata/a JSON list", with_bytes(json.dumps([GOOD]).encode()), "line 1 holds list"),
    Case("metadata/indented", with_bytes(json.dumps(GOOD, indent=1).encode()), "line 1"),
]


def odd(text: str) -> bytes:
    return json.dumps(GOOD | {"captions": [text]}, ensure_ascii=False).encode()


ACCEPTED = {
    "byte order mark": with_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()),
    "blank lines and CRLF": with_bytes(b"\r\n \r\n" + json.dumps(GOOD).encode() + b"\r\n\r\n"),
    "other separators": with_bytes(odd("one\u2028two\x85three\u2029four")),
    "a line about no image": with_fields(file_name="lake/none.png"),
    "one sentence": with_fields(captions="a dog"),
    "no captions": with_fields(captions=[]),
    "blank captions": with_fields(captions=["", " "]),
    "half a character elsewhere": with_fields(note="\ud800"),
    "empty": with_bytes(b""),
    "HEIC beside": with_bytes(None, lambda photographs: (photographs / "a.HEIC").write_bytes(b"heic")),
}
CASES = REFUSED + [Case(f"metadata/valid {name}", make, accepted=True) for name, make in ACCEPTED.items()]

test_one_clear_line = one_clear_line(CASES)
