"""Loads weights to a device, in a precision, without unpickling and with one-line errors."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from hf_vse.embed.encoder import Encoder

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The requested device; by default the accelerator of this machine, or the CPU.

    Raises:
        ValueError: the machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return accelerator or torch.device("cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"device={device!r} is not a device: give cpu, cuda, cuda:1 or mps, or leave it out"
        ) from error
    if wanted.type == "cpu":
        return torch.device("cpu")
    if accelerator is None or wanted.type != accelerator.type:
        there = "cpu" if accelerator is None else f"cpu and {accelerator.type}"
        raise ValueError(f"device={str(device)!r} is not on this machine, which has {there}: give that, or none")
    if (wanted.index or 0) >= (count := torch.accelerator.device_count()):
        raise ValueError(f"device={str(device)!r} is not on this machine, which has {count}: count from 0")
    return wanted


def chosen_precision(dtype: str | torch.dtype | None) -> torch.dtype:
    """float32 by default, also for weights stored in a lower precision: an evaluation should not round."""
    if dtype is None:
        return torch.float32
    if isinstance(dtype, torch.dtype) and dtype in PRECISIONS.values():
        return dtype
    if dtype not in PRECISIONS:
        raise ValueError(f"dtype must be one of {', '.join(PRECISIONS)}, got {dtype!r}")
    return PRECISIONS[dtype]


def check_installed(adapter: "type[Encoder]", name: str) -> None:
    """Raises ImportError, with the extra to install, where a package that an adapter needs is missing."""
    if missing := [package.replace("_", "-") for package in adapter.needs if find_spec(package) is None]:
        raise ImportError(f"{name} needs {' and '.join(missing)}: pip install 'hf_vse[{adapter.extra}]'")


@contextmanager
def one_line(name: str, remedy: str) -> Iterator[None]:
    """Wraps the loading code of a library: its errors become one line.

    Raises:
        OSError: `name`, the reason that the library gave, and the remedy.
    """
    try:
        yield
    except Exception as error:  # each library has its own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        reason = f"unknown: {reason}" if isinstance(error, KeyError) else reason
        raise OSError(f"{name} cannot be loaded ({reason}); {remedy}") from error


def check_finite(name: str, model: nn.Module) -> None:
    """Raises ValueError for weights that are not finite, because all vectors would be nan."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(
                f"{name}: {key} holds what is not a finite number: its training diverged, or fetch or save it again"
            )


def check_found(name: str, model: PreTrainedModel, found: Mapping[str, Iterable]) -> None:
    """Raises ValueError if the weights in the files do not match the model.

    Additional weights are allowed, such as the heads of another task, but not layers beyond its configuration.

    Args:
        found: the `output_loading_info` of transformers.
    """
    wrong = {
        "lacks": sorted(found["missing_keys"]),
        "has, in another shape,": sorted(key for key, *_ in found["mismatched_keys"]),
        "has, in layers that its configuration does not build,": too_deep(model, found["unexpected_keys"]),
    }
    for what, keys in wrong.items():
        if keys:
            raise ValueError(
                f"{name} {what} {len(keys)} weights of {type(model).__name__} (the first is {keys[0]!r}) and would be "
                "judged with random ones; give a model that was trained for retrieval, whole"
            )


def too_deep(model: nn.Module, keys: Iterable[str]) -> list[str]:
    """The keys of layers beyond the last one of a stack in the model."""
    stacks = {name: len(part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    found = []
    for key in sorted(keys):
        parts = key.split(".")
        above = {".".join(parts[:place]): part for place, part in enumerate(parts) if part.isdecimal()}
        if any(int(number) >= stacks.get(stack, int(number) + 1) for stack, number in above.items()):
            found.append(key)
    return found
