"""Fused Triton kernels: tiles of the similarity matrix, reduced on the chip.

They compute what `TorchTiles` of `hf_vse.objectives.statistics`, the reference, computes.
"""

from functools import cache
from importlib.util import find_spec

import torch

from hf_vse.objectives.statistics import Tiles


@cache
def why_not_fused(device: torch.device) -> str | None:
    """Why the kernels cannot run on a device; None where they can."""
    if find_spec("triton") is None:
        return "triton is not installed (pip install 'hf_vse[kernels]')"
    import triton

    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        return f"the embeddings are on {device.type} and the kernels need a GPU"
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    return None


def fused_tiles() -> Tiles:
    from hf_vse.objectives.kernels.tiles import TritonTiles

    return TritonTiles()
