"""Decoding photographs, and living with the few that are broken.

A collection of 100,000 photographs nearly always holds a truncated, empty or missing one; it should neither end the
run nor go unnoticed. Two defences: `find_broken_images` looks at local files before a run without decoding them, and
`BrokenImages` counts during the run what fails to decode and stops it only when that is more than a small share.
"""

import logging
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import PIL.Image
import PIL.ImageOps
from datasets import Dataset
from tqdm.auto import tqdm

from hf_vse.data.schema import IMAGE

logger = logging.getLogger(__name__)

# How a complete file of the common formats ends. Cameras and editors append padding, so the tail is searched.
_END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 1024
_PROGRESS_FROM = 2000  # files; fewer are checked in about a second


class BrokenImageError(ValueError):
    """An image that cannot be opened or decoded; the message is one line with the file and the reason."""


def decode_image(value: Any, name: str = "image") -> PIL.Image.Image:
    """The image as RGB, turned upright as its EXIF orientation says.

    Args:
        value: `{"bytes": ..., "path": ...}` as a column of `datasets.Image(decode=False)` gives it, a path or URL, or
            a PIL image.
        name: what to call the image in an error when it has no path.

    Raises:
        BrokenImageError: missing or empty file, truncated or unknown data, decompression bomb.
    """
    path, data = _path_and_bytes(value)
    try:
        if isinstance(value, PIL.Image.Image):
            return _upright(value).convert("RGB")
        with _open(path, data) as file, PIL.Image.open(file) as image:
            image.load()
            return _upright(image).convert("RGB")
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, IndexError, ...
        raise BrokenImageError(f"{path or name}: {_reason(error)}") from error


def _path_and_bytes(value: Any) -> tuple[str | None, bytes | None]:
    if isinstance(value, Mapping):
        return value.get("path"), value.get("bytes")
    if isinstance(value, str | Path):
        return str(value), None
    return None, None


def _open(path: str | None, data: bytes | None) -> BinaryIO:
    if data is not None:
        if not data:
            raise ValueError("0 bytes")
        return BytesIO(data)
    if path is None:
        raise ValueError("neither bytes nor a path")
    if "://" in path:  # a streamed data set refers to files in a repository or an archive
        return fsspec.open(path, "rb").open()
    return open(path, "rb")


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata around sound pixels
        image.load()
        return image


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "file does not exist"
    if isinstance(error, PIL.UnidentifiedImageError):  # its own text shows the address of a buffer
        return "not an image, or of an unknown format"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def find_broken_images(paths: Iterable[str | Path], workers: int = 8) -> dict[str | Path, str]:
    """Broken files among `paths` and why, found without decoding the sound ones.

    A file is sound if its header opens and, for JPEG and PNG, its last bytes hold the end-of-image mark; only a file
    without the mark is decoded to be sure. Above 2,000 files a progress bar appears.
    """
    paths = list(paths)
    with ThreadPoolExecutor(workers) as pool:
        reasons = pool.map(_why_broken, paths)
        silent = {"disable": True} if len(paths) <= _PROGRESS_FROM else {}  # else as TQDM_DISABLE says
        shown = tqdm(reasons, "checking images", total=len(paths), **silent)
        return {path: reason for path, reason in zip(paths, shown, strict=True) if reason}


def _why_broken(path: str | Path) -> str | None:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return "0 bytes"
            file.seek(0)
            end_mark = _END_MARKS.get(PIL.Image.open(file).format)
            file.seek(max(0, size - _TAIL_BYTES))
            if end_mark is None or end_mark in file.read():
                return None
        decode_image(path)
    except BrokenImageError as error:
        return str(error).removeprefix(f"{path}: ")
    except Exception as error:  # as in decode_image
        return _reason(error)
    return None


def check_broken_share(broken: Mapping[str | Path, str], total: int, max_share: float) -> None:
    """One warning line that the files in `broken` (file -> reason) are left out, or ValueError if they are too many.

    Too many is more than `max_share` of the `total` number of images.
    """
    if not broken:
        return
    first, reason = next(iter(broken.items()))
    found = f"{len(broken):,} of {total:,} images are missing or broken (first: {first}: {reason})"
    if len(broken) > max_share * total:
        remedy = "repair the files or raise max_broken_share"
        raise ValueError(f"{found}, more than max_broken_share={max_share:g}: {remedy}")
    logger.warning("%s and are left out", found)


def _stored(images: Dataset) -> list[tuple[str | None, bool]]:
    """Of every row of an image column its path and whether its bytes are in the data set; reads no image."""
    rows: list[tuple[str | None, bool]] = []
    for chunk in images.with_format("arrow")[:][IMAGE].chunks:
        names = [field.name for field in chunk.type]
        fields = dict(zip(names, chunk.flatten(), strict=True))  # null where the row is
        rows.extend(zip(fields["path"].to_pylist(), fields["bytes"].is_valid().to_pylist(), strict=True))
    return rows


def find_broken_rows(images: Dataset, max_share: float) -> set[int]:
    """Rows of the column `image` without an image or with a missing or broken local file; see `check_broken_share`."""
    if IMAGE not in images.column_names:  # precomputed features
        return set()
    stored = _stored(images)
    is_file = [path is not None and not has_bytes and "://" not in path for path, has_bytes in stored]
    names = [path if file else f"row {row}" for row, ((path, _), file) in enumerate(zip(stored, is_file, strict=True))]
    broken = find_broken_images(dict.fromkeys(name for name, file in zip(names, is_file, strict=True) if file))
    broken |= {name: "no image" for name, row in zip(names, stored, strict=True) if row == (None, False)}
    check_broken_share(broken, len(set(names)), max_share)
    return {row for row, name in enumerate(names) if name in broken}


def image_keys(images: Dataset) -> list[Hashable]:
    """For every row of the column `image` a key that only rows with the same image share; None where there is no path.

    A path alone does not do: images stored in the data set may all be called "image.jpg".
    """
    if IMAGE not in images.column_names:
        return [None] * len(images)
    stored = _stored(images)
    times = Counter(path for path, _ in stored)
    column = images.with_format("arrow")[:][IMAGE]
    return [
        (path, blake2b(column[row].as_py()["bytes"]).digest()) if path and has_bytes and times[path] > 1 else path
        for row, (path, has_bytes) in enumerate(stored)
    ]


class BrokenImages:
    """Counts images that failed to decode during a run and stops it when they are too many.

    Args:
        max_share: the share of broken images that is tolerated.
        min_seen: images to see before judging, so that one broken file among the first ten stops nothing.
    """

    def __init__(self, max_share: float = 0.01, min_seen: int = 100):
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_broken_share must lie between 0 and 1, got {max_share}")
        self.max_share = max_share
        self.min_seen = min_seen
        self.seen = 0
        self.broken = 0
        self._last = ""
        self._reported: set[str] = set()

    def seen_good(self) -> None:
        """Count an image that was decoded."""
        self.seen += 1
        self._check()

    def seen_broken(self, error: BrokenImageError) -> None:
        """Count an image that was not, warn once per file, and raise ValueError if there are too many."""
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
