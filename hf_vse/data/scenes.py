"""Scenes: a generated image-caption data set that needs no download.

A scene is drawn first as structured truth (`Scene`: a background and a few `SceneObject`s on a 3 x 3 grid), and only then
rendered to pixels and put into words. The truth therefore stays at hand: swap a colour or a position with
`dataclasses.replace`, describe the result with an equally seeded generator, and the caption keeps its wording but turns false.

A scene depends on (seed, split, index, difficulty) alone, never on how many scenes are asked for or on who asks.

    from hf_vse.data.scenes import load_scenes
    dataset = load_scenes(difficulty="hard")
    dataset["train"][0]["captions"]
"""

import io
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, NamedSplit, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw

from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, IMAGE, IMAGE_ID

SCENES_VERSION = 1  # raise it whenever a pixel or a word changes: caches of the old version are then left alone
CAPTIONS_PER_IMAGE = 5
Difficulty = Literal["easy", "medium", "hard"]
SPLITS = ("train", "validation", "test")

RGB = tuple[int, int, int]
Contour = list[tuple[float, float]]
T = TypeVar("T")

# ---------------------------------------------------------------------------------------------------- what there is to see


def _arc(radius: float, start: float, stop: float, centre: tuple[float, float] = (0.0, 0.0), points: int = 40) -> Contour:
    """Points of a circular arc, angles in degrees; y points down, so angles turn clockwise."""
    angles = [math.radians(start + (stop - start) * i / (points - 1)) for i in range(points)]
    return [(centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle)) for angle in angles]


def _star(points: int = 5, inner: float = 0.45) -> Contour:
    corners = _arc(1.0, -90, 270, points=2 * points + 1)[:-1]
    return [(x, y + 0.06) if i % 2 == 0 else (x * inner, y * inner + 0.06) for i, (x, y) in enumerate(corners)]


def _heart() -> Contour:
    turns = [2 * math.pi * i / 60 for i in range(60)]
    across = [16 * math.sin(t) ** 3 for t in turns]
    up = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(x / 17, -(y + 2.5) / 16.5) for x, y in zip(across, up, strict=True)]


_A = 0.34  # half the width of an arm of the cross and of the shaft of the arrow

# A shape is a contour around the origin, within a circle of radius 1, and perhaps a second contour: the hole.
SHAPES: dict[str, tuple[Contour, ...]] = {
    "circle": (_arc(0.95, 0, 360),),
    "square": ([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],),
    "triangle": ([(0.0, -0.92), (0.98, 0.78), (-0.98, 0.78)],),
    "star": (_star(),),
    "cross": (
        [(-_A, -1), (_A, -1), (_A, -_A), (1, -_A), (1, _A), (_A, _A), (_A, 1), (-_A, 1), (-_A, _A), (-1, _A), (-1, -_A), (-_A, -_A)],
    ),
    "ring": (_arc(1.0, 0, 360), _arc(0.5, 0, 360)),
    "diamond": ([(0.0, -1.0), (0.74, 0.0), (0.0, 1.0), (-0.74, 0.0)],),
    "heart": (_heart(),),
    "crescent": (_arc(1.0, 51.3, 308.7) + _arc(0.8, 282.6, 77.4, centre=(0.45, 0.0)),),
    "arrow": ([(0.0, -1.0), (0.9, 0.0), (_A, 0.0), (_A, 1.0), (-_A, 1.0), (-_A, 0.0), (-0.9, 0.0)],),
}

COLOURS: dict[str, RGB] = {
    "red": (222, 41, 41),
    "orange": (247, 118, 14),
    "yellow": (250, 204, 21),
    "green": (36, 148, 62),
    "cyan": (18, 184, 204),
    "blue": (33, 92, 222),
    "purple": (126, 58, 202),
    "pink": (244, 98, 176),
    "brown": (128, 76, 34),
    "black": (28, 30, 34),
    "white": (252, 252, 252),
}

SIZES: dict[str, float] = {"small": 0.088, "large": 0.146}  # radius, in widths of the image
TEXTURES = ("plain", "striped", "dotted", "outlined")

