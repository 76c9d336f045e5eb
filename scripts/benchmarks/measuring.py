"""Shared parts of the benchmarks: time, memory, matrix product speed, and the result file."""

import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(step: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call, including the work on the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(dtype: torch.dtype, size: int | None = None, rounds: int = 10) -> float:
    """FLOP per second of a large square matrix product on this machine."""
    size = size or (8192 if torch.cuda.is_available() else 2048)
    one, other = torch.randn(2, size, size, device=device()).to(dtype)

    def products() -> None:
        for _ in range(rounds):
            one @ other

    products()
    return 2 * size**3 * rounds / seconds_of(products)


def peak_bytes_of(step: Callable[[], Any]) -> int:
    """Peak memory of one call in bytes, beyond what was allocated before.

    On a CPU this is the resident memory of the process: call it in a separate process, after a small warm-up.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and kept would hold the work without any growth
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = status_bytes("VmRSS")
    step()
    return status_bytes("VmHWM") - before


def operations_of(step: Callable[[], Any]) -> int:
    """FLOP of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def free_bytes() -> int:
    """Free memory of the device."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else status_bytes("MemAvailable", "/proc/meminfo")


def status_bytes(field: str, file: str = "/proc/self/status") -> int:
    """A memory value of this process, or of the machine (Linux)."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def record(result: dict[str, Any], output: Path | None) -> None:
    """Prints a result and optionally writes it to a file."""
    text = json.dumps(result, indent=1)
    print(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")
