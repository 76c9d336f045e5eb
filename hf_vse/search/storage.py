"""The folder of a gallery: a new version is written beside the old one and takes its place with one rename.

INDEX/gallery.json                     names the version that is current, see `header.py`
INDEX/versions/VERSION/                its files, which never change once `gallery.json` names them
INDEX/parts/DIGEST/                    what interrupted runs have encoded, see `parts.py`
INDEX/queries/DIGEST/                  the text tower of the model with that digest, see `text_tower.py`

A reader checks the files that `gallery.json` names, and reads it again if it was replaced meanwhile. Old versions are
removed after the rename; a process that has mapped their files into memory can still use them. Only files with these
names are removed, so other files in the folder stay.
"""

import errno
import logging
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_vse.files import check_output_folder, read_json, sync, write_text
from hf_vse.search.header import (
    FORMAT,
    HEADER_FILE,
    OUR_FILE,
    VERSION,
    checksum_of,
    file_checksum,
    is_part_of_segment,
    read_header,
    to_json,
)
from hf_vse.search.parts import DIGEST_FOLDER, PART_FILE, PARTS_FOLDER, remove_if_empty, remove_parts
from hf_vse.search.text_tower import QUERIES_FOLDER, TOWER_FILES, TOWER_FOLDER, remove_other_towers

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

VERSIONS_FOLDER = "versions"
FULL = (errno.ENOSPC, errno.EDQUOT)
UNFINISHED_HEADER = re.compile(r"\.gallery\.\d+\.json")
UNREAD_ABOVE = 2**30  # bytes; larger galleries are verified when they are indexed again, not at every load


def version_folder(folder: Path, version: str) -> Path:
    return folder / VERSIONS_FOLDER / version


def check_place(folder: str | Path, images: str | Path | None = None, needed: int = 0) -> Path:
    """Checks, before the work, that a gallery can be written and that the folder holds no foreign files.

    Args:
        images: the folder that is indexed.
        needed: bytes that will be written at least.

    Raises:
        OSError: see `check_output_folder`.
        ValueError: it lies in the images or they in it, or holds something that is not a gallery.
    """
    folder = check_output_folder("index", folder, needed)
    if images is not None:
        index, source = folder.resolve(), Path(images).resolve()
        if index.is_relative_to(source):
            raise ValueError(f"index {folder} lies in its own photographs {images}: give a folder outside")
        if source.is_relative_to(index):
            raise ValueError(f"the photographs {images} lie in the index {folder}: give another folder for it")
    if (folder / HEADER_FILE).exists():
        read_header(folder)  # raises ValueError where it is damaged, or not of hf_vse
    elif (foreign := next(not_ours(folder), None)) is not None:
        raise ValueError(f"index {folder} is not a gallery and holds {foreign}: give a new or an empty folder")
    return folder


