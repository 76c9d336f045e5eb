"""The rows of a gallery on disk: segments, which never change once they are written, memory-mapped when read.

items-SEGMENT.arrow           for each vector its name, version, place and key, see `GalleryRow`, its item as JSON, and
                              the fields of the item by column, see `columns.py`
vectors-SEGMENT.safetensors   the vectors, float32 or float16
dead.safetensors              rows that a later segment replaces, or that are gone; absent if there are none

So a change writes what is new and leaves the rest (O'Neil et al., The log-structured merge-tree, 1996).
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from safetensors.numpy import save_file

from hf_vse.data.features import read_array
from hf_vse.embed.matrices import read_tensors
from hf_vse.files import parse_json
from hf_vse.search.columns import columns_of_items, fields_of_columns, fulfilling
from hf_vse.search.filters import Fields, check_conditions, item_fields, matching, parse_conditions
from hf_vse.search.header import DEAD_FILE, items_file, to_json, vectors_file
from hf_vse.search.store import NAME_BYTES, VERSION_BYTES, GalleryRow

SEGMENT_ROWS = 2**18
KEY_ENCODING = "utf-8", "surrogatepass"  # a key may hold the name of a file, which may be no Unicode
ROW_COLUMNS = {
    "name": pa.binary(NAME_BYTES),
    "version": pa.binary(2 * VERSION_BYTES),
    "place": pa.int64(),
    "key": pa.large_binary(),
    "item": pa.large_string(),
}
WITHOUT_FIELDS = {"fields": "too many for columns"}  # metadata of such a segment


def write_segment(folder: Path, rows: Sequence[GalleryRow], embeds: np.ndarray) -> dict[str, Any]:
    """Writes rows with their vectors (rows, dim).

    Returns:
        What a header says of the segment.
    """
    name = secrets.token_hex(8)
    texts = [to_json(row.item) for row in rows]
    items = [parse_json(text, "an item") for text in texts]
    values = {
        "name": [bytes.fromhex(row.name) for row in rows],
        "version": [bytes.fromhex(row.version().replace(".", "")) for row in rows],
        "place": [row.place for row in rows],
        "key": [row.key.encode(*KEY_ENCODING) for row in rows],
        "item": texts,
    }
    columns = columns_of_items(items)
    arrays = {key: pa.array(values[key], kind) for key, kind in ROW_COLUMNS.items()} | columns
    metadata = WITHOUT_FIELDS if not columns and item_fields(items) else None
    batch = pa.record_batch(list(arrays.values()), list(arrays), metadata=metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    (folder / items_file(name)).write_bytes(sink.getvalue())
    save_file({"embeds": np.ascontiguousarray(embeds)}, folder / vectors_file(name))
    return {"name": name, "rows": len(rows)}


def write_segments(folder: Path, parts: Iterable[tuple[Sequence[GalleryRow], np.ndarray]]) -> list[dict[str, Any]]:
    return [write_segment(folder, rows, embeds) for rows, embeds in parts]


def read_segments(folder: Path, header: dict[str, Any]) -> tuple["SegmentItems", "np.ndarray | SegmentVectors"]:
    """Items and vectors of the segments that a header names, memory-mapped.

    Raises:
        ValueError: a file is damaged, or says something else than the header.
    """
    tables, arrays = [], []
    for segment in header["segments"]:
        paths = folder / items_file(segment["name"]), folder / vectors_file(segment["name"])
        tables.append(read_table(paths[0]))
        arrays.append(read_array(paths[1], "embeds", check=False))  # they were when they were written
        for path, rows in zip(paths, (tables[-1].num_rows, len(arrays[-1])), strict=True):
            if rows != segment["rows"]:
                raise ValueError(f"{path} holds {rows} rows, not {segment['rows']}: build the gallery again")
        if arrays[-1].shape[1:] != (header["dim"],) or arrays[-1].dtype != arrays[0].dtype:
            raise ValueError(
                f"{paths[1]} holds {arrays[-1].dtype} {arrays[-1].shape}, not vectors of dim {header['dim']}: build "
                "the gallery again"
            )
    return SegmentItems(tables), arrays[0] if len(arrays) == 1 else SegmentVectors(arrays)


def read_table(path: Path) -> pa.RecordBatch:
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = file.get_batch(0)
        batch.validate()
        wrong = [name for name, kind in ROW_COLUMNS.items() if batch.schema.field(name).type != kind]
        if file.num_record_batches != 1 or wrong:
            raise ValueError(f"it has other columns than {', '.join(ROW_COLUMNS)}")
        return batch
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({str(error):.200}): build the gallery again") from error


def write_dead(folder: Path, alive: np.ndarray) -> None:
    save_file({"rows": np.flatnonzero(~alive)}, folder / DEAD_FILE)


def read_alive(folder: Path, count: int) -> np.ndarray:
    """(count,) booleans, False for the rows that are dead."""
    (dead,) = read_tensors(folder / DEAD_FILE, "rows")
    if dead.ndim != 1 or dead.dtype != np.int64 or not len(dead) or not 0 <= dead.min() <= dead.max() < count:
        raise ValueError(f"{folder / DEAD_FILE} is not of these {count} rows: build the gallery again")
    alive = np.ones(count, bool)
    alive[dead] = False
    return alive


class SegmentItems(Sequence):
    """Items, parsed when they are asked for.

    Args:
        tables: of the segments.
        rows: those among all that are meant, ascending; default: all.
    """

    def __init__(self, tables: Sequence[pa.RecordBatch], rows: np.ndarray | None = None):
        self.tables, self.rows = list(tables), rows
        self.starts = np.cumsum([0] + [table.num_rows for table in tables])

    def only(self, rows: np.ndarray) -> "SegmentItems":
        return SegmentItems(self.tables, rows)

    def __len__(self) -> int:
        return int(self.starts[-1]) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        row = range(len(self))[place]  # raises IndexError
        row = row if self.rows is None else int(self.rows[row])
        segment = int(np.searchsorted(self.starts, row, side="right")) - 1
        text = self.tables[segment].column("item")[row - int(self.starts[segment])].as_py()
        return parse_json(text, f"item {row} of the gallery")

    def __iter__(self) -> Iterator[Any]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of all rows, those that are dead too."""
        return pa.chunked_array([table.column(name) for table in self.tables], ROW_COLUMNS[name])

    def gallery_rows(self, first: int, stop: int) -> list[GalleryRow]:
        rows = np.arange(len(self))[first:stop] if self.rows is None else self.rows[first:stop]
        found = []
        for table, start in zip(self.tables, self.starts.tolist(), strict=False):
            chosen = pa.array(rows[(rows >= start) & (rows < start + table.num_rows)] - start)
            columns = [table.column(name).take(chosen).to_pylist() for name in ("name", "key", "item", "place")]
            found += [
                GalleryRow(name.hex(), key.decode(*KEY_ENCODING), parse_json(item, "an item"), place)
                for name, key, item, place in zip(*columns, strict=True)
            ]
        return found

    def matching(self, where: Sequence[str], fields: Fields) -> np.ndarray:
        """As `filters.matching`, for all rows, those that are dead too."""
        conditions = parse_conditions(where)
        check_conditions(conditions, fields)
        found = []
        for table in self.tables:
            if is_without_fields(table):
                items = [parse_json(text, "an item") for text in table.column("item").to_pylist()]
                found.append(matching(items, where, fields))
            else:
                found.append(np.logical_and.reduce([fulfilling(table, condition) for condition in conditions]))
        return np.concatenate(found)

    def fields(self, alive: np.ndarray | None) -> dict[str, list[str]]:
        """As `item_fields`."""
        fields: dict[str, set[str]] = {}
        for table, start in zip(self.tables, self.starts.tolist(), strict=False):
            own = None if alive is None else alive[start : start + table.num_rows]
            if is_without_fields(table):
                texts = table.column("item").to_pylist()
                items = [parse_json(text, "an item") for row, text in enumerate(texts) if own is None or own[row]]
                found: Mapping[str, Iterable[str]] = item_fields(items)
            else:
                found = fields_of_columns(table, own)
            for name, kinds in found.items():
                fields.setdefault(name, set()).update(kinds)
        return {name: sorted(kinds) for name, kinds in sorted(fields.items())}


