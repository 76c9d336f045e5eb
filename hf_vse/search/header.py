"""`gallery.json`: the current version of a gallery, size and checksum of each of its files, and facts about it.

To replace a gallery, only this file is replaced, so a reader always gets files that belong together.
"""

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from hf_vse.files import read_json
from hf_vse.search.plan import Plan

FORMAT = 4
HEADER_FILE = "gallery.json"
FAISS_FILE = "index.faiss"
HUBS_FILE = "hubs.safetensors"
DEAD_FILE = "dead.safetensors"
OLD_FORMAT = 3  # read, and written anew by the next `hf-vse index`, with the vectors it has
ITEMS_FILE = "items.jsonl"  # this and the next two are files of it
VECTORS_FILE = "gallery.safetensors"
KEYS_FILE = "keys.json"
OLD_FILES = (ITEMS_FILE, VECTORS_FILE, KEYS_FILE, FAISS_FILE, HUBS_FILE)
OUR_FILE = re.compile(
    r"items-[0-9a-f]{16}\.arrow|vectors-[0-9a-f]{16}\.safetensors|" + "|".join(map(re.escape, (*OLD_FILES, DEAD_FILE)))
)
NOT_FACTS = (
    "format",
    "version",
    "files",
    "segments",
    "items",
    "dim",
    "plan",
    "indexed",
    "recipe",
    "settings",
    "model_files",
    "checksum",
)
VERSION = re.compile(r"[0-9a-f]{16}")
CHECKSUM = re.compile(r"[0-9a-f]{64}")
BLOCK = 2**20  # bytes read at once
KINDS = ("number", "text", "truth", "object")  # of the values of a field, see `filters.py`

Check = tuple[Callable[[Any], bool], str]


def is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def items_file(segment: str) -> str:
    return f"items-{segment}.arrow"


def vectors_file(segment: str) -> str:
    return f"vectors-{segment}.safetensors"


def is_part_of_segment(name: str) -> bool:
    return name.startswith(("items", "vectors-", VECTORS_FILE))


def is_list_of_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        OUR_FILE.fullmatch(name) is not None
        and isinstance(entry, dict)
        and is_count(entry.get("bytes"), 0)
        and CHECKSUM.fullmatch(str(entry.get("checksum"))) is not None
        for name, entry in value.items()
    )


def are_segments(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(segment, dict)
        and segment.keys() == {"name", "rows"}
        and VERSION.fullmatch(str(segment["name"])) is not None
        and is_count(segment["rows"])
        for segment in value
    )


def is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def is_object_or_null(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def are_fields(value: Any) -> bool:
    kinds_of_all = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(kinds, list) and all(kind in KINDS for kind in kinds) for kinds in kinds_of_all)


def is_encoder_or_null(value: Any) -> bool:
    fields = {"place": str | None, "kind": str, "needs": list, "dtype": str | None}
    return value is None or (
        isinstance(value, dict)
        and value.keys() == fields.keys()
        and all(isinstance(value[name], kind) for name, kind in fields.items())
    )


NEEDED: dict[str, Check] = {
    "version": (
        lambda value: isinstance(value, str) and VERSION.fullmatch(value) is not None,
        "the name of a version",
    ),
    "files": (is_list_of_files, "files with bytes and checksum"),
    "items": (is_count, "a number from 1 on"),
    "dim": (is_count, "a number from 1 on"),
    "plan": (lambda value: isinstance(value, dict), "an object {...}"),
    "model": (is_text_or_null, "a name or null"),
    "checksum": (lambda value: isinstance(value, str), "a checksum"),
}
OPTIONAL: dict[str, Check] = {
    "digest": (is_text_or_null, "text or null"),
    "encoder": (is_encoder_or_null, "an object {...} that says how to open the model, or null"),
    "recipe": (is_text_or_null, "text or null"),
    "root": (is_text_or_null, "a folder or null"),
    "shards": (is_text_or_null, "text or null"),
    "origin": (is_object_or_null, "an object {...} or null"),
    "passed_over": (is_object_or_null, "an object {...} or null"),
    "indexed": (is_count, "a number from 1 on"),
    "settings": (is_text_or_null, "text or null"),
    "model_files": (is_text_or_null, "text or null"),
    "segments": (are_segments, "a list of segments"),
    "unmatched": (is_object_or_null, "an object {...} or null"),
    "repeated": (is_object_or_null, "an object {...} or null"),
    "fields": (are_fields, "the kinds of values of each field"),
    "broken": (
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "a list of names",
    ),
}


