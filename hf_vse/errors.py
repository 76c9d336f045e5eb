"""One clear line for what a user can cause, a traceback for everything else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = Path(__file__).parent


def raised_here(error: BaseException) -> bool:
    """Whether this package raised the error itself, with a message meant for people."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def is_refusal(error: BaseException) -> bool:
    """Whether the package refused its input, or lacks an optional one: something a person can mend."""
    return isinstance(error, ValueError | OSError | ImportError) and raised_here(error)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a script: ends it with `error: ...` where the package refused its input."""
    try:
        yield
    except Exception as error:
        if not is_refusal(error):
            raise
        sys.exit(f"error: {error}")
