"""Precomputed features: arrays of every wrong shape and type, damaged files, and what is not a number."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.bad_input.table import Case, one_clear_line
from tests.bad_input.test_karpathy import NAME, content

GOOD = np.arange(12, dtype=np.float32).reshape(3, 4)


def arrange(write: Callable[[Path], None], name: str = "f.npy"):
    """The command on a split file of three images and the features that `write` leaves in a file."""

    def make(_, folder: Path) -> list[str]:
        (folder / NAME).write_text(json.dumps(content()))
        write(folder / name)
        return ["data", "show", "--dataset", "flickr8k", "--data_dir", str(folder), "--features", str(folder / name)]

    return make


def array(values: np.ndarray, spoil: Callable[[bytes], bytes] = bytes):
    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, values, allow_pickle=values.dtype == object)
        path.write_bytes(spoil(path.read_bytes()))

    return arrange(write)


def with_(place: tuple[int, ...], value: float, dtype: type = np.float32) -> np.ndarray:
    changed = GOOD.astype(dtype)
    changed[place] = value
    return changed


ARRAYS = {
    "float64": GOOD.astype(np.float64),
    "int64": GOOD.astype(np.int64),
    "bool": GOOD > 1,
    "complex": GOOD.astype(np.complex64),
    "text": GOOD.astype(str),
    "objects": np.array([[{}]] * 3, dtype=object),
    "fields": np.zeros(3, dtype=[("a", np.float32)]),
    "one number": np.float32(1).reshape(()),
    "one dimension": GOOD[0],
    "four dimensions": GOOD.reshape(3, 4, 1, 1),
    "no rows": GOOD[:0],
    "no columns": GOOD[:, :0],
    "too few rows": GOOD[:2],
    "too many rows": np.concatenate([GOOD, GOOD]),
    "nan in the first": with_((0, 0), np.nan),
    "nan in the last": with_((2, 3), np.nan),
    "inf": with_((1, 1), np.inf),
    "minus inf": with_((1, 1), -np.inf),
    "nan in float16": with_((1, 1), np.nan, np.float16),
    "inf in float16": with_((1, 1), -np.inf, np.float16),
}
CASES = [Case(f"features/{name}", array(values), "f.npy") for name, values in ARRAYS.items()]
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:40],
    "cut in the numbers": lambda data: data[:-8],
    "garbage": lambda data: bytes(range(256)) * 4,
    "html": lambda data: b"<html>404</html>",
    "header that is code": lambda data: data[:10] + data[10:].replace(b"{'descr'", b"exit(1);", 1),
    "header that is nested": lambda data: data[:10] + (b"(" * 5000).ljust(len(data)) + data[10:],
    "shape beyond the file": lambda data: data.replace(b"(3, 4)", b"(3,40)"),
    "shape negative": lambda data: data.replace(b"(3, 4)", b"(3,-4)"),
    "version unknown": lambda data: data[:6] + b"\x09\x09" + data[8:],
}
CASES += [Case(f"features/{name}", array(GOOD, spoil), "f.npy") for name, spoil in DAMAGES.items()]


def npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=GOOD)


def tensors(**given: np.ndarray):
    return arrange(lambda path: save_file(given, path), "f.safetensors")


def header(entry: Any, data: bytes = GOOD.tobytes(), length: int | None = None):
    text = (entry if isinstance(entry, str) else json.dumps({"features": entry})).encode()
    start = (len(text) if length is None else length).to_bytes(8, "little")
    return arrange(lambda path: path.write_bytes(start + text + data) and None, "f.safetensors")


ENTRY = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
HEADERS = {
    "negative offset": ENTRY | {"data_offsets": [-48, 0]},
    "offset backwards": ENTRY | {"data_offsets": [48, 0]},
    "offset beyond": ENTRY | {"data_offsets": [4800, 4848]},
    "offset huge": ENTRY | {"data_offsets": [10**30, 10**30 + 48]},
    "offset of words": ENTRY | {"data_offsets": ["a", "b"]},
    "one offset": ENTRY | {"data_offsets": [0]},
    "no offset": {"dtype": "F32", "shape": [3, 4]},
    "offset that does not fit the shape": ENTRY | {"data_offsets": [0, 40]},
    "shape negative": ENTRY | {"shape": [-3, -4]},
    "shape huge": ENTRY | {"shape": [10**15, 10**15]},
    "shape of words": ENTRY | {"shape": ["a"]},
    "shape null": ENTRY | {"shape": None},
    "type unknown": ENTRY | {"dtype": "Q8"},
    "type null": ENTRY | {"dtype": None},
    "type of whole numbers": ENTRY | {"dtype": "I32"},
    "entry a list": [1],
    "entry null": None,
    "no tensor": "{}",
    "list": "[]",
    "no JSON": "{",
    "nested": "[" * 100_000,
    "no UTF-8": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
}
CASES += [Case(f"features/safetensors {name}", header(entry), "f.safetensors") for name, entry in HEADERS.items()]
CASES += [
    Case("features/safetensors header beyond", header(ENTRY, length=2**40), "f.safetensors"),
    Case("features/safetensors empty", arrange(lambda path: path.touch(), "f.safetensors"), "f.safetensors"),
    Case("features/safetensors nan", tensors(features=with_((1, 1), np.nan)), "row 1"),
    Case("features/safetensors several and no name", tensors(a=GOOD, b=GOOD), "no tensor 'features'"),
    Case("features/safetensors", tensors(features=GOOD), accepted=True),
    Case("features/npz called npy", arrange(npz), "f.npy"),
    Case("features/a folder", arrange(lambda path: path.mkdir()), "does not exist"),
    Case("features/none", arrange(lambda path: None), "does not exist"),
    Case("features/pickle", arrange(lambda path: path.touch(), "f.pkl"), "must be .npy or .safetensors"),
    Case("features/float16", array(GOOD.astype(np.float16)), accepted=True),
    Case("features/regions", array(GOOD.reshape(3, 2, 2)), accepted=True),
    Case("features/columns first", array(np.asfortranarray(GOOD)), accepted=True),
    Case("features/other byte order", array(GOOD.astype(">f4")), "f.npy"),
]


def precomp(images: np.ndarray, captions: bytes | None):
    def make(_, folder: Path) -> list[str]:
        np.save(folder / "train_ims.npy", images)
        if captions is not None:
            (folder / "train_caps.txt").write_bytes(captions)
        return ["data", "show", "--dataset", "precomp", "--data_dir", str(folder)]

    return make


FIFTEEN = b"a caption\n" * 15
CASES += [
    Case("precomp/good", precomp(GOOD, FIFTEEN), accepted=True),
    Case("precomp/BOM", precomp(GOOD, b"\xef\xbb\xbf" + FIFTEEN), accepted=True),
    Case("precomp/windows lines", precomp(GOOD, FIFTEEN.replace(b"\n", b"\r\n")), accepted=True),
    Case("precomp/no last line feed", precomp(GOOD, FIFTEEN[:-1]), accepted=True),
    Case("precomp/separators", precomp(GOOD, FIFTEEN.replace(b"a c", "a\u2028c".encode())), accepted=True),
    Case("precomp/no captions", precomp(GOOD, None), "train_caps.txt does not exist"),
    Case("precomp/empty", precomp(GOOD, b""), "train_caps.txt has 1 captions"),
    Case("precomp/blank", precomp(GOOD, b"\n" * 15), "holds no caption"),
    Case("precomp/one too few", precomp(GOOD, b"a\n" * 14), "has 14 captions"),
    Case("precomp/latin1", precomp(GOOD, FIFTEEN[:-2] + b"\xe9\n"), "UTF-8"),
    Case("precomp/utf16", precomp(GOOD, FIFTEEN.decode().encode("utf-16")), "UTF-8"),
    Case("precomp/nan", precomp(with_((2, 0), np.nan), FIFTEEN), "row 2"),
]

test_one_clear_line = one_clear_line(CASES)
