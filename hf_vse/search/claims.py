"""Work that any number of processes share through a folder, without one that coordinates them.

A process claims a piece of work by making a file that nobody else can make (`O_EXCL`), and touches it while it works.
A claim that is not touched any more is that of a process that was lost, and another takes the work (a lease: Gray and
Cheriton, SOSP 1989). Clocks of machines are not compared: whoever waits measures on its own clock for how long it has
seen no touch.

Claims save work, nothing depends on them: on a slow or odd disk two processes may do one piece. So a piece must be
written whole or not at all, and give the same if it is done twice.
"""

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT = 15.0  # seconds between touches
LEASE = 120.0  # seconds without a touch, after which the process counts as lost; network disks show touches late
FIRST_WAIT, LONGEST_WAIT = 0.05, 10.0  # seconds between looks at what others do
SUFFIX = ".claim"


def share_work(
    folder: Path, names: Collection[str], done: Callable[[], Collection[str]], work: Callable[[str], None]
) -> None:
    """Returns when all pieces of work are done, by this process or by others that call it with the same folder.

    Args:
        folder: that all processes see.
        names: of the pieces, as parts of file names.
        done: which of them are done.
        work: does one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claims, wait = Claims(folder), FIRST_WAIT
    left = list(names)
    random.shuffle(left)  # so that processes seldom try for the same
    while left := without(left, done()):
        name = next(filter(claims.take, left), None)
        if name is None:
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)
            continue
        wait = FIRST_WAIT
        with claims.held(name):
            if name not in done():
                work(name)


def without(names: Sequence[str], done: Collection[str]) -> list[str]:
    return [name for name in names if name not in done]


class Claims:
    """The claims of one process in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.owner = f"{socket.gethostname()} {os.getpid()}"
        self.seen: dict[Path, tuple[int, float]] = {}  # of others: the last touch, and when it was seen

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def take(self, name: str) -> bool:
        """Whether the claim is now this process's."""
        path = self.path(name)
        if path.exists() and self.is_lost(path):
            path.unlink(missing_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            file.write(self.owner)
        return True

    def is_lost(self, path: Path) -> bool:
        """Whether a claim is that of a process that has ended, or has not touched it for long."""
        try:
            touched, owner = path.stat().st_mtime_ns, path.read_text()
        except FileNotFoundError:
            return False
        host, _, process = owner.rpartition(" ")
        if host == socket.gethostname() and process.isdecimal() and has_ended(int(process)):
            return True
        if owner == self.owner:  # of an earlier process with the same number, as in a container that was restarted
            return True
        now = time.monotonic()
        if self.seen.get(path, (None, now))[0] != touched:
            self.seen[path] = (touched, now)
        return now - self.seen[path][1] > LEASE

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Touches a claim while the block runs, and gives it back."""
        path, over = self.path(name), threading.Event()

        def touch() -> None:
            while not over.wait(BEAT):
                with suppress(OSError):  # another has taken it over: both do the work
                    os.utime(path)

        thread = threading.Thread(target=touch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            path.unlink(missing_ok=True)


def has_ended(process: int) -> bool:
    """Whether no process of this machine has the number; False where that cannot be said."""
    if os.name == "nt":  # a signal would end it
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
