"""Images of generated scenes: shapes, textures and backgrounds, drawn with Pillow."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from hf_vse.data.scene_truth import BACKGROUNDS, COLOURS, SIZES, Scene

Contour = list[tuple[float, float]]

_STROKE = 0.18  # contour width, in radii
_SUPERSAMPLING = 4


def _arc(radius: float, start: float, stop: float, x: float = 0.0, y: float = 0.0, points: int = 40) -> Contour:
    """Points of a circular arc around (x, y); angles in degrees, clockwise, because y points down in images."""
    angles = [math.radians(start + (stop - start) * i / (points - 1)) for i in range(points)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _turned(corners: Contour) -> Contour:
    """The corners rotated by 0, 90, 180 and 270 degrees, concatenated."""
    return [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in corners]


_TIPS, _NOTCHES = _arc(1.0, -90, 270, points=6), _arc(0.45, -54, 306, points=6)  # for the star

# A shape is a contour around the origin, within a radius of about 1, optionally followed by the contour of its hole.
CONTOURS: dict[str, tuple[Contour, ...]] = {
    "circle": (_arc(0.95, 0, 360),),
    "square": (_turned([(0.82, 0.82)]),),
    "triangle": ([(0.0, -0.92), (0.98, 0.78), (-0.98, 0.78)],),
    "star": ([(x, y + 0.06) for pair in zip(_TIPS[:5], _NOTCHES[:5], strict=True) for x, y in pair],),
    "cross": (_turned([(-0.34, -0.34), (-0.34, -1.0), (0.34, -1.0)]),),
    "ring": (_arc(1.0, 0, 360), _arc(0.45, 0, 360)),
    "diamond": ([(0.0, -1.0), (0.74, 0.0), (0.0, 1.0), (-0.74, 0.0)],),
    "heart": (_arc(0.5, 160, 360, -0.48, -0.32) + _arc(0.5, 180, 380, 0.48, -0.32) + [(0.0, 0.95)],),
    "crescent": (_arc(1.0, 51.3, 308.7) + _arc(0.8, 282.6, 77.4, 0.45),),
    "arrow": ([(0, -1), (0.9, 0), (0.34, 0), (0.34, 1), (-0.34, 1), (-0.34, 0), (-0.9, 0)],),
}


def render(scene: Scene, image_size: int = 64) -> Image.Image:
    """The image of a scene: RGB, `image_size` x `image_size`, drawn at four times the size and averaged down."""
    canvas_size = image_size * _SUPERSAMPLING
    background = _background(scene.background, scene.background_style, image_size)
    canvas = background.resize((canvas_size, canvas_size), Image.Resampling.NEAREST)
    for obj in scene.objects:
        radius = round(SIZES[obj.size] * canvas_size)
        left, top = (round(c * canvas_size) - radius for c in obj.centre)
        body, contour = _masks(obj.shape, radius)
        if obj.texture != "outlined":
            canvas.paste(_fill(obj.colour, obj.texture, radius), (left, top), body)
        canvas.paste(COLOURS[obj.colour], (left, top, left + 2 * radius, top + 2 * radius), contour)
    return canvas.reduce(_SUPERSAMPLING)


@lru_cache(maxsize=64)
def _background(name: str, style: str, size: int) -> Image.Image:
    first, second = (np.array(shade, dtype=np.float64) for shade in BACKGROUNDS[name])
    down, right = np.mgrid[:size, :size] / size
    share = {  # (size, size), weight of the second shade
        "plain": np.zeros((size, size)),
        "gradient": down,
        "checkered": (np.floor(down * 8) + np.floor(right * 8)) % 2,
        "striped": np.floor((down + right) * 6) % 2,
    }[style]
    pixels = first + share[..., None] * (second - first)
    return Image.fromarray(pixels.round().astype(np.uint8))


@lru_cache(maxsize=64)
def _masks(shape: str, radius: int) -> tuple[Image.Image, Image.Image]:
    """Masks of the body and of the contour of a shape, (2 * radius, 2 * radius) each."""
    body, contour = (Image.new("L", (2 * radius, 2 * radius)) for _ in range(2))
    scale = radius * (1 - _STROKE / 2)  # half of the stroke lies outside
    for hole, points in enumerate(CONTOURS[shape]):
        scaled = [(radius + scale * x, radius + scale * y) for x, y in points]
        ImageDraw.Draw(body).polygon(scaled, fill=0 if hole else 255)
        closed = [*scaled, *scaled[:2]]  # repeat the second point, so that the last corner is joined too
        ImageDraw.Draw(contour).line(closed, fill=255, width=max(1, round(_STROKE * radius)), joint="curve")
    return body, contour


@lru_cache(maxsize=128)
def _fill(colour: str, texture: str, radius: int) -> Image.Image:
    """A square of the colour, with stripes or dots in a paler tint (darker if the colour is pale)."""
    rgb, side = COLOURS[colour], 2 * radius
    towards, share = (0, 0.45) if min(rgb[:2]) > 190 else (255, 0.75)
    tint = tuple(round(c + share * (towards - c)) for c in rgb)
    image = Image.new("RGB", (side, side), rgb)
    draw = ImageDraw.Draw(image)
    if texture == "striped":
        for start in range(-side, side, max(2, round(0.6 * radius))):
            draw.line([(start, side), (start + side, 0)], fill=tint, width=max(1, round(0.24 * radius)))
    elif texture == "dotted":
        for x, y in [(0.0, 0.0), *_turned([(0.42, 0.42), (0.7, 0.0)])]:
            corners = [radius * (1 + centre + half) for half in (-0.17, 0.17) for centre in (x, y)]
            draw.ellipse(corners, fill=tint)
    return image
