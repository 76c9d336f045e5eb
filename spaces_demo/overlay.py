"""A photograph in which light falls on what speaks for a sentence.

Light and shade, no colours: everybody sees them. The file needs nothing else of this package, because the demo page,
which runs without it, carries a copy.
"""

import numpy as np
import PIL.Image
import PIL.ImageDraw

SIDE = 448  # pixels of the longer side
SHADE = 0.25  # what is left of the light on the least relevant cell, and outside of what the model sees
FRAME = (230, 159, 0)


def draw_relevance(
    image: PIL.Image.Image, cells: np.ndarray, box: tuple[float, float, float, float], side: int = SIDE
) -> PIL.Image.Image:
    """The photograph, small, with its most relevant cell in full light and framed, the others darker.

    The light goes from the lowest cell to the highest, so there is always a brightest one: whether it speaks for the
    sentence at all, the numbers tell and not the picture.

    Args:
        cells: (rows, columns) numbers, as `relevance` gives them.
        box: left, top, right, bottom of the grid in pixels of the photograph.
        side: pixels of the longer side at most.
    """
    small = image.convert("RGB")
    small.thumbnail((side, side))
    scale_x, scale_y = small.width / image.width, small.height / image.height
    left, top = box[0] * scale_x, box[1] * scale_y
    right, bottom = box[2] * scale_x, box[3] * scale_y
    span = float(cells.max() - cells.min()) or 1.0
    light = PIL.Image.fromarray((255 * (cells - cells.min()) / span).astype(np.uint8))
    place, shape = (round(left), round(top)), (max(1, round(right - left)), max(1, round(bottom - top)))
    mask = PIL.Image.new("L", small.size, 0)
    mask.paste(light.resize(shape, PIL.Image.Resampling.BILINEAR), place)
    drawn = PIL.Image.composite(small, small.convert("L").point(lambda value: SHADE * value).convert("RGB"), mask)
    rows, columns = cells.shape
    row, column = divmod(int(cells.argmax()), columns)
    high, wide = (bottom - top) / rows, (right - left) / columns
    corner = left + column * wide, top + row * high
    frame = (*corner, corner[0] + wide - 1, corner[1] + high - 1)
    PIL.ImageDraw.Draw(drawn).rectangle(frame, outline=FRAME, width=max(1, side // 150))
    return drawn
