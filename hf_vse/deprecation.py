"""Names of earlier versions still work for a while, and say what to write instead."""

import warnings


def deprecated(old: str, new: str, stacklevel: int = 2) -> None:
    """Warns that `old` is now `new`.

    Args:
        stacklevel: whose line the warning shows, counted from the function that calls this: 1 is that function, 2 its
            caller.
    """
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=stacklevel + 1)
