"""Files of people: read with one clear line where they are wrong, written whole or not at all.

A reader that opens a file written here sees the old content or the new one, never a part, whenever the writer is
killed and however full the disk is. Text is UTF-8, with or without a byte order mark; lines end with a line feed and
nothing else, so that a caption may hold any other separator.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

JSON_KINDS = {dict: "an object {...}", list: "a list [...]", str: "a string"}


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is no UTF-8.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = f"byte 0x{content[error.start]:02x} at position {error.start}"
        raise ValueError(f"{path} is no UTF-8 text ({bad}): save it as UTF-8") from error


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank; see `read_text`."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


def parse_json(text: str, where: str | Path, kind: type | None = None) -> Any:
    """The value of a JSON text.

    Args:
        where: how an error names the place: a file, a file and a line.
        kind: `dict`, `list` or `str`, if it has to be one.

    Raises:
        ValueError: no JSON, or another kind of value.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply to be data") from error
    except ValueError as error:
        raise ValueError(f"{where} is no JSON ({error}): {text.strip():.60}") from error
    if kind is not None and not isinstance(value, kind):
        raise ValueError(f"{where} holds {type(value).__name__}, not {JSON_KINDS[kind]}: {text.strip():.60}")
    return value


def read_json(path: str | Path, kind: type | None = None) -> Any:
    """The value of a JSON file; see `read_text` and `parse_json`."""
    return parse_json(read_text(path), path, kind)


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line of a JSON lines file; see `read_text` and `parse_json`."""
    for number, line in numbered_lines(path):
        yield number, parse_json(line, f"{path}, line {number}", dict)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place to write a file to, which takes the name `path` when everything has arrived on the disk.

    Folders above it are made. If the block fails, nothing is left of it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem[:80]}.{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False))


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output_file(field: str, path: str | Path, needed: int = 0) -> Path:
    """Makes sure, before the work, that a file can be written; writes nothing.

    Args:
        field: the option that named it, for the error.
        needed: bytes that will be written at least.

    Raises:
        OSError: it is a folder, or lies under a file, on a read-only or full disk, or has an impossible name.
    """
    path = checked_name(field, path)
    if path.is_dir():
        raise IsADirectoryError(f"{field} {path} is a folder: give the name of a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{field} {path} may not be written: choose another place")
    check_room(field, path, needed)
    return path


def check_output_folder(field: str, path: str | Path, needed: int = 0) -> Path:
    """The same for a folder, which may be there already."""
    path = checked_name(field, path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{field} {path} is a file: give a folder")
    check_room(field, path / "file", needed)
    return path


def checked_name(field: str, path: str | Path) -> Path:
    """The path, if the machine can hold a file of that name."""
    if not str(path).strip() or "\0" in str(path):
        raise OSError(f"{field} {str(path)!r} is no name for a file: give another")
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(f"{field} {path}: there is no such user: give another place") from error
    try:
        path.lstat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # what is not there yet is what is asked for
            raise OSError(f"{field} {str(path)[:80]} cannot be used ({error.strerror}): give another") from error
    return path


def check_room(field: str, path: Path, needed: int) -> None:
    """Raises OSError where the nearest folder above that exists takes no file, or none of that size."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{field} {path} lies under {above}, which is a file: choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{field} {path}: the folder {above} may not be written: choose another place")
    free = shutil.disk_usage(above).free
    if free <= needed:
        raise OSError(
            f"{field} {path}: the disk has {free / 1e6:.0f} MB free, at least {needed / 1e6:.0f} MB are needed: "
            "make room or choose another place"
        )


def inside(root: str | Path, name: Any, where: str) -> Path:
    """`root / name`, where the name that a file gives stays within the folder.

    Args:
        where: file and field that gave the name, for the error.

    Raises:
        ValueError: it is no text, empty, absolute, an address, or leads out of the folder.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"{where} is {name!r:.60}, no name of a file in {root}")
    steps = PurePosixPath(name.replace("\\", "/")).parts
    if steps[0] == "/" or PureWindowsPath(name).drive or "://" in name or ".." in steps:
        raise ValueError(f"{where} is {name!r:.60}, which leads out of {root}: name a file in it")
    return Path(root, name)