def not_ours(folder: Path) -> Iterator[str]:
    """Names of files in a folder that are not left over from interrupted runs."""
    for path in sorted(folder.glob("*")):
        if path.name == VERSIONS_FOLDER and path.is_dir():
            inner = [
                each
                for each in path.glob("*/*")
                if not OUR_FILE.fullmatch(each.name) or not VERSION.fullmatch(each.parent.name)
            ]
            inner += [each for each in path.glob("*") if not (each.is_dir() and VERSION.fullmatch(each.name))]
        elif path.name == PARTS_FOLDER and path.is_dir():
            inner = [each for each in path.glob("*/*") if not PART_FILE.fullmatch(each.name)]
            inner += [each for each in path.glob("*") if not (each.is_dir() and DIGEST_FOLDER.fullmatch(each.name))]
        elif path.name == QUERIES_FOLDER and path.is_dir():
            inner = [each for each in path.glob("*/*") if each.name not in TOWER_FILES]
            inner += [each for each in path.glob("*") if not (each.is_dir() and TOWER_FOLDER.fullmatch(each.name))]
        else:
            inner = [] if UNFINISHED_HEADER.fullmatch(path.name) else [path]
        yield from (each.relative_to(folder).as_posix() for each in inner)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A lock for one writer, released when its process ends. A folder that was created is removed if it stays empty.

    Raises:
        ValueError: another process is writing.
        OSError: the disk is full.
    """
    was_there = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"index {folder} is being written by another process: wait for its end") from error
            except OSError as error:  # network disks without locking raise various errors
                logger.warning("%s is written without a lock (%s): let no other process write to it", folder, error)
        with full_disk_named(folder):
            yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        if not was_there:
            remove_if_empty(folder)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """If the disk is full, raises an OSError that names the folder, which not every writer does."""
    try:
        yield
    except Exception as error:
        if not any(os.strerror(code) in str(error) for code in FULL):
            raise
        raise OSError(
            f"index {folder}: the disk is full; make room and repeat the command (what was there is whole, what was "
            "encoded is kept)"
        ) from error


@contextmanager
def new_version(folder: Path) -> Iterator[Path]:
    """A folder for the files of a new version; it is removed if an error occurs before all are written."""
    remove_versions(folder)  # left by killed runs, they may take the disk space that is needed now
    version = version_folder(folder, secrets.token_hex(8))
    version.mkdir(parents=True)
    try:
        yield version
    except BaseException:
        with suppress(OSError, ValueError):
            remove_versions(folder)  # by the header, because this version may already be the current one
        raise


def make_current(folder: Path, version: Path, facts: dict[str, Any], linked: Mapping[str, Any] | None = None) -> None:
    """Makes a complete version the current one.

    Args:
        linked: files that the version shares with the one before, with their sizes and checksums.
    """
    files = dict(linked or {})
    for path in sorted(version.iterdir()):
        if path.name in files:
            continue
        sync(path)
        files[path.name] = {"bytes": path.stat().st_size, "checksum": file_checksum(path)}
    sync(version)
    sync(version.parent)
    header = {"format": FORMAT, "version": version.name, "files": files} | facts
    header["checksum"] = checksum_of(header)
    write_text(folder / HEADER_FILE, to_json(header, indent=1))


def check_listed_files(folder: Path, header: dict[str, Any], names: Collection[str], whole: bool = False) -> None:
    """Raises OSError or ValueError if size or checksum of a file differ from `gallery.json`.

    Args:
        names: the files to check.
        whole: also verify the checksums of a very large gallery; otherwise of its index and its hubs.
    """
    total = sum(entry["bytes"] for entry in header["files"].values())

    def check(name: str) -> None:
        path, entry = version_folder(folder, header["version"]) / name, header["files"][name]
        remedy = f"build the gallery {folder} again with `hf-vse index`"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {remedy}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{path} is damaged ({size:,} bytes instead of {entry['bytes']:,}): {remedy}")
        read = whole or total <= UNREAD_ABOVE or not is_part_of_segment(name)
        if read and file_checksum(path) != entry["checksum"]:
            raise ValueError(f"{path} is damaged (its checksum differs): {remedy}")

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, names))


def remove_leftovers(folder: Path) -> None:
    """Removes what the current version replaces. It can be interrupted and repeated."""
    for path in folder.iterdir():
        if UNFINISHED_HEADER.fullmatch(path.name):
            path.unlink(missing_ok=True)
    remove_parts(folder)
    remove_versions(folder)
    remove_other_towers(folder, read_json(folder / HEADER_FILE, dict).get("digest"))


def remove_versions(folder: Path) -> None:
    """Removes all versions except the one that `gallery.json` names."""
    current = read_json(folder / HEADER_FILE, dict).get("version") if (folder / HEADER_FILE).is_file() else None
    for path in sorted((folder / VERSIONS_FOLDER).glob("*")):
        if path.name != current and VERSION.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with suppress(PermissionError):  # on Windows while a reader uses it; the next run removes it
                for each in sorted(path.iterdir()):
                    if OUR_FILE.fullmatch(each.name):
                        each.unlink(missing_ok=True)
            remove_if_empty(path)
    remove_if_empty(folder / VERSIONS_FOLDER)
