"""Scenes: a generated image-caption data set that needs no download.

A scene is first sampled as structured truth (`Scene`: a background and a few `SceneObject`s on a 3 x 3 grid) and only
then rendered to pixels and put into words. The truth stays at hand: swap two colours with `dataclasses.replace`,
describe the result with an equally seeded generator, and the captions keep their wording but tell of another picture.

A scene depends on (seed, split, index, difficulty) alone, never on how many are asked for or on who asks.
"""

import io
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar, get_args

import datasets
import numpy as np
from datasets import Dataset, DatasetDict, Features, List, NamedSplit, Value
from PIL import Image, ImageDraw

from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, IMAGE, IMAGE_ID

SCENES_VERSION = 1  # raise it whenever a pixel or a word changes, so that caches of the old version are left alone
CAPTIONS_PER_IMAGE = 5
SPLITS = ("train", "validation", "test")
Difficulty = Literal["easy", "medium", "hard"]

RGB = tuple[int, int, int]
Contour = list[tuple[float, float]]
Relation = tuple[int, str, int]  # (i, "left of", j): objects[i] is left of objects[j]; or "right of", "above", "below"
T = TypeVar("T")


def _arc(radius: float, start: float, stop: float, x: float = 0.0, y: float = 0.0, points: int = 40) -> Contour:
    """Points of a circular arc around (x, y); angles in degrees, clockwise, because y points down in images."""
    angles = [math.radians(start + (stop - start) * i / (points - 1)) for i in range(points)]
    return [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]


def _turned(corners: Contour) -> Contour:
    """The corners in all four quarter turns, one after the other."""
    return [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in corners]


_TIPS, _NOTCHES = _arc(1.0, -90, 270, points=6), _arc(0.45, -54, 306, points=6)  # of the star

# A shape is a contour around the origin, within a circle of radius 1 or so, and perhaps a second contour: its hole.
SHAPES: dict[str, tuple[Contour, ...]] = {
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
# fmt: off
COLOURS: dict[str, RGB] = {
    "red": (222, 41, 41), "orange": (247, 118, 14), "yellow": (250, 204, 21), "green": (36, 148, 62),
    "cyan": (18, 184, 204), "blue": (33, 92, 222), "purple": (126, 58, 202), "pink": (244, 98, 176),
    "brown": (128, 76, 34), "black": (28, 30, 34), "white": (252, 252, 252),
}
# Two shades each: a plain background has the first, the other styles go from the first to the second.
BACKGROUNDS: dict[str, tuple[RGB, RGB]] = {
    "white": ((255, 255, 255), (228, 230, 235)), "light grey": ((221, 223, 227), (200, 203, 209)),
    "beige": ((247, 237, 216), (232, 214, 180)), "lavender": ((235, 226, 250), (212, 198, 238)),
    "pale blue": ((217, 232, 250), (184, 210, 240)), "pale green": ((220, 242, 220), (188, 224, 190)),
    "dark grey": ((58, 61, 68), (82, 86, 94)), "navy blue": ((20, 28, 66), (36, 48, 98)),
}
# fmt: on
SIZES: dict[str, float] = {"small": 0.09, "large": 0.146}  # radius, in widths of the image
TEXTURES = ("plain", "striped", "dotted", "outlined")
BACKGROUND_STYLES = ("plain", "gradient", "checkered", "striped")

_OBJECT_COUNTS: dict[Difficulty, tuple[int, int]] = {"easy": (1, 2), "medium": (2, 3), "hard": (3, 4)}
_CELLS = 3  # the grid has _CELLS x _CELLS places, each taken at most once
_JITTER = 0.018  # in widths of the image: so little that large neighbours do not touch
_CONTRAST = 120.0  # least distance, in RGB, of an object's colour to both shades of its background
_STROKE = 0.18  # width of the contours, in radii
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """Keys of `SHAPES`, `COLOURS` and `SIZES`, one of `TEXTURES`, and the place on the grid."""

    shape: str
    colour: str
    size: str
    texture: str
    row: int
    column: int
    jitter: tuple[float, float] = (0.0, 0.0)

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) from the upper left corner, in widths of the image."""
        return (self.column + 0.5) / _CELLS + self.jitter[0], (self.row + 0.5) / _CELLS + self.jitter[1]


@dataclass(frozen=True)
class Scene:
    """The whole truth about a picture: a key of `BACKGROUNDS`, one of `BACKGROUND_STYLES`, and the objects."""

    background: str
    background_style: str
    objects: tuple[SceneObject, ...]

    def relations(self) -> list[Relation]:
        """Every true relation between two objects; their places alone decide."""
        found = []
        for (i, a), (j, b) in product(enumerate(self.objects), repeat=2):
            if a.column != b.column:
                found.append((i, "left of" if a.column < b.column else "right of", j))
            if a.row != b.row:
                found.append((i, "above" if a.row < b.row else "below", j))
        return found


def random_stream(seed: int, split: str, index: int, purpose: str) -> random.Random:
    """The random numbers of one scene for one purpose, "scene" or "captions"; a string seeds alike everywhere."""
    return random.Random(f"scenes/{seed}/{split}/{index}/{purpose}")


# Python promises the same numbers in every version for `random()` only, hence not `choice` and `sample`.
def _choose(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _sample(rng: random.Random, options: Sequence[T], count: int) -> list[T]:
    """`count` different members of `options` in random order."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(choices)}")


