"""Kills a run at each place where it writes, and looks at what is left.

A run is a function. It goes on in a forked process, in which every change of a watched folder is a point: before a
file is opened for writing, renamed or removed, before a folder is made or removed, and, where the content of a file is
written, with half of it on the disk. At the point asked for the process is killed as by `kill -9`, or the disk is full
from there on. Python tells of its own writes (`sys.addaudithook`); safetensors, FAISS and memory maps are wrapped.

    for at in points_to_try(action, folder):      # folder as it is before
        left = run(action, folder, at)            # killed there, in a copy of the folder
        ...                                       # what a reader finds, what the same command makes of it
"""

import builtins
import errno
import gc
import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.processes import warn_as_a_command

SOAK = bool(os.environ.get("HF_VSE_SOAK"))  # every point, as `make soak` does it
slow = pytest.mark.skipif(not SOAK, reason="slow (make soak)")
POINTS = 10  # tried otherwise, evenly spread, the first and the last among them
CHANGES = {"os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0, "os.truncate": 0, "os.link": 1}
LOG = "points.log"

Action = Callable[[], object]
How = Literal["kill", "full"]


class Points:
    """Counts the points of a run; at number `at` (from 1 on) it ends the process or raises that the disk is full."""

    def __init__(self, folder: Path, at: int, how: How, log: Path):
        self.folder, self.at, self.how = str(folder.resolve()), at, how
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.count = 0

    def reach(self, what: str, path: object) -> None:
        if not isinstance(path, str | os.PathLike | bytes):
            return
        name = os.path.abspath(os.fsdecode(path))
        if not (name + os.sep).startswith(self.folder + os.sep):
            return
        self.count += 1
        os.write(self.log, f"{what} {os.path.relpath(name, self.folder)}\n".encode())
        if self.at and self.count >= self.at and self.how == "full" and what not in ("os.remove", "os.rmdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        if self.count == self.at and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, arguments: tuple) -> None:
        if event in CHANGES:
            self.reach(event, arguments[CHANGES[event]])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            self.reach("open", arguments[0])


class Torn:
    """A file opened for writing, whose content is half there when the point of its closing is reached."""

    def __init__(self, file, points: Points):
        self._file, self._points, self._torn = file, points, False

    def __getattr__(self, name: str):
        return getattr(self._file, name)

    def __iter__(self):
        return iter(self._file)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def write(self, content):
        if not self._torn:
            self._torn = True
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            self._points.reach("write", self._file.name)
            return self._file.write(content[len(content) // 2 :])
        return self._file.write(content)

    def close(self) -> None:
        self._file.close()


def watch(points: Points) -> None:
    """From here on every change of the folder is a point. Cannot be taken back: for a process of its own."""
    plain_open = io.open

    def watched_open(file, mode="r", *args, **kwargs):
        opened = plain_open(file, mode, *args, **kwargs)
        return Torn(opened, points) if set(mode) & set("wax") and isinstance(file, str | os.PathLike) else opened

    io.open = builtins.open = watched_open
    watch_libraries(points)
    sys.addaudithook(points.audit)


def watch_libraries(points: Points) -> None:
    """Writers that Python does not tell of: each leaves half a file at its point."""
    import faiss
    import numpy as np
    import safetensors.numpy
    import safetensors.torch
    import torch

    def torn(write: Callable, place: int) -> Callable:
        def half_then_whole(*args, **kwargs):
            if not isinstance(args[place], str | os.PathLike):
                return write(*args, **kwargs)
            path = str(args[place])
            points.reach("open", path)
            done = write(*args, **kwargs)
            size = os.path.getsize(path)
            with open(path, "rb") as file:
                content = file.read()
            os.truncate(path, size // 2)
            points.reach("write", path)
            descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
            os.write(descriptor, content)
            os.close(descriptor)
            return done

        return half_then_whole

    for module in (safetensors.numpy, safetensors.torch):
        module.serialize_file = torn(module.serialize_file, 1)
    faiss.write_index = torn(faiss.write_index, 1)
    torch.save = torn(torch.save, 1)
    plain_flush = np.memmap.flush

    def flush(array):
        points.reach("flush", getattr(array, "filename", None))
        return plain_flush(array)

    np.memmap.flush = flush


def run(action: Action, folder: Path, at: int = 0, how: How = "kill") -> int:
    """Runs it in a process of its own and ends it at a point, 0 for at none.

    Returns:
        Its exit code, or the negative number of the signal that killed it. 70 stands for an exception, whose traceback
        is in `output.log` beside the folder, as is all that was printed.
    """
    log = folder.parent / LOG
    log.unlink(missing_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        gc.freeze()  # or it looks through all objects of the process it was forked from again and again
        try:
            output = os.open(folder.parent / "output.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            warn_as_a_command()
            watch(Points(folder, at, how, log))
            result = action()
            code = result if isinstance(result, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def names_of_points(folder: Path) -> list[str]:
    """What the latest run did at each of its points."""
    return (folder.parent / LOG).read_text().splitlines()


def points_to_try(action: Action, folder: Path) -> list[int]:
    """The points of a whole run, of which only some are tried unless SOAK; the folder is as before afterwards."""
    before = folder.parent / f"{folder.name}.before"
    if folder.exists():
        shutil.copytree(folder, before, symlinks=True)
    code = run(action, folder)
    assert code == 0, (folder.parent / "output.log").read_text()
    count = len(names_of_points(folder))
    assert count > 0, "the run writes nothing into the folder"
    shutil.rmtree(folder)
    if before.exists():
        before.rename(folder)
    if SOAK or count <= POINTS:
        return list(range(1, count + 1))
    return sorted({1 + round(step * (count - 1) / (POINTS - 1)) for step in range(POINTS)})
