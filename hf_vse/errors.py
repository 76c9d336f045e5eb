"""One clear line for what a user can cause, a traceback for everything else."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parent
# What a machine refuses, whichever library was writing; `None` stands for no number.
OF_THE_MACHINE = {
    errno.ENOSPC: "make room on the disk and repeat the command",
    errno.EDQUOT: "make room on the disk and repeat the command",
    errno.EROFS: "choose a place that may be written",
    errno.EACCES: "choose a place that you may read and write",
    errno.EPERM: "choose a place that you may read and write",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer --num_workers",
    errno.ENOMEM: "use a smaller batch or a machine with more memory",
}
FULL = "No space left on device"  # of writers that are no Python, which pass the text alone
NO_MEMORY = ("can't allocate memory", "out of memory")


def raised_here(error: BaseException) -> bool:
    """Whether this package raised the error itself, with a message meant for people."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def remedy_of_machine(error: BaseException) -> str | None:
    """What to do where the machine, and no program, is at fault; None for anything else."""
    text = str(error)
    if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
        return OF_THE_MACHINE[error.errno]
    if FULL in text:
        return OF_THE_MACHINE[errno.ENOSPC]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(each in text for each in NO_MEMORY)):
        return OF_THE_MACHINE[errno.ENOMEM]
    return None


def refusal(error: BaseException) -> str | None:
    """One line for what the package or the machine refused, which a person can mend; None for a fault of ours."""
    line = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError | ImportError) and raised_here(error):
        return line
    remedy = remedy_of_machine(error)
    return None if remedy is None else f"{line or type(error).__name__}: {remedy}"


def is_refusal(error: BaseException) -> bool:
    """Whether `refusal` has a line for it."""
    return refusal(error) is not None


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a script: ends it with `error: ...` where the package refused its input."""
    try:
        yield
    except Exception as error:
        line = refusal(error)
        if line is None:
            raise
        sys.exit(f"error: {line}")
