"""How a model and what it computes lie in the memory of a CPU. The numbers stay the same, up to the order of sums."""

import ctypes
import sys
from functools import cache
from typing import TypeVar

import torch
from torch import nn

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # see mallopt(3)
LARGEST = 2**30  # bytes of a block that is kept
KEPT = 2**31 - 1  # bytes of free memory at the end of the heap that are kept

Model = TypeVar("Model", bound=nn.Module)


def place_on(model: Model, device: str | torch.device) -> Model:
    """The model on a device; on a CPU laid out for speed, see below."""
    model.to(device)
    if torch.device(device).type == "cpu":
        reuse_freed_memory()
        channels_last(model)
    return model


@cache
def reuse_freed_memory() -> bool:
    """Lets glibc keep freed blocks of up to 1 GiB for this process, and says whether it does.

    By default it gives back each block above 32 MiB, and the kernel clears every page of the next one: as much as two
    thirds of the time of an image tower. The price is that a process does not shrink again.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, KEPT))


def channels_last(model: nn.Module) -> None:
    """Stores the weights of a convolutional network by channel; its states follow. One convolution, as a transformer
    has for its patches, is left alone.
    """
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    if len(convolutions) > 1:
        for module in convolutions:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # documented, but not typed
