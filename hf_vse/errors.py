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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Around a script: ends it with `error: ...` where the package refused its input."""
    try:
        yield
    except (ValueError, OSError) as error:
        if not raised_here(error):
            raise
        sys.exit(f"error: {error}")
