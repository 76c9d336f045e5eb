"""Arrays whose rows are computed batch by batch, in any order, and can be interrupted.

In a file a row is not a number until it is there. The name of an unfinished file holds a digest of what makes it, so
that rows of another model or of other data are never mixed; a finished one is called as it was asked for.
"""

import logging
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

logger = logging.getLogger(__name__)


def open_unfinished(path: Path, shape: tuple[int, ...], made_by: str, dtype: DTypeLike) -> tuple[np.memmap, Path]:
    """The array that is being filled, not a number where it is not yet; that of an interrupted call of the same."""
    unfinished = path.with_suffix(f".{blake2b(made_by.encode(), digest_size=4).hexdigest()}.unfinished.npy")
    if unfinished.is_file():
        array = np.lib.format.open_memmap(unfinished, mode="r+")
        if array.shape == shape:
            logger.info("continuing with %s", unfinished)
            return array, unfinished
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.lib.format.open_memmap(unfinished, mode="w+", dtype=dtype, shape=shape)
    array[:] = np.nan
    return array, unfinished


def missing_rows(array: np.ndarray) -> np.ndarray:
    """Numbers of the rows that have not been computed."""
    return np.flatnonzero(np.isnan(array.reshape(len(array), -1)[:, 0]))