def is_without_fields(table: pa.RecordBatch) -> bool:
    return b"fields" in (table.schema.metadata or {})


class SegmentVectors:
    """Vectors of several segments as one array (items, dim); what is taken of it is copied.

    Args:
        arrays: (rows, dim) of each segment.
        rows: those among all that are meant, ascending; default: all.
    """

    def __init__(self, arrays: Sequence[np.ndarray], rows: np.ndarray | None = None):
        self.arrays, self.rows = list(arrays), rows
        self.starts = np.cumsum([0] + [len(array) for array in arrays])
        self.dtype, self.ndim = arrays[0].dtype, 2
        self.shape = (int(self.starts[-1]) if rows is None else len(rows), arrays[0].shape[1])
        self.size = self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: int | slice | np.ndarray) -> np.ndarray:
        if isinstance(places, slice):
            first, stop, step = places.indices(len(self))
            if self.rows is None and step == 1:
                pairs = zip(self.arrays, self.starts.tolist(), strict=False)
                return np.concatenate([array[max(0, first - start) : max(0, stop - start)] for array, start in pairs])
            rows = np.arange(first, stop, step)
        else:
            rows = np.asarray(places)
            rows = np.where(rows < 0, rows + len(self), rows)
        rows = rows if self.rows is None else self.rows[rows]
        flat = np.atleast_1d(rows)
        segments = np.searchsorted(self.starts, flat, side="right") - 1
        found = np.empty((len(flat), self.shape[1]), self.dtype)
        for segment in np.unique(segments):
            own = segments == segment
            found[own] = self.arrays[segment][flat[own] - self.starts[segment]]
        return found if rows.ndim else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self[:]
        return found if dtype is None else found.astype(dtype, copy=False)


def of_rows(embeds: "np.ndarray | SegmentVectors", rows: np.ndarray) -> SegmentVectors:
    """Some rows of vectors, copied when they are taken."""
    return SegmentVectors([embeds] if isinstance(embeds, np.ndarray) else embeds.arrays, rows)
