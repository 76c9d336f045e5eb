"""The ground truth of a generated scene: its content, sampled from a seed and an index.

A scene is a background and a few objects on a 3 x 3 grid. It is sampled before it is drawn (`scene_pictures.py`) and
described (`scene_captions.py`), so the ground truth is available. For example, swap two colours with
`dataclasses.replace` and describe the result with an equally seeded generator: the captions keep their wording but
describe another image.

A scene depends only on (seed, split, index, difficulty), not on the number of scenes or on the calling process.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar, get_args

SPLITS = ("train", "validation", "test")
Difficulty = Literal["easy", "medium", "hard"]

RGB = tuple[int, int, int]
Relation = tuple[int, str, int]  # (i, "left of", j): objects[i] is left of objects[j]; or "right of", "above", "below"
T = TypeVar("T")

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart", "crescent", "arrow")
# fmt: off
COLOURS: dict[str, RGB] = {
    "red": (222, 41, 41), "orange": (247, 118, 14), "yellow": (250, 204, 21), "green": (36, 148, 62),
    "cyan": (18, 184, 204), "blue": (33, 92, 222), "purple": (126, 58, 202), "pink": (244, 98, 176),
    "brown": (128, 76, 34), "black": (28, 30, 34), "white": (252, 252, 252),
}
# Two shades each: a plain background uses the first, the other styles mix both.
BACKGROUNDS: dict[str, tuple[RGB, RGB]] = {
    "white": ((255, 255, 255), (228, 230, 235)), "light grey": ((221, 223, 227), (200, 203, 209)),
    "beige": ((247, 237, 216), (232, 214, 180)), "lavender": ((235, 226, 250), (212, 198, 238)),
    "pale blue": ((217, 232, 250), (184, 210, 240)), "pale green": ((220, 242, 220), (188, 224, 190)),
    "dark grey": ((58, 61, 68), (82, 86, 94)), "navy blue": ((20, 28, 66), (36, 48, 98)),
}
# fmt: on
SIZES: dict[str, float] = {"small": 0.09, "large": 0.146}  # radius, in image widths
TEXTURES = ("plain", "striped", "dotted", "outlined")
BACKGROUND_STYLES = ("plain", "gradient", "checkered", "striped")

_OBJECT_COUNTS: dict[Difficulty, tuple[int, int]] = {"easy": (1, 2), "medium": (2, 3), "hard": (3, 4)}
CELLS = 3  # the grid has CELLS x CELLS cells; each holds at most one object
_JITTER = 0.018  # in image widths; small enough that large neighbours do not touch
_CONTRAST = 120.0  # minimum RGB distance between an object's colour and both shades of its background


@dataclass(frozen=True)
class SceneObject:
    """One of `SHAPES`, `COLOURS`, `SIZES` and `TEXTURES`, and the cell on the grid."""

    shape: str
    colour: str
    size: str
    texture: str
    row: int
    column: int
    jitter: tuple[float, float] = (0.0, 0.0)

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) from the upper left corner, in image widths."""
        return (self.column + 0.5) / CELLS + self.jitter[0], (self.row + 0.5) / CELLS + self.jitter[1]


@dataclass(frozen=True)
class Scene:
    """Full content of an image: one of `BACKGROUNDS`, one of `BACKGROUND_STYLES`, and the objects."""

    background: str
    background_style: str
    objects: tuple[SceneObject, ...]

    def relations(self) -> list[Relation]:
        """All true relations between two objects; they depend only on the grid cells."""
        found = []
        for (i, a), (j, b) in product(enumerate(self.objects), repeat=2):
            if a.column != b.column:
                found.append((i, "left of" if a.column < b.column else "right of", j))
            if a.row != b.row:
                found.append((i, "above" if a.row < b.row else "below", j))
        return found


def random_stream(seed: int, split: str, index: int, purpose: str) -> random.Random:
    """The random generator of one scene for one purpose, "scene" or "captions"; a string seed is portable."""
    return random.Random(f"scenes/{seed}/{split}/{index}/{purpose}")


# Python guarantees the same numbers across versions only for `random()`, not for `choice` or `sample`.
def choose(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def sample(rng: random.Random, options: Sequence[T], count: int) -> list[T]:
    """`count` distinct members of `options` in random order."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(choices)}")


def sample_scene(seed: int, index: int, difficulty: Difficulty = "medium", split: str = "train") -> Scene:
    """Scene number `index` of a split.

    `easy` has 1-2 plain objects on a plain background. `medium` has 2-3 objects with all attributes. `hard` has 3-4
    objects that share shapes or colours, so scenes differ only in *which* colour goes with which shape, and where.
    No two objects in a scene have both the same shape and the same colour.
    """
    check_choice("difficulty", difficulty, get_args(Difficulty))
    check_choice("split", split, SPLITS)
    rng = random_stream(seed, split, index, "scene")
    count = choose(rng, _OBJECT_COUNTS[difficulty])
    background = choose(rng, list(BACKGROUNDS))
    style = "plain" if difficulty == "easy" else choose(rng, BACKGROUND_STYLES)
    shapes, colours = list(SHAPES), visible_colours(background)
    if difficulty == "hard":  # fewer shapes or colours than objects, so some are shared
        num_shapes, num_colours = choose(rng, [(2, 3), (3, 2)])
        shapes, colours = sample(rng, shapes, num_shapes), sample(rng, colours, num_colours)
    pairs = sample(rng, list(product(shapes, colours)), count)
    cells = sample(rng, range(CELLS**2), count)
    objects = []
    for (shape, colour), cell in zip(pairs, cells, strict=True):
        size = choose(rng, list(SIZES))
        texture = "plain" if difficulty == "easy" else choose(rng, TEXTURES)
        jitter = (_JITTER * (2 * rng.random() - 1), _JITTER * (2 * rng.random() - 1))
        objects.append(SceneObject(shape, colour, size, texture, *divmod(cell, CELLS), jitter))
    return Scene(background, style, tuple(objects))


def visible_colours(background: str) -> list[str]:
    """Colours with enough contrast to both shades of a background."""
    shades = BACKGROUNDS[background]
    return [name for name, rgb in COLOURS.items() if min(math.dist(rgb, shade) for shade in shades) >= _CONTRAST]