# Two shades each: a plain background uses the first, the other styles go from the first to the second.
BACKGROUNDS: dict[str, tuple[RGB, RGB]] = {
    "white": ((255, 255, 255), (228, 230, 235)),
    "light grey": ((221, 223, 227), (200, 203, 209)),
    "beige": ((247, 237, 216), (232, 214, 180)),
    "pale blue": ((217, 232, 250), (184, 210, 240)),
    "pale green": ((220, 242, 220), (188, 224, 190)),
    "lavender": ((235, 226, 250), (212, 198, 238)),
    "dark grey": ((58, 61, 68), (82, 86, 94)),
    "navy blue": ((20, 28, 66), (36, 48, 98)),
}
BACKGROUND_STYLES = ("plain", "gradient", "checkered", "striped")

_OBJECT_COUNTS: dict[Difficulty, tuple[int, int]] = {"easy": (1, 2), "medium": (2, 3), "hard": (3, 4)}
_CELLS = 3  # the grid has _CELLS x _CELLS places, each taken at most once
_JITTER = 0.018  # of the image's width; small enough that neighbouring large objects do not touch
_CONTRAST = 120.0  # least Euclidean RGB distance of an object to both shades of its background


@dataclass(frozen=True)
class SceneObject:
    """One object: keys of `SHAPES`, `COLOURS`, `SIZES`, a member of `TEXTURES`, and its place on the grid."""

    shape: str
    colour: str
    size: str
    texture: str
    row: int
    column: int
    jitter: tuple[float, float] = (0.0, 0.0)

    @property
    def x(self) -> float:
        """Horizontal centre, 0 is the left edge of the image and 1 its right edge."""
        return (self.column + 0.5) / _CELLS + self.jitter[0]

    @property
    def y(self) -> float:
        """Vertical centre, 0 is the upper edge of the image and 1 its lower edge."""
        return (self.row + 0.5) / _CELLS + self.jitter[1]


@dataclass(frozen=True)
class Relation:
    """`objects[subject]` is `kind` ("left of", "right of", "above", "below") `objects[other]`."""

    subject: int
    kind: str
    other: int


@dataclass(frozen=True)
class Scene:
    """The whole truth about a picture: a key of `BACKGROUNDS`, a member of `BACKGROUND_STYLES`, and the objects."""

    background: str
    background_style: str
    objects: tuple[SceneObject, ...]

    def relations(self) -> list[Relation]:
        """Every true spatial relation between two objects; it depends on their places alone."""
        found = []
        for i, a in enumerate(self.objects):
            for j, b in enumerate(self.objects):
                if a.column != b.column:
                    found.append(Relation(i, "left of" if a.column < b.column else "right of", j))
                if a.row != b.row:
                    found.append(Relation(i, "above" if a.row < b.row else "below", j))
        return found


# ---------------------------------------------------------------------------------------------------------------- sampling


def random_stream(seed: int, split: str, index: int, purpose: str) -> random.Random:
    """The random numbers of one scene, for one purpose ("scene" or "captions").

    Seeding by string is independent of `PYTHONHASHSEED`. Of `random.Random`, only `random()` promises the same numbers in
    every Python version, hence `_choose` and `_sample` are built on it alone.
    """
    return random.Random(f"scenes/{seed}/{split}/{index}/{purpose}")


