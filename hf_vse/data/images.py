"""Handles broken images in a data set; `decoding.py` reads a single image.

A collection of 100,000 images nearly always has a truncated, empty or missing one. It should neither stop the run nor
go unnoticed. Before a run, `find_broken_images` and `find_broken_rows` find broken images without decoding the intact
ones. During the run, `BrokenImages` counts images that fail to decode and stops the run only if their share is too
large.
"""

import logging
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm

from hf_vse.data.decoding import (
    PIXELS_IN_FLIGHT,
    BrokenImageError,
    decode_image,
    open_file,
    open_image,
    path_and_bytes,
    reason_of,
)
from hf_vse.data.schema import IMAGE

logger = logging.getLogger(__name__)

# End marks of complete files. Cameras and editors append padding, so the whole tail is searched.
_END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 1024
MAX_BROKEN_SHARE = 0.01  # of the images; where more cannot be read, the work stops
_PROGRESS_FROM = 2000  # files; fewer take about a second to check
_LARGE = Lock()  # held while a thread decodes a large image


def find_broken_images(paths: Iterable[str | Path]) -> dict[str | Path, str]:
    """Broken files among `paths` with the reason, found without decoding intact JPEG and PNG files.

    A JPEG or PNG is intact if its header opens and its last bytes hold the end-of-image mark. A file without the mark,
    or in another format, is decoded to be sure. Above 2,000 files a progress bar appears.
    """
    return _find_broken({path: path for path in paths})


def _find_broken(values: Mapping[Any, str | Path | pa.Buffer]) -> dict[Any, str]:
    """The keys of the broken files or contents, with the reason."""
    with ThreadPoolExecutor(8) as pool:
        reasons = pool.map(_why_broken, values.values())
        silent = {"disable": True} if len(values) <= _PROGRESS_FROM else {}  # otherwise TQDM_DISABLE decides
        shown = tqdm(reasons, "checking images", total=len(values), **silent)
        return {key: reason for key, reason in zip(values, shown, strict=True) if reason}


def _why_broken(value: str | Path | pa.Buffer) -> str | None:
    try:
        # Without a copy: only the bytes that are read are loaded from a memory-mapped data set.
        with pa.BufferReader(value) if isinstance(value, pa.Buffer) else open_file(str(value)) as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return "0 bytes"
            file.seek(0)
            end_mark = _END_MARKS.get(open_image(file).format or "")
            file.seek(max(0, size - _TAIL_BYTES))
            if end_mark is not None and end_mark in file.read():
                return None
    except Exception as error:  # as in decode_image
        return reason_of(error)
    return why_unreadable({"bytes": value.to_pybytes(), "path": None} if isinstance(value, pa.Buffer) else value)


def why_unreadable(value: Any) -> str | None:
    """Why an image cannot be fully decoded; None if it can. Thread-safe: large images are decoded one at a time."""
    try:
        with open_file(*path_and_bytes(value)) as file:
            width, height = open_image(file).size
        with _LARGE if width * height > PIXELS_IN_FLIGHT else nullcontext():
            decode_image(value, needed=1)
    except BrokenImageError as error:
        return str(error).removeprefix(f"{path_and_bytes(value)[0] or 'image'}: ")
    except Exception as error:  # as in decode_image
        return reason_of(error)
    return None


def check_broken_share(broken: Mapping[str, str] | Mapping[str | Path, str], total: int, max_share: float) -> None:
    """Warns in one line that the files in `broken` (file -> reason) are left out.

    Raises:
        ValueError: they are more than `max_share` of the `total` number of images.
    """
    if not broken:
        return
    first, reason = next(iter(broken.items()))
    found = f"{len(broken):,} of {total:,} images are missing or broken (first: {first}: {reason})"
    if len(broken) > max_share * total:
        remedy = "repair the files or raise max_broken_share"
        raise ValueError(f"{found}, more than max_broken_share={max_share:g}: {remedy}")
    logger.warning("%s and are left out", found)


def stored_images(images: Dataset) -> Iterator[tuple[str | None, pa.Buffer | None]]:
    """The path and the bytes of each row of an image column, or None where the data set has none; opens no file."""
    for chunk in images.with_format("arrow")[:][IMAGE].chunks:
        names = [field.name for field in chunk.type]
        fields = dict(zip(names, chunk.flatten(), strict=True))  # null if the row is null
        for path, content in zip(fields["path"].to_pylist(), fields["bytes"], strict=True):
            yield path, content.as_buffer() if content.is_valid else None


def find_broken_rows(images: Dataset, max_share: float) -> dict[int, str]:
    """Rows of the column `image` that are empty, missing or broken, with the reason; see `check_broken_share`.

    URLs are not checked here; they fail when they are decoded.
    """
    if IMAGE not in images.column_names:  # precomputed features
        return {}
    names: list[str] = []
    values: dict[str, str | pa.Buffer] = {}
    broken: dict[str | Path, str] = {}
    for row, (path, content) in enumerate(stored_images(images)):
        file = path if path is not None and content is None and "://" not in path else None
        names.append(f"row {row}" if file is None else file)
        if file is not None or content is not None:
            values[names[-1]] = path if content is None else content
        elif path is None:
            broken[names[-1]] = "no image"
    broken |= _find_broken(values)
    check_broken_share(broken, len(set(names)), max_share)
    return {row: broken[name] for row, name in enumerate(names) if name in broken}


def image_keys(images: Dataset) -> list[Hashable]:
    """A key per row of the column `image`: equal keys mean the same image; None means that no other row has it.

    The path alone is not enough: images stored in the data set may all be called "image.jpg", or have no name. Rows
    with equal path, length, first bytes and last bytes are compared by all their bytes.
    """
    if IMAGE not in images.column_names:
        return [None] * len(images)
    stored = list(stored_images(images))
    brief = [
        content is not None
        and (path, len(content), content[:_TAIL_BYTES].to_pybytes(), content[-_TAIL_BYTES:].to_pybytes())
        for path, content in stored
    ]
    times = Counter(brief)
    return [
        path if content is None else (path, blake2b(content).digest()) if times[short] > 1 else None
        for (path, content), short in zip(stored, brief, strict=True)
    ]


class BrokenImages:
    """Counts images that fail to decode during a run and stops the run if there are too many.

    Args:
        max_share: tolerated share of broken images.
        min_seen: images to see before the share is checked, so that one bad file among the first ten is no error.
    """

    def __init__(self, max_share: float = MAX_BROKEN_SHARE, min_seen: int = 100):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_broken_share must lie between 0 and 1, got {max_share}")
        self.max_share = max_share
        self.min_seen = min_seen
        self.seen = 0
        self.broken = 0
        self._last = ""
        self._reported: set[str] = set()

    def seen_good(self) -> None:
        """Counts a decoded image."""
        self.seen += 1
        self._check()

    def seen_broken(self, error: BrokenImageError) -> None:
        """Counts a broken image, warns once per file, and raises ValueError if there are too many."""
        self.seen += 1
        self.broken += 1
        self._last = str(error)
        if self._last not in self._reported:
            self._reported.add(self._last)
            logger.warning("broken image left out: %s", self._last)
        self._check()

    def _check(self) -> None:
        if self.seen >= self.min_seen and self.broken > self.max_share * self.seen:
            raise ValueError(
                f"{self.broken:,} of {self.seen:,} images are broken (last: {self._last}), more than "
                f"max_broken_share={self.max_share:g}: repair the files or raise max_broken_share"
            )
