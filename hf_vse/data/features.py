"""Precomputed features: an array of backbone outputs on disk replaces the images.

A frozen backbone gives the same output in every epoch, so its output is computed once. The array may be larger than
memory: it stays memory-mapped, and the Arrow column `image_features` is a view of it without a copy. Its shape is
(images, dim) or (images, regions, dim). The `*_precomp` folders of VSE++ (Faghri et al., BMVC 2018) and SCAN (Lee et
al., ECCV 2018) are read the same way.
"""

import hashlib
import json
import logging
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, IMAGE_FEATURES, IMAGE_ID, repeated_captions, report_repeated
from hf_vse.files import read_text

if TYPE_CHECKING:  # a gallery is read without it
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

STORED = b"stored_in"  # metadata key of a column: the files that hold its values
_SAFETENSORS_TYPES = {"F16": np.float16, "F32": np.float32, "BF16": np.uint16}
_PRECOMP_SPLITS = {"train": "train", "dev": "validation", "test": "test", "testall": "testall"}
_CAPTIONS_PER_IMAGE = 5
_SAMPLED_ROWS = 1000
_SAMPLED_BYTES = 2**25  # limits how much a fingerprint of region features reads
_CHUNK_BYTES = 2**24
_PROGRESS_FROM = 2**32  # bytes; smaller arrays take only a few seconds to check


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; one of zeros stays."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def read_array(path: str | Path, key: str = "features", check: bool = True) -> np.ndarray:
    """The array of a .npy or .safetensors file, memory-mapped, float16 or float32 (bfloat16 is converted to float32).

    Args:
        key: name of the tensor in a .safetensors file; a file with one tensor needs no name.
        check: False for a file that was checked when it was written.

    Returns:
        (images, dim) or (images, regions, dim); row i belongs to image i.

    Raises:
        OSError, ValueError: the file does not exist, has another format, or holds nan or inf. All values are checked,
            at about 1 GB/s.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"features file {path} does not exist")
    if path.suffix == ".safetensors":
        array = _read_safetensors(path, key)
    elif path.suffix == ".npy":
        array = mapped_array(path)
    else:
        raise ValueError(f"features file {path} must be .npy or .safetensors")
    if array.dtype not in (np.float16, np.float32):
        raise ValueError(f"{path} holds {array.dtype}: save the features as float16 or float32")
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{path} has shape {array.shape}: features are (images, dim) or (images, regions, dim)")
    if check:
        _check_finite(array, path)
    return array


def mapped_array(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # the header is a Python literal, which can fail in many ways
        raise ValueError(f"{path} is not a complete .npy array: {str(error):.200}") from error


def _read_safetensors(path: Path, key: str) -> np.ndarray:
    """The tensor as a memory map (safetensors would read all of it). File format: length, JSON header, data."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        name = next(iter(header)) if len(header) == 1 else key
        if name not in header:
            raise ValueError(f"it has no tensor {key!r} but {sorted(header)}")
        entry = header[name]
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise ValueError(f"tensor {name!r} is {entry['dtype']}: save the features as float16 or float32")
        dtype, (begin, end) = np.dtype(_SAFETENSORS_TYPES[entry["dtype"]]), entry["data_offsets"]
        if not 0 <= begin <= end or end - begin != math.prod(entry["shape"]) * dtype.itemsize:
            raise ValueError(f"tensor {name!r} of shape {entry['shape']} does not fit {entry['data_offsets']}")
        array = np.memmap(path, dtype, mode="r", offset=8 + length + begin, shape=tuple(entry["shape"]))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, OSError) as error:
        raise ValueError(f"cannot read features from {path}: {str(error):.200}") from error
    if entry["dtype"] == "BF16":  # the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _sample_rows(array: np.ndarray, most: int = _SAMPLED_ROWS) -> np.ndarray:
    """Indices of the first row, the last row, and evenly spaced rows between them."""
    most = min(most, len(array), max(2, _SAMPLED_BYTES // array[0].nbytes))
    return np.unique(np.linspace(0, len(array) - 1, most).astype(np.int64))


def _check_finite(array: np.ndarray, path: Path) -> None:
    """Checks all rows, chunk by chunk: one nan would stop training hours later or corrupt a gallery."""
    from tqdm.auto import tqdm

    step = max(1, _CHUNK_BYTES // array[0].nbytes)
    for start in tqdm(range(0, len(array), step), "checking features", disable=array.nbytes < _PROGRESS_FROM or None):
        chunk = array[start : start + step]
        # Comparing the bits of float16 is five times as fast.
        half = chunk.dtype == np.float16
        if not ((chunk.view(np.uint16) & 0x7FFF).max() < 0x7C00 if half else np.isfinite(chunk).all()):
            bad = ~np.isfinite(chunk.reshape(len(chunk), -1)).all(axis=1)
            raise ValueError(
                f"{path} has non-finite values (nan or inf) in row {start + int(bad.argmax())}: "
                "compute the features again"
            )


def features_dataset(
    array: np.ndarray,
    image_ids: Sequence[int],
    captions: Sequence[Sequence[str]],
    caption_ids: Sequence[Sequence[int]],
) -> "Dataset":
    """A data set whose column `image_features` is a view of `array`, without a copy.

    With `with_format("numpy")` a row is (dim,) or (regions, dim) in float32, even if the array is float16.
    """
    from datasets import Dataset
    from datasets.table import InMemoryTable

    lengths = {"image_ids": len(image_ids), "captions": len(captions), "caption_ids": len(caption_ids)}
    for what, length in lengths.items():
        if length != len(array):
            raise ValueError(f"features have {len(array):,} rows but there are {length:,} {what}: give one per row")
    columns = {
        IMAGE_FEATURES: feature_column(array),
        IMAGE_ID: pa.array(image_ids, pa.int64()),
        CAPTIONS: pa.array(captions, pa.list_(pa.string())),
        CAPTION_IDS: pa.array(caption_ids, pa.list_(pa.int64())),
    }
    # Without a fingerprint `datasets` would pickle and hash the whole array.
    table = pa.table(columns)
    schema = table.schema
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):  # the whole memory map, not a slice of it
        file = {"path": str(array.filename), "offset": array.offset, "dtype": array.dtype.str, "shape": array.shape}
        schema = schema.set(0, stored_field(schema.field(0), [file]))
    table = pa.Table.from_arrays(table.columns, schema=schema)
    return Dataset(InMemoryTable(table), fingerprint=_fingerprint(array, image_ids, captions, caption_ids))


def feature_column(array: np.ndarray) -> pa.Array:
    """(rows, ...) as an Arrow column over the same memory."""
    values = pa.array(array.reshape(-1))
    for size in reversed(array.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, size)
    return values


def stored_field(field: pa.Field, files: list[dict]) -> pa.Field:
    """The column with the list of files, in order, that its values are memory-mapped from in its metadata.

    Args:
        files: `path` of an Arrow file that has this column; or `path`, `offset`, `dtype` and `shape` of a raw array.
    """
    return field.with_metadata({STORED: json.dumps(files)})


def stored_chunks(name: str, files: list[dict]) -> list[pa.Array | np.ndarray]:
    """The chunks of a column, memory-mapped from its files."""
    chunks: list[pa.Array | np.ndarray] = []
    for file in files:
        if "shape" in file:
            chunks.append(np.memmap(file["path"], file["dtype"], "r", file["offset"], tuple(file["shape"])))
        else:
            chunks += pa.ipc.open_file(pa.memory_map(file["path"])).read_all().column(name).chunks
    return chunks


def selected_rows(dataset: "Dataset") -> np.ndarray | None:
    """The rows of the table of a data set that it shows after `select` or `shuffle`; None for all in order."""
    return None if dataset._indices is None else dataset._indices.column(0).to_numpy().astype(np.int64)


class FeatureRows:
    """A feature column as NumPy rows, a hundred times faster than through `datasets`; stays memory-mapped.

    `rows[i]` is (dim,) or (regions, dim) in float32; for `caption_features` it is (captions, dim).
    """

    def __init__(self, dataset: "Dataset", name: str):
        self.name = name
        stored = (dataset.data.schema.field(name).metadata or {}).get(STORED)
        self.files: list[dict] | None = None if stored is None else json.loads(stored)
        self.chunks = [feature_values(chunk) for chunk in dataset.data.column(name).chunks if len(chunk)]
        self.starts = np.cumsum([0] + [len(starts) - 1 for starts, _ in self.chunks])
        self.rows = selected_rows(dataset)

    def __getstate__(self) -> dict[str, Any]:
        """A spawned worker process gets file names instead of values if the values are memory-mapped."""
        return vars(self) if self.files is None else vars(self) | {"chunks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.chunks is None:
            chunks = stored_chunks(self.name, self.files)
            self.chunks = [feature_values(chunk) for chunk in chunks if len(chunk)]

    def __len__(self) -> int:
        return int(self.starts[-1]) if self.rows is None else len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        place = row if self.rows is None else self.rows[row]
        chunk = int(np.searchsorted(self.starts, place, side="right")) - 1
        starts, values = self.chunks[chunk]
        local = place - self.starts[chunk]
        first, stop = starts[local], starts[local + 1]
        found = values[first] if isinstance(starts, range) else values[first:stop]
        return found.astype(np.float32)


def feature_values(chunk: pa.Array | np.ndarray) -> tuple[range | np.ndarray, np.ndarray]:
    """The start of each row and the values, without a copy; the starts are a range if each row is one value."""
    if isinstance(chunk, np.ndarray):
        return range(len(chunk) + 1), chunk
    starts: range | np.ndarray = range(len(chunk) + 1)
    if not pa.types.is_fixed_size_list(chunk.type):
        starts = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
        chunk = chunk.flatten()
    shape = [len(chunk)]
    while pa.types.is_fixed_size_list(chunk.type):
        shape.append(chunk.type.list_size)
        chunk = chunk.flatten()
    return starts, chunk.to_numpy(zero_copy_only=False).reshape(shape)


def _fingerprint(array: np.ndarray, *columns: Sequence) -> str:
    digest = hashlib.blake2b(f"{array.shape} {array.dtype}".encode(), digest_size=8)
    for row in _sample_rows(array, 100):
        digest.update(array[row].tobytes())
    for column in columns:
        digest.update(json.dumps(list(column), default=int).encode())
    return digest.hexdigest()


def load_precomp(data_dir: str | Path) -> "DatasetDict":
    """A VSE++ / SCAN folder: `{train,dev,test,testall}_ims.npy` with `_caps.txt`, one caption per line.

    The array has one row per image (five captions each) or one row per caption. In the second case every image is
    repeated five times, or, if those five rows differ, rows and captions are one-to-one pairs. dev becomes
    `validation`.
    """
    from datasets import DatasetDict

    data_dir = Path(data_dir)
    present = [name for name in _PRECOMP_SPLITS if (data_dir / f"{name}_ims.npy").is_file()]
    if not present:
        names = ", ".join(f"{name}_ims.npy" for name in _PRECOMP_SPLITS)
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} has none of {names}: give the folder that contains them")
    return DatasetDict({_PRECOMP_SPLITS[name]: _precomp_split(data_dir, name) for name in present})


def _precomp_split(data_dir: Path, name: str) -> "Dataset":
    array = read_array(data_dir / f"{name}_ims.npy")
    caps_file = data_dir / f"{name}_caps.txt"
    if not caps_file.is_file():
        raise FileNotFoundError(f"{caps_file} does not exist: it must hold the captions of {name}_ims.npy")
    lines = [line.strip() for line in read_text(caps_file).removesuffix("\n").split("\n")]
    rows, per_row = _image_rows(array, len(lines), caps_file)
    captions: list[list[str]] = [[] for _ in range(len(array))]
    caption_ids: list[list[int]] = [[] for _ in range(len(array))]
    for number, line in enumerate(lines):
        if line:
            row = rows[number // per_row]
            captions[row].append(line)
            caption_ids[row].append(number)
    if dropped := lines.count(""):
        logger.warning("%s: %s empty captions left out", caps_file, f"{dropped:,}")
    report_repeated(str(caps_file), repeated_captions(captions), [])
    kept = [row for row in rows if captions[row]]
    if not kept:
        raise ValueError(f"{caps_file} holds no captions: give the captions of {name}_ims.npy, one per line")
    whole = features_dataset(array, list(range(len(array))), captions, caption_ids)
    return whole if len(kept) == len(array) else whole.select(kept)


def _image_rows(array: np.ndarray, num_captions: int, caps_file: Path) -> tuple[range, int]:
    """The rows of `array` with different images, and the number of caption lines per such row."""
    if num_captions == _CAPTIONS_PER_IMAGE * len(array):
        return range(len(array)), _CAPTIONS_PER_IMAGE
    if num_captions != len(array):
        raise ValueError(
            f"{caps_file} has {num_captions:,} captions for {len(array):,} image rows: there must be five per row "
            "or one per row"
        )
    if _repeats_images(array):
        return range(0, len(array), _CAPTIONS_PER_IMAGE), _CAPTIONS_PER_IMAGE
    return range(len(array)), 1


def _repeats_images(array: np.ndarray) -> bool:
    if len(array) % _CAPTIONS_PER_IMAGE:
        return False
    starts = _CAPTIONS_PER_IMAGE * _sample_rows(array[::_CAPTIONS_PER_IMAGE], _SAMPLED_ROWS // _CAPTIONS_PER_IMAGE)
    return all((array[start : start + _CAPTIONS_PER_IMAGE] == array[start]).all() for start in starts)