def sample_scene(seed: int, index: int, difficulty: Difficulty = "medium", split: str = "train") -> Scene:
    """Scene number `index` of a split.

    `easy` has 1-2 plain objects on a plain background, `medium` 2-3 objects with all attributes, `hard` 3-4
    objects that share shapes or colours, so that only *which* colour goes with which shape, and where, tells scenes
    apart. No two objects of a scene agree in both shape and colour.
    """
    _check_choice("difficulty", difficulty, get_args(Difficulty))
    _check_choice("split", split, SPLITS)
    rng = random_stream(seed, split, index, "scene")
    count = _choose(rng, _OBJECT_COUNTS[difficulty])
    background = _choose(rng, list(BACKGROUNDS))
    style = "plain" if difficulty == "easy" else _choose(rng, BACKGROUND_STYLES)
    shapes, colours = list(SHAPES), visible_colours(background)
    if difficulty == "hard":  # fewer shapes, or fewer colours, than objects: some must share
        num_shapes, num_colours = _choose(rng, [(2, 3), (3, 2)])
        shapes, colours = _sample(rng, shapes, num_shapes), _sample(rng, colours, num_colours)
    pairs = _sample(rng, list(product(shapes, colours)), count)
    cells = _sample(rng, range(_CELLS**2), count)
    objects = []
    for (shape, colour), cell in zip(pairs, cells, strict=True):
        size = _choose(rng, list(SIZES))
        texture = "plain" if difficulty == "easy" else _choose(rng, TEXTURES)
        jitter = (_JITTER * (2 * rng.random() - 1), _JITTER * (2 * rng.random() - 1))
        objects.append(SceneObject(shape, colour, size, texture, *divmod(cell, _CELLS), jitter))
    return Scene(background, style, tuple(objects))


def visible_colours(background: str) -> list[str]:
    """The colours that stand out from both shades of a background."""
    shades = BACKGROUNDS[background]
    return [name for name, rgb in COLOURS.items() if min(math.dist(rgb, shade) for shade in shades) >= _CONTRAST]


def render(scene: Scene, image_size: int = 64) -> Image.Image:
    """The picture of a scene: RGB, `image_size` x `image_size`, drawn four times as large and averaged down."""
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
    share = {  # (size, size), of the second shade
        "plain": np.zeros((size, size)),
        "gradient": down,
        "checkered": (np.floor(down * 8) + np.floor(right * 8)) % 2,
        "striped": np.floor((down + right) * 6) % 2,
    }[style]
    pixels = first + share[..., None] * (second - first)
    return Image.fromarray(pixels.round().astype(np.uint8))


@lru_cache(maxsize=64)
def _masks(shape: str, radius: int) -> tuple[Image.Image, Image.Image]:
    """Where the body of a shape is, and where its contour."""
    body, contour = (Image.new("L", (2 * radius, 2 * radius)) for _ in range(2))
    scale = radius * (1 - _STROKE / 2)  # half of the stroke lies outside
    for hole, points in enumerate(SHAPES[shape]):
        scaled = [(radius + scale * x, radius + scale * y) for x, y in points]
        ImageDraw.Draw(body).polygon(scaled, fill=0 if hole else 255)
        closed = [*scaled, *scaled[:2]]  # the second point again, so that the last corner is joined too
        ImageDraw.Draw(contour).line(closed, fill=255, width=max(1, round(_STROKE * radius)), joint="curve")
    return body, contour


