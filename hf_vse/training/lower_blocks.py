"""Running an image tower from one of its blocks on, from the states that the blocks below gave.

Where only the last blocks of a tower are trained, the blocks below give the same for an image in every epoch. Their
output, the states, is computed once (see `frozen.py`), and training starts at the first block that learns. This is for
towers that are a chain: what comes before a block takes one tensor and hands one on. Convolutional networks are, and
most transformers; `check_chain` tries it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_vse.data.schema import IMAGE_STATES
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training.layers import blocks_of

SAME = 1e-4  # relative difference of the pooled vectors, the order of sums in float32


class ReachedError(Exception):
    """Carries the states out of a tower, so that the blocks above need not run."""


def first_trained(model: VSEModel, kept: int | None) -> nn.Module:
    """The first of the last `kept` blocks of the image tower.

    Raises:
        ValueError: the tower has fewer blocks, or the block is more than one module.
    """
    blocks = blocks_of(model.tower_modules()["vision"])
    if kept is None or not 0 < kept <= len(blocks) or len(blocks[-kept]) != 1:
        raise ValueError(
            f"unfreeze_last_blocks={kept}: the image tower has {len(blocks)} blocks to keep the states below; give a "
            "smaller number, or cached_crops: 0"
        )
    return blocks[-kept][0]


def below(model: VSEModel, block: nn.Module) -> list[nn.Module]:
    """The modules of the image tower that run before a block, outermost first: none lies within another."""
    found: list[nn.Module] = []
    for root in model.tower_modules()["vision"]:
        level = root
        while level is not block and any(module is block for module in level.modules()):
            for child in level.children():
                if any(module is block for module in child.modules()):
                    level = child
                    break
                found.append(child)
        if level is block:
            return found
        found.append(root)
    raise ValueError("the block is none of the image tower")


@torch.no_grad()
def states_below(model: VSEModel, block: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What a block gets for processed images: (images, ...)."""

    def leave(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        raise ReachedError(arguments[0])

    handle = block.register_forward_pre_hook(leave)
    try:
        model.pool_images(alone=True, **inputs)
    except ReachedError as reached:
        return reached.args[0]
    finally:
        handle.remove()
    raise ValueError("the image tower does not run the block")


def handed_on(states: Tensor, *_: Any, **__: Any) -> Tensor:
    return states


@contextmanager
def passed_by(modules: list[nn.Module]) -> Iterator[None]:
    """Within, modules hand on what they get."""
    for module in modules:
        module.forward = handed_on
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@torch.no_grad()
def check_chain(model: VSEModel, block: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Raises ValueError if the tower gives something else from its states than from the images."""
    expected = model.pool_images(alone=True, **inputs)[1]
    try:
        states = states_below(model, block, inputs)
        with passed_by(below(model, block)):
            found = model.pool_images(states, alone=True)[1]
        same = found.shape == expected.shape and torch.dist(found, expected) <= SAME * expected.norm()
    except Exception:  # whatever a tower does with states in place of an image
        same = False
    if not same:
        kind = model.config.vision_config.model_type
        raise ValueError(
            f"cached_crops with unfreeze_last_blocks: image towers of the type {kind} do not run from one of their "
            "blocks on: give cached_crops: 0, or freeze_image_tower: true"
        )


@contextmanager
def states_in_place(lower: list[nn.Module], inputs: dict[str, Tensor]) -> Iterator[None]:
    """Within, the model reads the states among the inputs, if there are any, as if they were pixels."""
    if IMAGE_STATES not in inputs:
        yield
        return
    inputs["pixel_values"] = inputs.pop(IMAGE_STATES)
    with passed_by(lower):
        yield
