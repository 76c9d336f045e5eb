"""User errors end in one clear line; bugs keep their traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parent
# The remedy for errors of the operating system, whichever library hit them.
OF_THE_MACHINE = {
    errno.ENOSPC: "free some disk space and repeat the command",
    errno.EDQUOT: "free some disk space and repeat the command",
    errno.EROFS: "choose a writable path",
    errno.EACCES: "choose a path that you can read and write",
    errno.EPERM: "choose a path that you can read and write",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer --num_workers",
    errno.ENOMEM: "use a smaller batch or a machine with more memory",
}
FULL = "No space left on device"  # native writers pass on only the text
NO_MEMORY = ("can't allocate memory", "out of memory")


def raised_here(error: BaseException) -> bool:
    """Whether this package raised the error itself, so that its message is meant for the user."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def remedy_of_machine(error: BaseException) -> str | None:
    """The remedy if the machine is at fault (disk, memory, permissions); None otherwise."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return OF_THE_MACHINE[error.errno]
    if FULL in text:
        return OF_THE_MACHINE[errno.ENOSPC]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(each in text for each in NO_MEMORY)):
        return OF_THE_MACHINE[errno.ENOMEM]
    return None


def refusal(error: BaseException) -> str | None:
    """One line for an error that the user can fix; None for a bug in the package."""
    line = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError) and raised_here(error):
        return line
    remedy = remedy_of_machine(error)
    return None if remedy is None else f"{line or type(error).__name__}: {remedy}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Wraps a script: a user error ends it with the line `error: ...`."""
    try:
        yield
    except Exception as error:
        line = refusal(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")