@lru_cache(maxsize=128)
def _fill(colour: str, texture: str, radius: int) -> Image.Image:
    """A square of the colour, with stripes or dots in a paler tint, or in a darker one where the colour is pale."""
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


# The forms a caption may have; a slot in braces is filled by the function of that name in `_SLOTS`.
_FORMS: dict[str, tuple[str, ...]] = {
    "list": ("{objects} on {backdrop}", "{objects} against {backdrop}", "{objects} in front of {backdrop}"),
    "places": ("{places}",),
    "relation": ("{relation}",),
    "background": ("on {backdrop} there is {objects}", "against {backdrop} we see {objects}"),
    "show": ("the picture shows {objects}", "the image contains {objects}", "this is a drawing of {objects}"),
    "part": ("{part} can be seen somewhere in the image", "{part} appears in the drawing", "{part} is shown here"),
    "count": ("{count}: {objects}", "{count}, namely {objects}"),
    "tally": ("in this picture: {tally}", "the scene has {tally}", "the drawing consists of {tally}"),
}
# An empty word leaves an attribute unmentioned. Each attribute takes one draw all the same: wording survives a swap.
# fmt: off
_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny", ""), "large": ("large", "big", "large", ""),
    "plain": ("", "", "", "plain", "solid"), "striped": ("striped", "striped", "stripy", ""),
    "dotted": ("dotted", "spotted", "dotted", ""), "outlined": ("outlined", "unfilled", "outlined", ""),
    "gradient": ("", "shaded"), "checkered": ("checkered", "chequered", ""),
    "circle": ("circle", "disc"), "square": ("square", "square", "box"), "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"), "diamond": ("diamond", "rhombus"), "crescent": ("crescent", "moon"),
    "above": ("above", "higher up than", "above"), "below": ("below", "lower down than", "under"),
    "left of": ("to the left of", "left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right side of"),
}
_PLACES = (  # of the cells, row by row
    ("in the top left corner", "at the upper left"),
    ("at the top", "in the middle of the top row"),
    ("in the top right corner", "at the upper right"),
    ("on the left", "at the left edge"),
    ("in the centre", "in the middle"),
    ("on the right", "at the right edge"),
    ("in the bottom left corner", "at the lower left"),
    ("at the bottom", "in the middle of the bottom row"),
    ("in the bottom right corner", "at the lower right"),
)
# fmt: on
_NUMBERS = ("zero", "one", "two", "three", "four")


def describe(scene: Scene, rng: random.Random) -> list[str]:
    """Five true captions of a scene, each in another form, in random order.

    One names all objects, one says where they are and, if there are two, one relates a pair of them; the other forms
    name a part, count, or begin with the background. The wording depends on `rng` and on the objects' places; other
    attributes only fill the slots (except in tallies, which group by them).
    """
    related = len(scene.objects) > 1
    forms = ["list", "places", "relation"] if related else ["list", "places"]
    others = ["background", "show", "part", "count", "tally"] if related else ["background", "show", "part", "count"]
    forms += _sample(rng, others, CAPTIONS_PER_IMAGE - len(forms))
    templates = [_choose(rng, _FORMS[form]) for form in _sample(rng, forms, len(forms))]
    sentences = [re.sub(r"\{(\w+)\}", lambda slot: _SLOTS[slot[1]](scene, rng), text) for text in templates]
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences]


def _word(key: str, rng: random.Random) -> str:
    return _choose(rng, _WORDS.get(key, (key,)))


def _with_article(*words: str) -> str:
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _counted(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{_NUMBERS[count]} {noun}{ending}"


def _join(phrases: Sequence[str]) -> str:
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}" if len(phrases) > 1 else phrases[0]


def _object(obj: SceneObject, rng: random.Random) -> str:
    return _with_article(_word(obj.size, rng), _word(obj.texture, rng), obj.colour, _word(obj.shape, rng))


