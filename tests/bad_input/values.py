"""Wrong values and damages, from which the cases are made."""

from collections.abc import Callable
from typing import Any

MISSING = object()

VALUES: dict[str, Any] = {
    "missing": MISSING,
    "null": None,
    "number": 7,
    "fraction": 1.5,
    "negative": -1,
    "true": True,
    "huge": 10**30,
    "inf": float("inf"),
    "nan": float("nan"),
    "string": "a word",
    "empty": "",
    "list": [],
    "numbers": [1, 2],
    "nested": [[["x"]]],
    "dict": {},
    "dicts": [{"a": 1}],
    "surrogate": "half \ud83d",
    "absolute": "/etc/hostname.png",
    "parent": "../../secret.png",
    "url": "http://127.0.0.1/x.png",
    "html": "<b>&amp;</b>",
}


def without(container: Any, key: str) -> None:
    """Removes a key or a place."""
    if isinstance(container, list):
        del container[int(key)]
    else:
        container.pop(key, None)


# kind -> what it makes of the bytes of a file, what the line says, whether it is right all the same
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str, bool]] = {
    "empty": (lambda data: b"", "JSON", False),
    "cut": (lambda data: data[: len(data) // 2], "JSON", False),
    "garbage": (lambda data: bytes(range(256)), "UTF-8|JSON", False),
    "utf16": (lambda data: data.decode().encode("utf-16"), "UTF-8|JSON", False),
    "latin1": (lambda data: data.replace(b"caption", "caf\u00e9".encode("latin-1"), 1), "UTF-8|JSON", False),
    "html": (lambda data: b"<!DOCTYPE html><html><body>404</body></html>", "JSON", False),
    "nested": (lambda data: b"[" * 100_000 + b"]" * 100_000, "nested too deeply|JSON", False),
    "gzip": (lambda data: b"\x1f\x8b\x08\0" + data, "UTF-8|JSON", False),
    "BOM": (lambda data: b"\xef\xbb\xbf" + data, "", True),
    "blank lines": (lambda data: b"\n\n" + data + b"\n\n", "", True),
}
