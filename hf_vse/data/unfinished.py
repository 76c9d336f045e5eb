"""Arrays whose rows are computed batch by batch, in any order, and can be interrupted.

In a file a row is not a number until all of it is there. The name of an unfinished file holds a digest of what makes
it, so that rows of another model or of other data are never mixed; a finished one is called as it was asked for. An
unfinished file appears with its whole length, so that a disk without room says so before the work.
"""

import logging
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from hf_vse.files import sync, whole_file

logger = logging.getLogger(__name__)

AT_ONCE = 2**24  # bytes of an array that are looked at or written in one go


def open_unfinished(path: Path, shape: tuple[int, ...], made_by: str, dtype: DTypeLike) -> tuple[np.memmap, Path]:
    """The array that is being filled, not a number where it is not yet; that of an interrupted call of the same."""
    unfinished = path.with_suffix(f".{blake2b(made_by.encode(), digest_size=4).hexdigest()}.unfinished.npy")
    if unfinished.is_file():
        if (array := as_described(unfinished, shape, dtype)) is not None:
            logger.info("continuing with %s", unfinished)
            return array, unfinished
        logger.warning("%s is damaged, or of another shape: everything is computed anew", unfinished)
    with whole_file(unfinished) as new, open(new, "wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for first, stop in chunks(shape, dtype):
            file.write(np.full((stop - first, *shape[1:]), np.nan, dtype).tobytes())
    return np.lib.format.open_memmap(unfinished, mode="r+"), unfinished


def as_described(path: Path, shape: tuple[int, ...], dtype: DTypeLike, mode: str = "r+") -> np.memmap | None:
    """The array in a file, memory-mapped, if it is whole and has this shape and type.

    Mapped without this look, a file that was cut short would be filled up with zeros, which pass for results.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        whole = path.stat().st_size == array.offset + array.nbytes
    except (ValueError, EOFError, OSError):
        return None
    if not whole or array.shape != shape or array.dtype != np.dtype(dtype) or not array.flags.c_contiguous:
        return None
    return np.lib.format.open_memmap(path, mode=mode)


def finish(array: np.memmap, unfinished: Path, path: Path, what: str) -> None:
    """Gives the file its name when every row is there and on the disk.

    Args:
        what: made the rows, for the error.

    Raises:
        ValueError: a row that was computed is not a number.
    """
    if len(lost := missing_rows(array)):
        raise ValueError(
            f"{what} gives what is not a number for {len(lost)} of {len(array)} inputs, the first is number "
            f"{lost[0]}: its weights are damaged or its training diverged"
        )
    array.flush()
    sync(unfinished)
    unfinished.replace(path)
    sync(path.parent)


def missing_rows(array: np.ndarray) -> np.ndarray:
    """Numbers of the rows that have not been computed, or only in part."""
    return rows_where(array, lambda part: np.isnan(part).any(axis=1))


def zero_rows(array: np.ndarray) -> list[int]:
    """Numbers of the rows that hold nothing but zeros."""
    return rows_where(array, lambda part: ~part.any(axis=1)).tolist()


def rows_where(array: np.ndarray, condition: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Numbers of the rows for which `condition` is true; it is given some of them, (rows, numbers)."""
    found = [
        first + np.flatnonzero(condition(np.asarray(array[first:stop]).reshape(stop - first, -1)))
        for first, stop in chunks(array.shape, array.dtype)
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def chunks(shape: tuple[int, ...], dtype: DTypeLike) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of each stretch of an array."""
    size = max(1, AT_ONCE // max(1, int(np.prod(shape[1:])) * np.dtype(dtype).itemsize))
    return ((first, min(first + size, shape[0])) for first in range(0, shape[0], size))