def _objects(scene: Scene, rng: random.Random) -> str:
    return _join([_object(obj, rng) for obj in _sample(rng, scene.objects, len(scene.objects))])


def _places(scene: Scene, rng: random.Random) -> str:
    order = _sample(rng, scene.objects, len(scene.objects))
    return _join([f"{_object(obj, rng)} {_choose(rng, _PLACES[obj.row * _CELLS + obj.column])}" for obj in order])


def _relation(scene: Scene, rng: random.Random) -> str:
    subject, kind, other = _choose(rng, scene.relations())
    verb, words = _choose(rng, ("is", "sits", "lies")), _word(kind, rng)
    return f"{_object(scene.objects[subject], rng)} {verb} {words} {_object(scene.objects[other], rng)}"


def _backdrop(scene: Scene, rng: random.Random) -> str:
    noun = _choose(rng, ("background", "backdrop"))
    return _with_article(_word(scene.background_style, rng), scene.background, noun)


def _tally(scene: Scene, rng: random.Random) -> str:
    """By shape or by colour: two stars and one ring; two red shapes and one blue shape."""
    attribute, noun = _choose(rng, (("shape", ""), ("colour", " shape"), ("colour", " object")))
    counts = Counter(getattr(obj, attribute) for obj in scene.objects)
    return _join([_counted(count, _word(value, rng) + noun) for value, count in counts.items()])


_SLOTS: dict[str, Callable[[Scene, random.Random], str]]
_SLOTS = dict(objects=_objects, places=_places, relation=_relation, backdrop=_backdrop, tally=_tally)
_SLOTS["part"] = lambda scene, rng: _object(_choose(rng, scene.objects), rng)
_SLOTS["count"] = lambda scene, rng: _counted(len(scene.objects), _choose(rng, ("shape", "object", "figure")))


def load_scenes(
    *,
    num_train: int = 4000,
    num_eval: int = 500,
    seed: int = 0,
    difficulty: Difficulty = "medium",
    image_size: int = 64,
    cache_dir: str | Path | None = None,
) -> DatasetDict:
    """`train`, `validation` and `test` in the columns of `schema.py`: drawn once, then read from the `datasets` cache.

    `validation` has `num_eval` images and so has `test`; pictures are `image_size` pixels wide and high. Two processes
    may call it at once: one writes under the file lock of `datasets`, the other waits.
    """
    _check_choice("difficulty", difficulty, get_args(Difficulty))
    for name, value, least in (("num_train", num_train, 1), ("num_eval", num_eval, 1), ("image_size", image_size, 16)):
        if value < least:
            raise ValueError(f"{name}={value} is too small: give at least {least}")
    columns = {IMAGE: datasets.Image(), IMAGE_ID: Value("int64")}
    columns |= {CAPTIONS: List(Value("string")), CAPTION_IDS: List(Value("int64"))}
    dataset = DatasetDict()
    for split, count in zip(SPLITS, (num_train, num_eval, num_eval), strict=True):
        dataset[split] = Dataset.from_generator(
            _generate_rows,
            features=Features(columns),
            cache_dir=cache_dir and str(cache_dir),
            gen_kwargs=dict(seed=seed, split=split, difficulty=difficulty, count=count, image_size=image_size),
            split=NamedSplit(split),
            fingerprint=f"scenes-v{SCENES_VERSION}-{difficulty}-{image_size}px-seed{seed}-{split}-{count}",
        )
    return dataset


def _generate_rows(seed: int, split: str, difficulty: Difficulty, count: int, image_size: int) -> Iterator[dict]:
    for index in range(count):
        scene = sample_scene(seed, index, difficulty, split)
        png = io.BytesIO()
        render(scene, image_size).save(png, format="PNG")
        image_id = index * len(SPLITS) + SPLITS.index(split)  # interleaved: unique over splits of whatever size
        yield {
            IMAGE: {"bytes": png.getvalue(), "path": None},
            IMAGE_ID: image_id,
            CAPTIONS: describe(scene, random_stream(seed, split, index, "captions")),
            CAPTION_IDS: [image_id * CAPTIONS_PER_IMAGE + number for number in range(CAPTIONS_PER_IMAGE)],
        }
