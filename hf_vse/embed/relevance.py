"""Which part of a picture speaks for a sentence: the cells of the image tower's grid, each compared with it.

The pooled vector is a mean (or a maximum, or a learned weighting) of the cells. One cell is a set too, so each goes
through the same pooling, projection and head alone, and is compared with the sentence. That is exactly what the model
scores a picture of this one cell. It explains the score of the whole exactly where everything after a mean is linear:
then the score is the weighted mean of the cells' scores, with the lengths of their vectors as weights. With a head it
is an approximation. A cell also sees what lies around it, as far as the tower looks.

After CLIM (arXiv 2312.11376), which pools regions from the grid. The file needs nothing else of this package, because
the demo page, which runs without it, carries a copy.
"""

from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

BEFORE_CELLS = (0, 1, 2, 5)  # positions before the first cell: none, class, class and teacher, class and registers
POOLED_FROM_CELLS = ("mean", "max", "gpo")
Box = tuple[float, float, float, float]


class Relevance(NamedTuple):
    """What `relevance` found.

    Attributes:
        cells: (rows, columns) float32, cosine similarity of each cell of the picture as the tower sees it.
        box: left, top, right, bottom of that picture in pixels of the photograph; what lies outside was cropped.
        score: cosine similarity of the whole.
    """

    cells: np.ndarray
    box: Box
    score: float

    @property
    def best(self) -> tuple[float, float]:
        """x and y of the middle of the best cell, in pixels of the photograph."""
        rows, columns = self.cells.shape
        row, column = divmod(int(self.cells.argmax()), columns)
        left, top, right, bottom = self.box
        return left + (column + 0.5) * (right - left) / columns, top + (row + 0.5) * (bottom - top) / rows


@torch.no_grad()
def relevance(encoder: Any, image: PIL.Image.Image, text: str) -> Relevance:
    """How much each cell of a photograph speaks for a sentence.

    Args:
        encoder: what `load_encoder` gives for a model of this package; or anything with its `model` and `processor`.
        image: any size; it is prepared as for the model.

    Raises:
        ValueError: the model does not pool its vectors from cells, or its image processor is not understood.
    """
    model: Any = getattr(encoder, "model", None)
    image = image.convert("RGB")
    if reason := why_no_cells(model):
        raise ValueError(f"{getattr(encoder, 'name', 'the model')} does not show where: {reason}")
    box = seen_box(encoder.processor.image_processor.to_dict(), *image.size)
    pixels = encoder.processor(images=[image])["pixel_values"].to(model.device)
    whole = model.get_image_features(pixels)
    rows, columns, first = grid_of(whole.last_hidden_state.shape, *pixels.shape[-2:])
    states = whole.last_hidden_state
    states = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
    cells = model.get_image_features(image_features=states[0, first:]).pooler_output
    words = {name: each.to(model.device) for name, each in encoder.processor(text=[text]).items()}
    sentence = model.get_text_features(**words).pooler_output[0]
    scores = (cells @ sentence).reshape(rows, columns).float().cpu().numpy()
    return Relevance(scores, box, float(whole.pooler_output[0] @ sentence))


def why_no_cells(model: Any) -> str | None:
    """Why a model pools no vectors from a grid of cells, in a few words; None where it does."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "vse":
        return "only models of hf_vse pool their vectors from a grid of cells"
    if config.dual_encoder_config is not None:
        return "its dual encoder takes one position for the picture, not a grid of cells"
    if config.vision_config.model_type == "vse_features":
        return "it reads features and has no image tower"
    if config.vision_pooling not in POOLED_FROM_CELLS:
        return f"vision_pooling is {config.vision_pooling!r}; train with one of {', '.join(POOLED_FROM_CELLS)}"
    return None


def grid_of(shape: torch.Size, height: int, width: int) -> tuple[int, int, int]:
    """Rows and columns of a tower's grid, and how many positions come before its first cell.

    Args:
        shape: of the states, (batch, positions, hidden) or (batch, channels, rows, columns).
        height, width: of the picture; cells are about as high as wide.

    Raises:
        ValueError: the positions are no grid of that shape.
    """
    if len(shape) == 4:
        return shape[2], shape[3], 0
    for first in BEFORE_CELLS:
        cells = shape[1] - first
        rows = round((max(cells, 0) * height / width) ** 0.5)
        if rows and cells % rows == 0 and round((cells * width / height) ** 0.5) == cells // rows:
            return rows, cells // rows, first
    raise ValueError(f"the image tower gives {shape[1]} positions for {height} x {width} pixels, which are no grid")


def seen_box(settings: dict[str, Any], width: int, height: int) -> Box:
    """The part of a photograph that an image processor shows to the tower, in pixels: left, top, right, bottom.

    Args:
        settings: `to_dict()` of an image processor that resizes, and then may crop the middle.

    Raises:
        ValueError: it prepares images in another way.
    """
    size, crop = dict(settings.get("size") or {}), dict(settings.get("crop_size") or {})
    if not settings.get("do_resize"):
        across, down = width, height
    elif {"height", "width"} <= size.keys():
        across, down = size["width"], size["height"]
    elif "shortest_edge" in size and "longest_edge" not in size:
        edge, shorter = size["shortest_edge"], min(width, height)
        if settings.get("crop_pct") and edge < 384:  # ConvNeXT: resized to more, and cropped to this
            crop, edge = {"height": edge, "width": edge}, int(edge / settings["crop_pct"])
        elif settings.get("crop_pct"):
            return 0.0, 0.0, float(width), float(height)
        across, down = int(edge * width / shorter), int(edge * height / shorter)
    else:
        raise ValueError(f"the image processor resizes to {size}: where its crop lies in the photograph is not known")
    if not (settings.get("do_center_crop") or settings.get("crop_pct")):
        crop = {"height": down, "width": across}
    left, top = (across - crop["width"]) // 2, (down - crop["height"]) // 2
    x, y = width / across, height / down
    return left * x, top * y, (left + crop["width"]) * x, (top + crop["height"]) * y
