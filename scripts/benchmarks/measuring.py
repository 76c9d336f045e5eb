"""What the benchmarks share: clocks, memory, the speed of a plain matrix product, and what is left behind."""

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
    """Wall-clock time of one call, until the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_rate(dtype: torch.dtype, size: int | None = None, rounds: int = 10) -> float:
    """Floating-point operations a second of a large square matrix product on this machine."""
    size = size or (8192 if torch.cuda.is_available() else 2048)
    one, other = torch.randn(2, size, size, device=device()).to(dtype)

    def products() -> None:
        for _ in range(rounds):
            one @ other

    products()
    return 2 * size**3 * rounds / seconds_of(products)


def peak_bytes_of(step: Callable[[], Any]) -> int:
    """Most memory that one call holds at a time beyond what was held before.

    On a CPU this is the resident memory of the process: call it in a process of its own, after a small warm-up.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status_bytes("VmRSS")
    step()
    return status_bytes("VmHWM") - before


def operations_of(step: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products and convolutions of one call."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def free_bytes() -> int:
    """Memory of the device that nobody holds."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else status_bytes("MemAvailable", "/proc/meminfo")


def status_bytes(field: str, file: str = "/proc/self/status") -> int:
    """A memory figure of this process, or of the machine (Linux)."""
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def record(result: dict[str, Any], output: Path | None) -> None:
    """Prints a result, and keeps it where asked for."""
    text = json.dumps(result, indent=1)
    print(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")
