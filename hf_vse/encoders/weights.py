"""Loading what others have written: to a device, in a precision, without ever unpickling, and with one-line errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; else the accelerator of this machine, or its processor.

    Raises:
        ValueError: the machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return accelerator or torch.device("cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"device={device!r} is no device: give cpu, cuda, cuda:1 or mps, or leave it out") from error
    if wanted.type == "cpu":
        return torch.device("cpu")
    if accelerator is None or wanted.type != accelerator.type:
        there = "cpu" if accelerator is None else f"cpu and {accelerator.type}"
        raise ValueError(f"device={str(device)!r} is not on this machine, which has {there}: give that, or none")
    if (wanted.index or 0) >= (count := torch.accelerator.device_count()):
        raise ValueError(f"device={str(device)!r} is not on this machine, which has {count}: count from 0")
    return wanted


def chosen_precision(dtype: str | torch.dtype | None) -> torch.dtype:
    """float32 unless asked otherwise, also for weights that are stored in less: a judge does not round."""
    if dtype is None:
        return torch.float32
    if dtype in PRECISIONS.values():
        return dtype
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype must be one of {', '.join(PRECISIONS)}, got {dtype!r}")
    return PRECISIONS[dtype]


@contextmanager
def one_line(name: str, remedy: str) -> Iterator[None]:
    """Around the loading code of a library: what it refuses becomes one line.

    Raises:
        OSError: `name`, the reason that the library gave, and the remedy.
    """
    try:
        yield
    except Exception as error:  # each library has its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        reason = f"unknown: {reason}" if isinstance(error, KeyError) else reason
        raise OSError(f"{name} cannot be loaded ({reason}); {remedy}") from error