def read_header(folder: Path) -> dict[str, Any]:
    """The contents of `gallery.json`, every field checked, `plan` as a `Plan`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: another format, or damaged.
    """
    path = folder / HEADER_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no gallery: {HEADER_FILE} is missing; make one with `hf-vse index`")
    header = read_json(path, dict)
    number = header.get("format")
    if number not in (FORMAT, OLD_FORMAT) or not is_count(number):
        newer = is_count(number) and number > FORMAT
        remedy = "it was made by a newer hf_vse, pip install -U hf_vse" if newer else again(folder)
        raise ValueError(f"{path}: format is {number!r:.60}, this hf_vse reads {FORMAT}: {remedy}")
    for name, (holds, wanted) in (NEEDED | OPTIONAL).items():
        if name not in header and name in NEEDED:
            raise ValueError(f"{path} has no field {name!r}: {again(folder)}")
        if name in header and not holds(header[name]):
            raise ValueError(f"{path}: {name} is {header[name]!r:.60}, not {wanted}: {again(folder)}")
    if header["checksum"] != checksum_of(header):
        raise ValueError(f"{path} was changed after it was written (its checksum differs): {again(folder)}")
    check_names_of_files(path, header)
    header["plan"] = Plan.of_dict(header["plan"], f"{path}: plan")
    check_plan(path, header)
    return header


def again(folder: Path) -> str:
    """The remedy if `gallery.json` itself is damaged."""
    return f"delete the folder {folder} and build the gallery again with `hf-vse index`"


def check_names_of_files(path: Path, header: dict[str, Any]) -> None:
    """Raises ValueError if the files are not those of the format."""
    if header["format"] == OLD_FORMAT:
        there = {ITEMS_FILE, VECTORS_FILE} <= header["files"].keys() <= set(OLD_FILES)
    else:
        names = [segment["name"] for segment in header.get("segments", [])]
        wanted = {of(name) for name in names for of in (items_file, vectors_file)}
        others = {FAISS_FILE, HUBS_FILE, DEAD_FILE}
        there = len(wanted) == 2 * len(names) > 0 and wanted <= header["files"].keys() <= wanted | others
    if not there:
        raise ValueError(
            f"{path}: files and segments are not those of a gallery of format {header['format']}: {again(path.parent)}"
        )


def check_plan(path: Path, header: dict[str, Any]) -> None:
    """Raises ValueError if the plan does not fit the other fields."""
    plan, has_faiss = header["plan"], FAISS_FILE in header["files"]
    if has_faiss != (plan.kind != "exact"):
        state = "is listed" if has_faiss else "is missing"
        raise ValueError(f"{path}: plan is of kind {plan.kind!r} and {FAISS_FILE} {state}: {again(path.parent)}")
    if plan.effort > header["items"]:
        raise ValueError(
            f"{path}: plan.effort is {plan.effort}, more than the {header['items']} items: {again(path.parent)}"
        )


def checksum_of(header: dict[str, Any]) -> str:
    """Checksum of all fields except the checksum itself."""
    return json_digest({name: value for name, value in header.items() if name != "checksum"})


def json_digest(*values: Any) -> str:
    """SHA-256 of JSON values, in hexadecimal."""
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that can be encoded as UTF-8; file names that are not valid Unicode are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text
