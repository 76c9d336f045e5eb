"""What a number was measured with."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hf_vse

PACKAGES = (
    "torch", "transformers", "datasets", "accelerate", "tokenizers", "timm", "torchvision", "triton", "open_clip_torch"
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions, machine, and the commit of hf_vse if it runs from a checkout."""
    versions = {"hf_vse": hf_vse.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()
    return {"versions": versions, "device": device, "threads": torch.get_num_threads(), "commit": git_commit()}


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit of the checkout, with a plus if files have changed since; None outside a checkout."""
    root = Path(hf_vse.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
