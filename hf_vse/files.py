"""User files: a bad file gives one clear error line, and a file is written completely or not at all.

Writes are atomic: a reader sees the old content or the new content, never a part, even if the writer is killed or the
disk is full. Text is UTF-8, with or without a byte order mark. Only a line feed ends a line, so a caption may contain
any other separator.
"""

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

JSON_KINDS: dict[type, str] = {dict: "an object {...}", list: "a list [...]", str: "a string"}


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
        OSError: the file does not exist or cannot be read.
        ValueError: the file is not valid UTF-8.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = f"byte 0x{content[error.start]:02x} at position {error.start}"
        raise ValueError(f"{path} is not valid UTF-8 ({bad}): save it as UTF-8") from error


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Line number and text of each non-blank line; see `read_text`."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


def parse_json(text: str, where: str | Path, kind: type | None = None) -> Any:
    """Parses a JSON text.

    Args:
        where: the location for error messages, such as a file, or a file and a line.
        kind: the required type: `dict`, `list` or `str`; None accepts any.

    Raises:
        ValueError: the text is not valid JSON, or the value has another type.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply: flatten the JSON") from error
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON ({error}): {text.strip():.60}") from error
    if kind is not None and not isinstance(value, kind):
        raise ValueError(f"{where} holds {type(value).__name__}, not {JSON_KINDS[kind]}: {text.strip():.60}")
    return value


def read_json(path: str | Path, kind: type | None = None) -> Any:
    """Reads and parses a JSON file; see `read_text` and `parse_json`."""
    return parse_json(read_text(path), path, kind)


def read_json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a JSON Lines file; see `read_text` and `parse_json`."""
    for number, line in numbered_lines(path):
        yield number, parse_json(line, f"{path}, line {number}", dict)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path; when the block ends and the data is on disk, the file is renamed to `path`.

    Missing parent folders are created. If the block fails, the temporary file is removed.
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
    """Writes a text file atomically; see `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Writes a JSON file atomically; see `whole_file`."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False))


def write_table(path: str | Path, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file atomically, see `whole_file`: None is an empty cell, half a character is escaped."""
    with whole_file(path) as unfinished:
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(lines)


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output_file(field: str, path: str | Path, needed: int = 0) -> Path:
    """Checks before any work starts that a file can be written; writes nothing.

    Args:
        field: the option that gave the path, for error messages.
        needed: minimum number of bytes that will be written.

    Raises:
        OSError: the path is a folder, is below a file, is on a read-only or full disk, or has an invalid name.
    """
    path = checked_name(field, path)
    if path.is_dir():
        raise IsADirectoryError(f"{field} {path} is a folder: give the name of a file")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{field} {path} is not writable: choose another path")
    check_room(field, path, needed)
    return path


def check_output_folder(field: str, path: str | Path, needed: int = 0) -> Path:
    """Like `check_output_file`, for a folder, which may already exist."""
    path = checked_name(field, path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{field} {path} is a file: give a folder")
    check_room(field, path / "file", needed)
    return path


def checked_name(field: str, path: str | Path) -> Path:
    """The path as a `Path`, if the operating system accepts it as a file name."""
    if not str(path).strip() or "\0" in str(path):
        raise OSError(f"{field} {str(path)!r} is not a valid file name: give another")
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(f"{field} {path}: no such user: give another path") from error
    try:
        path.lstat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # a path that does not exist yet is fine
            raise OSError(f"{field} {str(path)[:80]} cannot be used ({error.strerror}): give another") from error
    return path


def check_room(field: str, path: Path, needed: int) -> None:
    """Raises OSError if the nearest existing parent folder is not writable or its disk has too little space."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{field} {path} is below {above}, which is a file: choose another path")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{field} {path}: the folder {above} is not writable: choose another path")
    free = shutil.disk_usage(above).free
    if free <= needed:
        raise OSError(
            f"{field} {path}: the disk has {free / 1e6:.0f} MB free, at least {needed / 1e6:.0f} MB are needed: "
            "free some space or choose another path"
        )


def inside(root: str | Path, name: Any, where: str) -> Path:
    """`root / name`, checked to stay inside `root`; `name` comes from a user file.

    Args:
        where: file and field that gave the name, for error messages.

    Raises:
        ValueError: the name is not a string, is empty or absolute, is a URL, or points outside `root`.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"{where} is {name!r:.60}: give the name of a file in {root}")
    steps = PurePosixPath(name.replace("\\", "/")).parts
    if steps[0] == "/" or PureWindowsPath(name).drive or "://" in name or ".." in steps:
        raise ValueError(f"{where} is {name!r:.60}, which points outside {root}: name a file inside it")
    return Path(root, name)
