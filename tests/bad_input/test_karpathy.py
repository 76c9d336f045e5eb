"""Karpathy split files: every field with every kind of wrong value, and the file itself damaged in every way."""

import gzip
import json
from pathlib import Path
from typing import Any

import PIL.Image

from tests.bad_input.table import Case, one_clear_line
from tests.bad_input.values import DAMAGES, MISSING, VALUES, without

NAME = "dataset_flickr8k.json"


def content(images: int = 3) -> dict[str, Any]:
    def image(row: int) -> dict[str, Any]:
        sentences = [{"raw": f"caption {row} {number}", "tokens": []} for number in range(5)]
        ids = [*range(5 * row, 5 * row + 5)]
        return {"split": "train", "filename": f"{row}.png", "imgid": row, "sentids": ids, "sentences": sentences}

    return {"dataset": "any", "images": [image(row) for row in range(images)]}


def arrange(change, name: str = NAME, options: tuple[str, ...] = ()):
    """A folder of three pictures with the split file that `change` makes of a good one (or the bytes it gives)."""

    def make(_, folder: Path) -> list[str]:
        for row in range(3):
            PIL.Image.new("RGB", (8, 8), (row, 0, 0)).save(folder / f"{row}.png")
        good = content()
        changed = change(good)
        data = changed if isinstance(changed, bytes) else json.dumps(good if changed is None else changed).encode()
        (folder / name).write_bytes(data)
        return ["data", "show", "--dataset", "flickr8k", "--data_dir", str(folder), *options]

    return make


def put(place: str, value: Any):
    """Sets a field such as `sentences.2.raw` of the second image."""

    def change(whole: dict[str, Any]) -> None:
        *above, last = place.split(".")
        target: Any = whole["images"][1]
        for step in above:
            target = target[int(step) if step.isdecimal() else step]
        if value is MISSING:
            without(target, last)
        else:
            target[int(last) if last.isdecimal() else last] = value

    return change


FIELDS = (
    "split",
    "filename",
    "imgid",
    "cocoid",
    "sentids",
    "sentences",
    "sentids.0",
    "sentences.0",
    "sentences.0.raw",
)
# What is right all the same: other fields are ignored, an empty caption is left out, numbers may be text.
RIGHT = {("cocoid", "missing"), ("cocoid", "negative"), ("imgid", "negative"), ("sentids.0", "negative")}
RIGHT |= {("cocoid", "number"), ("imgid", "number"), ("sentids.0", "number"), ("sentids.0", "missing")}
RIGHT |= {("sentences.0.raw", kind) for kind in ("string", "empty", "absolute", "parent", "url", "html")}
RIGHT |= {("filepath", kind) for kind in ("missing", "null", "empty", "string", "html")}
SAYS = r"dataset_flickr8k.json: images\[1\] is not as in a Karpathy split JSON|images are missing or broken"
CASES = [
    Case(
        f"karpathy/{field} {kind}",
        arrange(put(field, value)),
        SAYS,
        accepted=(field, kind) in RIGHT,
    )
    for field in (*FIELDS, "filepath")
    for kind, value in VALUES.items()
    if (field, kind) not in {("sentids.0", "missing"), ("sentences.0", "missing")}
]
CASES += [
    Case(
        f"karpathy/images {kind}",
        arrange(lambda good, value=value: good | {"images": value}),
        "not a Karpathy split JSON",
    )
    for kind, value in VALUES.items()
    if value is not MISSING and not (isinstance(value, list) and value)
    if value != []
]
CASES += [
    Case(
        f"karpathy/entry {kind}",
        arrange(lambda good, value=value: good | {"images": [value]}),
        r"images\[0\] is not as",
    )
    for kind, value in VALUES.items()
    if value is not MISSING
]
CASES += [
    Case(
        f"karpathy/file {kind}", arrange(lambda good, damage=damage: damage(json.dumps(good).encode())), says, accepted
    )
    for kind, (damage, says, accepted) in DAMAGES.items()
]
CASES += [
    Case("karpathy/file none", lambda _, folder: arrange_none(folder), "no dataset_flickr8k"),
    Case(
        "karpathy/gz that is none",
        arrange(lambda good: json.dumps(good).encode(), NAME + ".gz"),
        "not a Karpathy split",
    ),
    Case(
        "karpathy/xz that is none",
        arrange(lambda good: json.dumps(good).encode(), NAME + ".xz"),
        "not a Karpathy split",
    ),
    Case("karpathy/gz", arrange(lambda good: gzip.compress(json.dumps(good).encode()), NAME + ".gz"), accepted=True),
    Case(
        "karpathy/gz cut",
        arrange(lambda good: gzip.compress(json.dumps(good).encode())[:-20], NAME + ".gz"),
        "not a Karpathy split",
    ),
    Case("karpathy/no images", arrange(lambda good: good | {"images": []}), "has no image with a caption"),
    Case(
        "karpathy/no captions",
        arrange(lambda good: [put(f"sentences.{n}.raw", " ")(good) for n in range(5)] and content(1) | {"images": []}),
        "has no image with a caption",
    ),
    Case(
        "karpathy/split file named and absent", arrange(lambda _: None, options=("--split_file", "x.json")), "x.json"
    ),
    Case(
        "karpathy/split file of another kind", arrange(lambda _: None, "a.csv", ("--split_file", "a.csv")), "must end"
    ),
    Case("karpathy/split file a folder", arrange(lambda _: None, options=("--split_file", ".")), "is not a file"),
    Case("karpathy/separators in a caption", arrange(put("sentences.0.raw", "a\u2028b\u0085c\x00")), accepted=True),
    Case("karpathy/one image twice", arrange(put("filename", "0.png")), accepted=True),
    Case("karpathy/filename with a dot before", arrange(put("filename", "./1.png")), accepted=True),
]


def arrange_none(folder: Path) -> list[str]:
    (folder / "readme.txt").touch()
    return ["data", "show", "--dataset", "flickr8k", "--data_dir", str(folder)]


test_one_clear_line = one_clear_line(CASES)
