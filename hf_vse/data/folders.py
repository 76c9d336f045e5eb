"""Checks image folders with metadata, and JSON files, before `datasets` reads them.

Problems that `datasets` would ignore or fail on give a clear message: images without a metadata line, file names that
point outside the folder, invalid UTF-8, and JSON nested so deeply that Arrow's reader crashes the process.
"""

import csv
import logging
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL.Image import registered_extensions

from hf_vse.files import inside, read_json, read_json_lines, read_text

logger = logging.getLogger(__name__)

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Includes formats that `decoding.py` does not read, so that such files are reported.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
IMAGE_SUFFIXES |= {".heic", ".heif", ".avif", ".jxl", ".jp2"}


def check_image_folder(path: Path) -> None:
    """Warns about images that are not in the metadata.

    Raises:
        OSError: there is no metadata file.
        ValueError: a metadata line is invalid, or names a file outside the folder.
    """
    files = [file for file in sorted(path.rglob("metadata.*")) if file.name in METADATA_FILES and file.is_file()]
    if not files:
        raise FileNotFoundError(f"{path} has no metadata.jsonl or metadata.csv: add one with file_name and captions")
    named = {str(file.parent / name) for file in files for name in named_files(file)}
    if not named:
        raise ValueError(f"{files[0]} names no image: each line (or row) needs a file_name and captions")
    images = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES)
    seen = (file for file in images if not any(part.startswith(".") for part in file.relative_to(path).parts))
    if unnamed := [file for file in seen if str(file) not in named]:
        logger.warning(
            "%s images of %s are not in its metadata and are left out (first: %s)",
            f"{len(unnamed):,}",
            path,
            unnamed[0].relative_to(path),
        )


def images_below(folder: str | Path) -> list[str]:
    """The files below a folder whose names end as those of pictures do, in the order of their names."""
    suffixes = registered_extensions()
    return [str(path) for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in suffixes]


def named_files(file: Path) -> Iterator[str]:
    """The file names in a metadata file, normalised."""
    for where, fields in metadata_lines(file):
        for field, value in fields.items():
            if field == "file_name" or field.endswith("_file_name"):
                names = [value]
            elif field == "file_names" or field.endswith("_file_names"):
                names = value if isinstance(value, list) else [value]
            else:
                continue
            for name in names:
                if name is not None and name != "":  # counted with the broken images
                    inside(file.parent, name, f"{where}, {field}")
                    yield Path(name).as_posix()


def metadata_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The location (for messages) and the fields of each line of a metadata file."""
    if file.suffix == ".jsonl":
        for number, fields in read_json_lines(file):
            yield f"{file}, line {number}", fields
    elif file.suffix == ".csv":
        try:
            rows = list(csv.DictReader(StringIO(read_text(file), newline="")))
        except csv.Error as error:
            raise ValueError(f"{file} is not a valid CSV file ({error}): write it again") from error
        for number, fields in enumerate(rows, start=1):
            yield f"{file}, row {number}", {name: value for name, value in fields.items() if name}
    else:
        try:
            rows = pq.read_table(file).to_pylist()
        except Exception as error:  # Arrow raises many types
            raise ValueError(
                f"{file} is not a valid parquet file ({str(error).splitlines()[0]:.200}): write it again"
            ) from error
        for number, fields in enumerate(rows):
            yield f"{file}, row {number}", fields


def check_json_files(files: Iterable[str | Path]) -> None:
    """Raises ValueError for the first file that is neither JSON Lines nor one JSON text."""
    for file in map(Path, files):
        if not (file.suffix == ".json" and is_one_text(file)) and not sum(1 for _ in read_json_lines(file)):
            raise ValueError(f"{file} is empty: give a JSON object with image and captions in each line")


def is_one_text(file: Path) -> bool:
    """Whether the whole file is one JSON text, not one per line."""
    try:
        return isinstance(read_json(file), dict | list)
    except ValueError:
        return False
