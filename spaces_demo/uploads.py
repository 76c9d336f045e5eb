"""Uploaded files of visitors: no other file of this machine is ever opened for a visitor.

Gradio stores an upload as `folder/<digest of its content and a secret>/<name>`. So only the sender knows the path. A
path of any other form is rejected before any file access, and an upload is opened only as a regular file.
"""

import errno
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradio.utils import get_upload_folder
from limits import MAX_FILE_BYTES, RefusedError

logger = logging.getLogger(__name__)

SECONDS_TO_KEEP = 60  # an upload is read within seconds and never needed again
_DIGEST = re.compile("[0-9a-f]{64}")
# Do not follow symbolic links; do not block on opening a device or a pipe. (Windows has neither flag.)
_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def uploaded(path: object) -> Path:
    """The path of an upload, which may be deleted already; RefusedError if the path has another form."""
    if isinstance(path, str | Path) and "\0" not in str(path):
        file = Path(path)
        is_plain = file.name not in ("", ".", "..") and _DIGEST.fullmatch(file.parent.name)
        if is_plain and file.parent.parent == Path(get_upload_folder()):
            return file
    raise RefusedError("Send the picture itself: this demo fetches nothing from elsewhere.")


def read_upload(path: object) -> bytes:
    """Content of an upload, at most MAX_FILE_BYTES + 1 bytes; RefusedError if the file no longer exists."""
    file = uploaded(path)
    try:
        if file.parent.is_symlink():
            raise OSError("no folder of an upload")
        with open(file, "rb", opener=lambda name, flags: os.open(name, flags | _CAREFULLY)) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise OSError("no regular file")
            return opened.read(MAX_FILE_BYTES + 1)
    except OSError:
        raise RefusedError("This picture is no longer here: add it again.") from None


def judge_files(value: Any) -> None:
    """Rejects a value that names, at any depth and with or without `meta`, a file that is not an upload.

    The URL of an upload is removed, because its path is enough; any other URL must be an image (`data:`).
    """
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list | tuple):
            waiting.extend(each)
        elif isinstance(each, dict):
            _judge_file(each)
            waiting.extend(each.values())


def _judge_file(each: dict[str, Any]) -> None:
    path, address = each.get("path"), each.get("url")
    is_picture = isinstance(address, str) and address.startswith("data:")
    if path:
        uploaded(path)
        if not is_picture and "url" in each:
            each["url"] = None
    elif address and not is_picture:
        uploaded(address)  # refuses it


def delete_old_uploads(seconds: float = SECONDS_TO_KEEP) -> None:
    """Deletes older uploads, including unfinished ones, and empty folders."""
    oldest = time.time() - seconds
    for entry in _entries(Path(get_upload_folder())):
        if entry.is_dir(follow_symlinks=False):
            for file in _entries(entry):
                _delete(file, oldest)
        _delete(entry, oldest)


def _entries(folder: Path | os.DirEntry[str]) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from list(entries)
    except FileNotFoundError:
        return  # another request was faster
    except OSError as error:
        logger.warning("the uploads in %s cannot be listed: %s", Path(folder), error)


def _delete(entry: os.DirEntry, oldest: float) -> None:
    try:
        if entry.stat(follow_symlinks=False).st_mtime < oldest:
            os.rmdir(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
    except FileNotFoundError:
        pass  # another request was faster
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # a folder that has a new file is kept
            logger.warning("an old upload cannot be deleted: %s", error)
