"""Mosaics (CLIM, arXiv 2312.11376): several photographs of a batch in one picture, each pooled from its own cells.

A mosaic of side 2 holds four photographs, of side 3 nine, of side 4 sixteen. Its picture passes the image tower once.
The vector of a photograph is pooled from the cells that lie in its part alone, and is contrasted with its caption like
any other: so the rows of a batch, their ids and what is masked stay as they are. The other photographs of the batch
are seen whole, as at test time. The tower learns to say where things are, and runs on fewer pictures.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.embed.relevance import grid_of, why_no_cells
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.training.arguments import VSETrainingArguments

SIDES = (2, 3, 4)


class Part(NamedTuple):
    """Where a photograph is: in picture number `picture`, which has `side` x `side` photographs; 1 x 1 if alone."""

    picture: int
    side: int
    row: int
    column: int


def sides_of(args: VSETrainingArguments) -> Sequence[int]:
    return args.mosaic_sides or SIDES


def check_mosaics(args: VSETrainingArguments) -> None:
    """Raises ValueError for mosaics that cannot be, whatever the model."""
    if not args.mosaic_share:
        return
    sides = sides_of(args)
    if not set(sides) <= set(SIDES):
        raise ValueError(f"mosaic_sides are among 2, 3 and 4 photographs a side, got {sides!r:.60}")
    if args.grad_cache_batch_size is not None:
        raise ValueError("mosaic_share and grad_cache_batch_size: a mosaic would be cut in two: give one of them")
    if args.feature_mix:
        raise ValueError("mosaic_share and feature_mix: mosaics are of photographs, mixtures of vectors: give one")
    if args.cache_frozen and (args.freeze_image_tower or (args.unfreeze_last_blocks and args.cached_crops)):
        raise ValueError(
            "mosaic_share needs photographs, but of a frozen image tower or its frozen blocks the outputs are kept: "
            "train the tower, or give cache_frozen: false"
        )
    batch, needed = args.per_device_train_batch_size, min(sides) ** 2
    if int(args.mosaic_share * batch) < needed:
        raise ValueError(
            f"mosaic_share={args.mosaic_share:g} of a batch of {batch} are fewer photographs than the {needed} of the "
            "smallest mosaic: raise mosaic_share or per_device_train_batch_size"
        )


def check_mosaics_fit(model: VSEModel, args: VSETrainingArguments) -> None:
    """Raises ValueError for mosaics on a model that pools no vectors from a grid of cells."""
    if args.mosaic_share and (reason := why_no_cells(model)):
        raise ValueError(f"mosaic_share needs a grid of cells: {reason}; or give mosaic_share: 0")


def mosaic_inputs(
    model: VSEModel, args: VSETrainingArguments, step: int, inputs: dict[str, Any], training: bool = True
) -> tuple[dict[str, Any], AbstractContextManager[None]]:
    """The inputs of a model with some photographs in mosaics, as `mosaic_share` asks in training, and the context in
    which the model gives one vector for each photograph all the same.

    A step has the same mosaics when it is repeated, and mosaics of the same sides in all processes.

    Raises:
        ValueError: the inputs hold no photographs, or the grid of the tower is too coarse.
    """
    if not args.mosaic_share or not training:
        return inputs, nullcontext()
    check_mosaics_fit(model, args)
    pixels = inputs.get("pixel_values")
    if pixels is None:
        raise ValueError("mosaic_share needs photographs, but the data are features: give mosaic_share: 0")
    sides = drawn_sides(len(pixels), args.mosaic_share, sides_of(args), np.random.default_rng((args.seed, step)))
    context = pooled_by_part(model, places_in_mosaics(len(pixels), sides), *pixels.shape[-2:])
    return inputs | {"pixel_values": mosaics(pixels, sides)}, context


def drawn_sides(count: int, share: float, sides: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Sides of the mosaics of a batch of `count`, drawn until no further one fits into its share."""
    left, drawn = int(share * count), []
    while fitting := [side for side in sides if side * side <= left]:
        drawn.append(int(rng.choice(fitting)))
        left -= drawn[-1] ** 2
    return drawn


def places_in_mosaics(count: int, sides: Sequence[int]) -> list[Part]:
    """Where each photograph of a batch is: the first ones in mosaics, in their order, the others alone."""
    parts = [Part(at, side, *divmod(tile, side)) for at, side in enumerate(sides) for tile in range(side * side)]
    return parts + [Part(len(sides) + number, 1, 0, 0) for number in range(count - len(parts))]


def mosaics(pixels: Tensor, sides: Sequence[int]) -> Tensor:
    """(photographs, channels, height, width) -> (pictures, channels, height, width), see `places_in_mosaics`."""
    height, width = pixels.shape[-2:]
    pictures, start = [], 0
    for side in sides:
        rows = []
        for row in range(side):
            high = (row + 1) * height // side - row * height // side
            tiles = pixels[start + row * side : start + (row + 1) * side]
            wide = [(column + 1) * width // side - column * width // side for column in range(side)]
            small = [
                F.interpolate(tile[None], size=(high, across), mode="bilinear", antialias=True)
                for tile, across in zip(tiles, wide, strict=True)
            ]
            rows.append(torch.cat(small, dim=3))
        pictures.append(torch.cat(rows, dim=2))
        start += side * side
    return torch.cat([*pictures, pixels[start:]])


@contextmanager
def pooled_by_part(model: VSEModel, parts: Sequence[Part], height: int, width: int) -> Iterator[None]:
    """Within it the model pools each photograph from the cells of its part of its picture."""

    def of_parts(_: torch.nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, None]:
        states = given[0]
        grid = grid_of(states.shape, height, width)
        mask = torch.stack([cells_of(part, states.shape[1], *grid) for part in parts]).to(states.device)
        return states[[part.picture for part in parts]], mask, None

    hook = model.vision_pooling.register_forward_pre_hook(of_parts)
    try:
        yield
    finally:
        hook.remove()


def cells_of(part: Part, positions: int, rows: int, columns: int, first: int) -> Tensor:
    """Which positions of a tower a photograph is pooled from, (positions,): all, or the cells in its part alone.

    Raises:
        ValueError: every cell of the part reaches into another photograph.
    """
    if part.side == 1:
        return torch.ones(positions, dtype=torch.bool)
    across = cells_inside(columns, part.side, part.column)
    block = cells_inside(rows, part.side, part.row)[:, None] & across[None, :]
    if not block.any():
        raise ValueError(
            f"mosaic_sides {part.side}: on a grid of {rows} x {columns} cells some photograph has none to itself: "
            "give smaller mosaic_sides, or larger images"
        )
    rest = positions - first - rows * columns
    return torch.cat([torch.zeros(first, dtype=torch.bool), block.flatten(), torch.zeros(rest, dtype=torch.bool)])


def cells_inside(cells: int, side: int, place: int) -> Tensor:
    """Which of `cells` in a line lie wholly in part `place` of `side` equal parts: (cells,) booleans."""
    starts = torch.arange(cells) * side
    return (starts >= place * cells) & (starts + side <= (place + 1) * cells)
