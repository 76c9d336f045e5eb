"""Tables of images and captions: JSON lines, parquet, CSV, tar files and folders with metadata."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bad_input.table import Case, one_clear_line
from tests.bad_input.values import DAMAGES, MISSING, VALUES

CAPTION = "caption of a picture"


def png(shade: int = 0) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(folder: Path, count: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(count):
        (folder / f"{row}.png").write_bytes(png(row))


def lines(image_field: str) -> list[dict[str, Any]]:
    return [{image_field: f"{row}.png", "captions": [f"{CAPTION} {row}", "another"]} for row in range(3)]


def in_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


KINDS = {"json": ("image", "pairs.jsonl"), "imagefolder": ("file_name", "metadata.jsonl")}


def of_lines(kind: str, change: Callable[[bytes], bytes]):
    """The command on three pictures and a file of lines, whose good bytes `change` turns into others."""
    field, name = KINDS[kind]

    def make(_, folder: Path) -> list[str]:
        pictures(folder / "data")
        (folder / "data" / name).write_bytes(change(in_lines(lines(field))))
        return ["data", "show", "--dataset", kind, "--data_dir", str(folder / "data")]

    return make


def with_value(kind: str, field: str, value: Any):
    """The same with one field of the second line set, or absent."""

    def change(_: bytes) -> bytes:
        rows = lines(KINDS[kind][0])
        if value is MISSING:
            rows[1].pop(field)
        else:
            rows[1][field] = value
        return in_lines(rows)

    return of_lines(kind, change)


def in_all(kind: str, field: str, value: Any):
    return of_lines(kind, lambda _: in_lines([row | {field: value} for row in lines(KINDS[kind][0])]))


CASES = [
    Case(f"{kind}/file {damage}", of_lines(kind, change), says.replace("JSON", "JSON|is empty|names no image"), right)
    for kind in KINDS
    for damage, (change, says, right) in DAMAGES.items()
]
NAMES = (
    "missing",
    "null",
    "number",
    "negative",
    "true",
    "huge",
    "inf",
    "string",
    "empty",
    "list",
    "dict",
    "surrogate",
)
NAMES += ("absolute", "parent", "url")
CASES += [
    Case(f"{kind}/{field} {value}", with_value(kind, field, VALUES[value]), ".")
    for kind, (field, _) in KINDS.items()
    for value in NAMES
]
CASES += [
    Case(f"{kind}/every {field} {value}", in_all(kind, field, VALUES[value]), ".")
    for kind, (field, _) in KINDS.items()
    for value in ("null", "number", "list", "numbers", "dict", "dicts", "parent")
]
CASES += [
    Case(
        f"json/every captions {kind}",
        in_all("json", "captions", VALUES[kind]),
        ".",
        accepted=kind in ("string", "html"),
    )
    for kind in ("null", "number", "true", "string", "empty", "list", "numbers", "nested", "dict", "dicts", "html")
]
CASES += [
    Case("json/captions missing once", with_value("json", "captions", MISSING), accepted=True),
    Case("json/captions null once", with_value("json", "captions", None), accepted=True),
    Case("json/captions number once", with_value("json", "captions", 7), "."),
    Case("json/captions half a character", with_value("json", "captions", ["half \ud83d"]), "."),
    Case("json/separators", with_value("json", "captions", ["a\u2028b\u0085c"]), accepted=True),
    Case(
        "json/separators unescaped",
        of_lines("json", lambda good: good.replace(b"another", "a\u2028b".encode())),
        "",
        True,
    ),
    Case(
        "imagefolder/separators",
        of_lines("imagefolder", lambda good: good.replace(b"another", "a\u2028b".encode())),
        "",
        True,
    ),
    Case("imagefolder/windows lines", of_lines("imagefolder", lambda good: good.replace(b"\n", b"\r\n")), "", True),
    Case(
        "imagefolder/deep",
        of_lines("imagefolder", lambda good: good.replace(b'["', b"[" * 100_000 + b'["', 1)),
        "nested",
    ),
    Case("json/deep", of_lines("json", lambda good: good.replace(b'["', b"[" * 100_000 + b'["', 1)), "nested"),
    Case("json/a list", of_lines("json", lambda good: b"[" + good.strip().replace(b"\n", b",") + b"]"), "JSON|object"),
    Case("json/only captions", of_lines("json", lambda _: b'{"captions": ["a"]}\n'), "no image column"),
    Case("json/only images", of_lines("json", lambda _: b'{"image": "0.png"}\n'), "no caption column"),
    Case(
        "json/split known to some",
        of_lines(
            "json",
            lambda _: in_lines(
                [row | {"split": name} for row, name in zip(lines("image"), ("train", "trian", "test"), strict=True)]
            ),
        ),
        "column 'split' holds 'trian' in 1 of 3 rows",
    ),
    Case(
        "json/ids beyond 64 bits",
        of_lines("json", lambda _: in_lines([row | {"image_id": 2**63} for row in lines("image")])),
        "",
        True,
    ),
]


def arrange_folder(make: Callable[[Path], None], kind: str = "imagefolder"):
    def arrange(_, folder: Path) -> list[str]:
        pictures(folder / "data")
        make(folder / "data")
        return ["data", "show", "--dataset", kind, "--data_dir", str(folder / "data")]

    return arrange


def metadata(rows: list[dict[str, Any]]):
    return lambda folder: (folder / "metadata.jsonl").write_bytes(in_lines(rows))


def csv(text: str | bytes):
    content = text.encode() if isinstance(text, str) else text
    return arrange_folder(lambda folder: (folder / "metadata.csv").write_bytes(content))


CASES += [
    Case("imagefolder/no metadata", arrange_folder(lambda folder: None), "has no metadata.jsonl"),
    Case(
        "imagefolder/metadata a folder",
        arrange_folder(lambda folder: (folder / "metadata.jsonl").mkdir()),
        "has no meta",
    ),
    Case(
        "imagefolder/a line for no file", arrange_folder(metadata([{"file_name": "9.png", "caption": "a"}])), "9.png"
    ),
    Case(
        "imagefolder/a file in no line", arrange_folder(metadata([{"file_name": "0.png", "caption": "a"}])), "", True
    ),
    Case("imagefolder/a dot before", arrange_folder(metadata([{"file_name": "./0.png", "caption": "a"}])), "", True),
    Case("csv/good", csv("file_name,caption\n0.png,a\n1.png,b\n"), accepted=True),
    Case("csv/BOM", csv(b"\xef\xbb\xbffile_name,caption\n0.png,a\n"), accepted=True),
    Case("csv/latin1", csv("file_name,caption\n0.png,caf\u00e9\n".encode("latin-1")), "UTF-8"),
    Case("csv/utf16", csv("file_name,caption\n0.png,a\n".encode("utf-16")), "UTF-8"),
    Case("csv/empty", csv(""), "names no image"),
    Case("csv/header alone", csv("file_name,caption\n"), "names no image"),
    Case("csv/no file_name", csv("image,caption\n0.png,a\n"), "names no image"),
    Case("csv/no caption", csv("file_name,year\n0.png,2000\n"), "no caption column"),
    Case("csv/parent", csv("file_name,caption\n../0.png,a\n"), "points outside"),
    Case("csv/absolute", csv("file_name,caption\n/etc/hostname,a\n"), "points outside"),
    Case("csv/url", csv("file_name,caption\nhttp://127.0.0.1/a.png,a\n"), "points outside"),
    Case("csv/more fields than columns", csv("file_name,caption\n0.png,a,b,c\n1.png,a\n"), "."),
    Case("csv/quote left open", csv('file_name,caption\n0.png,"a\n1.png,b\n'), "."),
    Case("csv/an endless field", csv("file_name,caption\n0.png," + "a" * 200_000 + "\n"), "field larger"),
    Case("csv/html", csv("<html>404</html>"), "names no image"),
    Case("csv/numbers", csv("file_name,caption\n0.png,1\n"), "holds 1, no caption"),
]


def parquet(columns: dict[str, Any], spoil: Callable[[bytes], bytes] = bytes):
    def arrange(_, folder: Path) -> list[str]:
        pq.write_table(pa.table(columns), folder / "pairs.parquet")
        (folder / "pairs.parquet").write_bytes(spoil((folder / "pairs.parquet").read_bytes()))
        return ["data", "show", "--dataset", "parquet", "--data_dir", str(folder / "pairs.parquet")]

    return arrange


def held(*contents: bytes | None, path: str | None = None) -> list[dict[str, Any]]:
    return [{"bytes": content, "path": path} for content in contents]


NOT_TEXT = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xe9\xff")])
IMAGES = {
    "int": [1],
    "float": [1.5],
    "bool": [True],
    "list of ints": [[1, 2, 3]],
    "list of lists": [[[1, 2], [3, 4]]],
    "list of names": [["0.png"]],
    "struct of others": [{"url": "http://127.0.0.1/x.png"}],
    "null": pa.nulls(1),
    "no bytes": held(None),
    "empty bytes": held(b""),
    "garbage": held(b"no picture at all"),
    "cut": held(png()[:30]),
    "PostScript": held(b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage"),
    "absolute": held(None, path="/etc/hostname"),
    "parent": held(None, path="../x.png"),
    "file address": held(None, path="file:///etc/hostname"),
    "address": held(None, path="http://127.0.0.1/x.png"),
    "name absolute": ["/etc/hostname"],
    "name parent": ["../x.png"],
    "name address": ["http://127.0.0.1/x.png"],
    "name not there": ["x.png"],
    "name no text": NOT_TEXT,
    "bytes garbage": [b"no picture"],
}
GOOD = {"image": held(png(1), png(2)), "caption": ["a", "b"]}
CASES += [
    Case(f"parquet/image {name}", parquet({"image": values, "caption": ["a"]}), ".") for name, values in IMAGES.items()
]
CAPTIONS = {
    "int": [1],
    "bool": [True],
    "null": pa.nulls(1),
    "empty": [""],
    "blank": ["  "],
    "list of ints": [[1]],
    "nested": [[["a"]]],
    "struct": [{"raw": "a"}],
    "list of structs": [[{"raw": "a"}]],
    "bytes": [b"a"],
    "empty list": pa.array([[]], pa.list_(pa.string())),
    "no text": NOT_TEXT,
}
CASES += [
    Case(f"parquet/caption {name}", parquet({"image": held(png()), "caption": values}), ".")
    for name, values in CAPTIONS.items()
]
CASES += [
    Case("parquet/good", parquet(GOOD), accepted=True),
    Case("parquet/empty", parquet(GOOD, lambda data: b""), "."),
    Case("parquet/cut", parquet(GOOD, lambda data: data[: len(data) // 2]), "."),
    Case("parquet/html", parquet(GOOD, lambda data: b"<html>404</html>"), "."),
    Case("parquet/no rows", parquet({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}), "."),
    Case("parquet/ids beyond", parquet(GOOD | {"image_id": pa.array([2**64 - 1, 1], pa.uint64())}), accepted=True),
    Case(
        "parquet/caption ids beyond", parquet(GOOD | {"sentid": pa.array([2**64 - 1, 1], pa.uint64())}), accepted=True
    ),
    Case("parquet/ids of words", parquet(GOOD | {"image_id": ["x", "x"]}), accepted=True),
    Case("parquet/ids of lists", parquet(GOOD | {"image_id": [[1], [2]]}), accepted=True),
    Case("parquet/a column called json", parquet(GOOD | {"json": ["x", "y"]}), accepted=True),
    Case("parquet/split of numbers", parquet(GOOD | {"split": [1, 2]}), accepted=True),
]


def tar(files: dict[str, bytes], spoil: Callable[[bytes], bytes] = bytes):
    def arrange(_, folder: Path) -> list[str]:
        with tarfile.open(folder / "pairs.tar", "w") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        (folder / "pairs.tar").write_bytes(spoil((folder / "pairs.tar").read_bytes()))
        return ["data", "show", "--dataset", "webdataset", "--data_dir", str(folder / "pairs.tar")]

    return arrange


SAMPLE = {"0.png": png(), "0.json": b'{"captions": ["a"], "cocoid": 5}'}
CASES += [
    Case("webdataset/good", tar(SAMPLE), accepted=True),
    Case("webdataset/names that lead out", tar({"../0.png": png(), "../0.json": SAMPLE["0.json"]}), accepted=True),
    Case("webdataset/empty", tar(SAMPLE, lambda data: b""), "."),
    Case("webdataset/cut", tar(SAMPLE, lambda data: data[:700]), "."),
    Case("webdataset/garbage", tar(SAMPLE, lambda data: bytes(range(256)) * 8), "."),
    Case("webdataset/no member", tar({}), "."),
    Case("webdataset/no captions", tar({"0.png": png()}), "no caption column"),
    Case("webdataset/no image", tar({"0.json": b'{"captions": ["a"]}'}), "no image column"),
    Case("webdataset/JSON that is none", tar(SAMPLE | {"0.json": b"{"}), "."),
    Case("webdataset/JSON a list", tar(SAMPLE | {"0.json": b"[1]"}), "."),
    Case("webdataset/JSON nested", tar(SAMPLE | {"0.json": b"[" * 100_000}), "."),
    Case("webdataset/captions numbers", tar(SAMPLE | {"0.json": b'{"captions": [1]}'}), "."),
    Case("webdataset/image broken", tar(SAMPLE | {"0.png": b"no picture"}), "missing or broken"),
    Case("webdataset/text no UTF-8", tar({"0.png": png(), "0.txt": b"caf\xe9"}), "."),
]


def command(*words: str):
    return lambda _, folder: ["data", "show", *(word.format(folder=folder) for word in words)]


def saved(_, folder: Path) -> list[str]:
    (folder / "dataset_dict.json").write_text('{"splits": []}')
    return ["data", "show", "--dataset", str(folder)]


CASES += [
    Case("source/no such folder", command("--dataset", "json", "--data_dir", "{folder}/none"), "does not exist"),
    Case("source/empty folder", command("--dataset", "json", "--data_dir", "{folder}"), "is empty"),
    Case("source/no folder", command("--dataset", "json"), "needs data_dir"),
    Case("source/unknown name", command("--dataset", "flikr8k"), "is not an existing path"),
    Case(
        "source/home of nobody", command("--dataset", "json", "--data_dir", "~nobody-of-that-name/x"), "does not exist"
    ),
    Case("source/NUL in a name", command("--dataset", "json", "--data_dir", "a\0b"), "."),
    Case("source/a name too long", command("--dataset", "json", "--data_dir", "a" * 5000), "."),
    Case("source/option that means nothing", command("--dataset", "scenes", "--features", "x.npy"), "cannot be used"),
    Case("source/saved without splits", saved, "."),
    Case(
        "source/column not there", lambda _, folder: [*parquet(GOOD)(_, folder), "--caption_column", "x"], "'x' is not"
    ),
    Case(
        "source/image column not there", lambda _, folder: [*parquet(GOOD)(_, folder), "--image_column", "x"], "'x' is"
    ),
    Case(
        "source/caption column of images",
        lambda _, folder: [*parquet(GOOD)(_, folder), "--caption_column", "image"],
        ".",
    ),
]

test_one_clear_line = one_clear_line(CASES)