def _choose(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _sample(rng: random.Random, options: Sequence[T], count: int) -> list[T]:
    """`count` different members of `options` in random order."""
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def _visible_colours(background: str) -> list[str]:
    """The object colours that stand out from both shades of the background."""
    shades = BACKGROUNDS[background]
    return [name for name, rgb in COLOURS.items() if min(math.dist(rgb, shade) for shade in shades) >= _CONTRAST]


def sample_scene(seed: int, index: int, difficulty: Difficulty = "medium", split: str = "train") -> Scene:
    """Scene number `index` of a split.

    `easy` has 1-2 plain objects on a plain background, `medium` 2-3 objects with all attributes, `hard` 3-4 objects that
    share shapes and colours, so that only *which* colour goes with which shape, and where, tells scenes apart.
    No two objects of a scene agree in both shape and colour.

    Raises:
        ValueError: if the difficulty or the split is unknown.
    """
    _check_choice("difficulty", difficulty, get_args(Difficulty))
    _check_choice("split", split, SPLITS)
    rng = random_stream(seed, split, index, "scene")
    count = _choose(rng, _OBJECT_COUNTS[difficulty])
    background = _choose(rng, list(BACKGROUNDS))
    style = "plain" if difficulty == "easy" else _choose(rng, BACKGROUND_STYLES)
    shapes, colours = list(SHAPES), _visible_colours(background)
    if difficulty == "hard":  # two of one and three of the other: some objects must share
        num_shapes, num_colours = _choose(rng, [(2, 3), (3, 2)])
        shapes, colours = _sample(rng, shapes, num_shapes), _sample(rng, colours, num_colours)
    pairs = _sample(rng, list(product(shapes, colours)), count)
    cells = _sample(rng, range(_CELLS**2), count)
    objects = []
    for (shape, colour), cell in zip(pairs, cells, strict=True):
        size = _choose(rng, list(SIZES))
        texture = "plain" if difficulty == "easy" else _choose(rng, TEXTURES)
        jitter = (_JITTER * (2 * rng.random() - 1), _JITTER * (2 * rng.random() - 1))
        objects.append(SceneObject(shape, colour, size, texture, cell // _CELLS, cell % _CELLS, jitter))
    return Scene(background, style, tuple(objects))


# --------------------------------------------------------------------------------------------------------------- rendering

_SUPERSAMPLING = 4
_STROKE = 0.2  # width of the contour, in radii


def render(scene: Scene, image_size: int = 64) -> Image.Image:
    """The picture of a scene: RGB, `image_size` x `image_size`, drawn four times as large and then averaged down."""
    canvas_size = image_size * _SUPERSAMPLING
    background = _background(scene.background, scene.background_style, image_size)
    canvas = background.resize((canvas_size, canvas_size), Image.Resampling.NEAREST)
    for obj in scene.objects:
        radius = round(SIZES[obj.size] * canvas_size)
        corner = (round(obj.x * canvas_size) - radius, round(obj.y * canvas_size) - radius)
        body, contour = _masks(obj.shape, radius)
        if obj.texture != "outlined":
            canvas.paste(_fill(obj.colour, obj.texture, radius), corner, body)
        canvas.paste(COLOURS[obj.colour], (*corner, corner[0] + body.width, corner[1] + body.height), contour)
    return canvas.reduce(_SUPERSAMPLING)


@lru_cache(maxsize=64)
def _background(name: str, style: str, size: int) -> Image.Image:
    first, second = (np.array(shade, dtype=np.float64) for shade in BACKGROUNDS[name])
    down, right = np.mgrid[:size, :size] / size
    weights = {
        "plain": np.zeros((size, size)),
        "gradient": down,
        "checkered": (np.floor(down * 8) + np.floor(right * 8)) % 2,
        "striped": np.floor((down + right) * 6) % 2,
    }
    pixels = first + weights[style][..., None] * (second - first)  # (size, size, 3)
    return Image.fromarray(pixels.round().astype(np.uint8))


@lru_cache(maxsize=64)
def _masks(shape: str, radius: int) -> tuple[Image.Image, Image.Image]:
    """Where the body of a shape is, and where its contour is."""
    side = 2 * radius
    body, contour = Image.new("L", (side, side)), Image.new("L", (side, side))
    scale = radius * (1 - _STROKE / 2)  # half of the stroke lies outside of the contour
    for hole, points in enumerate(SHAPES[shape]):
        scaled = [(radius + scale * x, radius + scale * y) for x, y in points]
        ImageDraw.Draw(body).polygon(scaled, fill=0 if hole else 255)
        closed = [*scaled, *scaled[:2]]  # the second point again, so that the last corner is joined too
        ImageDraw.Draw(contour).line(closed, fill=255, width=max(1, round(_STROKE * radius)), joint="curve")
    return body, contour


@lru_cache(maxsize=128)
def _fill(colour: str, texture: str, radius: int) -> Image.Image:
    """A square of the colour; stripes and dots are a paler tint of it, or a darker one if it is pale itself."""
    rgb = COLOURS[colour]
    target, share = ((0, 0, 0), 0.45) if min(rgb[:2]) > 190 else ((255, 255, 255), 0.7)
    tint = tuple(round(c + share * (t - c)) for c, t in zip(rgb, target, strict=True))
    image = Image.new("RGB", (2 * radius, 2 * radius), rgb)
    draw = ImageDraw.Draw(image)
    period = max(2, round(0.62 * radius))
    if texture == "striped":
        for start in range(-2 * radius, 2 * radius, period):
            draw.line([(start, 2 * radius), (start + 2 * radius, 0)], fill=tint, width=max(1, round(0.24 * radius)))
    elif texture == "dotted":
        dot = max(1, round(0.19 * radius))
        for x, y in product(range(radius % period, 2 * radius, period), repeat=2):
            draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=tint)
    return image


# ---------------------------------------------------------------------------------------------------------------- captions

# An empty word leaves the attribute unmentioned. One draw for every attribute, mentioned or not, keeps the wording the same
# when attributes are swapped.
_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny", ""),
    "large": ("large", "big", "large", ""),
    "plain": ("", "", "", "plain", "solid"),
    "striped": ("striped", "striped", "stripy", ""),
    "dotted": ("dotted", "spotted", "dotted", ""),
    "outlined": ("outlined", "unfilled", "outlined", ""),
    "gradient": ("", "shaded"),
    "checkered": ("checkered", "chequered", ""),
    "circle": ("circle", "disc"),
    "square": ("square", "square", "box"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "hoop"),
    "diamond": ("diamond", "rhombus"),
    "crescent": ("crescent", "moon"),
    "left of": ("to the left of", "left of", "on the left side of"),
    "right of": ("to the right of", "right of", "on the right side of"),
    "above": ("above", "higher up than", "above"),
    "below": ("below", "lower down than", "under"),
}
_PLACES = (  # in the order of the cells, row by row
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
_NUMBERS = ("zero", "one", "two", "three", "four")


def _word(key: str, rng: random.Random) -> str:
    return _choose(rng, _WORDS.get(key, (key,)))


def _with_article(*words: str) -> str:
    phrase = " ".join(word for word in words if word)
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


def _join(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def _object(obj: SceneObject, rng: random.Random) -> str:
    return _with_article(_word(obj.size, rng), _word(obj.texture, rng), obj.colour, _word(obj.shape, rng))


def _objects(scene: Scene, rng: random.Random) -> str:
    return _join([_object(obj, rng) for obj in _sample(rng, scene.objects, len(scene.objects))])


def _backdrop(scene: Scene, rng: random.Random) -> str:
    style = _word(scene.background_style, rng)
    return _with_article(style, scene.background, _choose(rng, ("background", "backdrop")))


def _say_list(scene: Scene, rng: random.Random) -> str:
    return f"{_objects(scene, rng)} {_choose(rng, ('on', 'against', 'in front of'))} {_backdrop(scene, rng)}"


def _say_background_first(scene: Scene, rng: random.Random) -> str:
    return f"{_choose(rng, ('on', 'against'))} {_backdrop(scene, rng)} there is {_objects(scene, rng)}"


def _say_show(scene: Scene, rng: random.Random) -> str:
    opening = ("the picture shows", "the image contains", "we can see", "this is a drawing of")
    return f"{_choose(rng, opening)} {_objects(scene, rng)}"


def _say_part(scene: Scene, rng: random.Random) -> str:
    ending = ("is part of the picture", "can be seen somewhere in the image", "appears in the drawing", "is shown here")
    return f"{_object(_choose(rng, scene.objects), rng)} {_choose(rng, ending)}"


def _say_count(scene: Scene, rng: random.Random) -> str:
    noun, many = _choose(rng, ("shape", "object", "figure")), len(scene.objects)
    return f"{_NUMBERS[many]} {noun if many == 1 else _plural(noun)}: {_objects(scene, rng)}"


def _say_places(scene: Scene, rng: random.Random) -> str:
    placed = [f"{_object(o, rng)} {_choose(rng, _PLACES[o.row * _CELLS + o.column])}" for o in scene.objects]
    return _join(_sample(rng, placed, len(placed)))


def _say_relation(scene: Scene, rng: random.Random) -> str:
    relation = _choose(rng, scene.relations())
    subject, other = (_object(scene.objects[i], rng) for i in (relation.subject, relation.other))
    return f"{subject} {_choose(rng, ('is', 'sits', 'lies'))} {_word(relation.kind, rng)} {other}"


def _say_two_relations(scene: Scene, rng: random.Random) -> str:
    first = _choose(rng, scene.relations())
    second = _choose(rng, [r for r in scene.relations() if r.subject == first.subject and r.other != first.other])
    subject, one, two = (_object(scene.objects[i], rng) for i in (first.subject, first.other, second.other))
    return f"{subject}, {_word(first.kind, rng)} {one}, is {_word(second.kind, rng)} {two}"


def _say_tally(scene: Scene, rng: random.Random) -> str:
    attribute, noun = _choose(rng, (("colour", "shape"), ("colour", "object"), ("shape", "")))
    groups = []
    for value, count in Counter(getattr(obj, attribute) for obj in scene.objects).items():
        words = f"{value} {noun}" if noun else _word(value, rng)
        groups.append(f"{_NUMBERS[count]} {words if count == 1 else _plural(words)}")
    return f"{_choose(rng, ('in this picture:', 'the scene has', 'the drawing has'))} {_join(groups)}"


def describe(scene: Scene, rng: random.Random) -> list[str]:
    """Five captions of a scene, all true, all worded differently, in random order.

    The wording depends on the places of the objects and on `rng`; other attributes only fill the slots (except for tallies,
    which group by them). Thus `describe` of a scene with swapped colours, with an equal `rng`, gives matching false captions.

    Returns:
        `CAPTIONS_PER_IMAGE` sentences. One names all objects, one says where they are, one relates two of them if there are
        two; the others name a part, count, or start from the background.
    """
    forms: list[Callable[[Scene, random.Random], str]] = [_say_list, _say_places]
    others = [_say_background_first, _say_show, _say_part, _say_count]
    if len(scene.objects) > 1:
        forms.append(_say_relation)
        others.append(_say_tally)
    if len(scene.objects) > 2:
        others.append(_say_two_relations)
    forms += _sample(rng, others, CAPTIONS_PER_IMAGE - len(forms))
    sentences = [form(scene, rng) for form in _sample(rng, forms, len(forms))]
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences]


# ----------------------------------------------------------------------------------------------------------------- loading


def load_scenes(
    *,
    num_train: int = 4000,
    num_eval: int = 500,
    seed: int = 0,
    difficulty: Difficulty = "medium",
    image_size: int = 64,
    cache_dir: str | Path | None = None,
) -> DatasetDict:
    """The scenes data set, drawn on the first call and read from the `datasets` cache ever after.

    Two processes may call it at once: `datasets` lets one write under a file lock while the other waits.

    Args:
        num_train: number of training images, each with five captions.
        num_eval: number of images in `validation`, and the same number again in `test`.
        seed: another seed gives other scenes.
        difficulty: see `sample_scene`.
        image_size: width and height of the pictures in pixels.
        cache_dir: where to keep the Arrow files, by default the cache of `datasets`.

    Returns:
        `train`, `validation` and `test` with the columns of `hf_vse.data.schema`.

    Raises:
        ValueError: if a number is too small or the difficulty unknown.
    """
    _check_choice("difficulty", difficulty, get_args(Difficulty))
    for name, value, least in (("num_train", num_train, 1), ("num_eval", num_eval, 1), ("image_size", image_size, 16)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")
    features = Features(
        {IMAGE: ImageFeature(), IMAGE_ID: Value("int64"), CAPTIONS: List(Value("string")), CAPTION_IDS: List(Value("int64"))}
    )
    dataset = DatasetDict()
    for split, count in (("train", num_train), ("validation", num_eval), ("test", num_eval)):
        what = {"seed": seed, "split": split, "difficulty": difficulty, "count": count, "image_size": image_size}
        dataset[split] = Dataset.from_generator(
            _generate_rows,
            features=features,
            cache_dir=None if cache_dir is None else str(cache_dir),
            gen_kwargs=what,
            split=NamedSplit(split),
            fingerprint=f"scenes-v{SCENES_VERSION}-{difficulty}-{image_size}px-seed{seed}-{split}-{count}",
        )
    return dataset


def _generate_rows(seed: int, split: str, difficulty: Difficulty, count: int, image_size: int) -> Iterator[dict]:
    for index in range(count):
        scene = sample_scene(seed, index, difficulty, split)
        png = io.BytesIO()
        render(scene, image_size).save(png, format="PNG")
        # Interleaving the splits makes the number unique over all of them, whatever their sizes.
        image_id = index * len(SPLITS) + SPLITS.index(split)
        yield {
            IMAGE: {"bytes": png.getvalue(), "path": None},
            IMAGE_ID: image_id,
            CAPTIONS: describe(scene, random_stream(seed, split, index, "captions")),
            CAPTION_IDS: [image_id * CAPTIONS_PER_IMAGE + i for i in range(CAPTIONS_PER_IMAGE)],
        }


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
