"""Captions of generated scenes: five true sentences with different wording."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from hf_vse.data.scene_truth import CELLS, Scene, SceneObject, choose, sample

CAPTIONS_PER_IMAGE = 5

# Caption templates; a slot in braces is filled by the function of that name in `_SLOTS`.
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
# An empty word omits the attribute. Every attribute still uses one random number, so wording survives a swap.
# fmt: off
WORDS: dict[str, tuple[str, ...]] = {
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
PLACES = (  # grid cells, row by row
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
NUMBER_WORDS = ("zero", "one", "two", "three", "four")


def describe(scene: Scene, rng: random.Random) -> list[str]:
    """Five true captions of a scene, each in a different form, in random order.

    One names all objects, one says where they are, and with two or more objects one relates a pair of them. The other
    forms name a part, count, or begin with the background. The wording depends on `rng` and on the positions of the
    objects; other attributes only fill the slots (except in tallies, which group by them).
    """
    related = len(scene.objects) > 1
    forms = ["list", "places", "relation"] if related else ["list", "places"]
    others = ["background", "show", "part", "count", "tally"] if related else ["background", "show", "part", "count"]
    forms += sample(rng, others, CAPTIONS_PER_IMAGE - len(forms))
    templates = [choose(rng, _FORMS[form]) for form in sample(rng, forms, len(forms))]
    sentences = [re.sub(r"\{(\w+)\}", lambda slot: _SLOTS[slot[1]](scene, rng), text) for text in templates]
    return [sentence[0].upper() + sentence[1:] + "." for sentence in sentences]


def _word(key: str, rng: random.Random) -> str:
    return choose(rng, WORDS.get(key, (key,)))


def _with_article(*words: str) -> str:
    phrase = " ".join(word for word in words if word)
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def with_number(count: int, noun: str) -> str:
    ending = "" if count == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{NUMBER_WORDS[count]} {noun}{ending}"


def _join(phrases: Sequence[str]) -> str:
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}" if len(phrases) > 1 else phrases[0]


def _object(obj: SceneObject, rng: random.Random) -> str:
    return _with_article(_word(obj.size, rng), _word(obj.texture, rng), obj.colour, _word(obj.shape, rng))


def _objects(scene: Scene, rng: random.Random) -> str:
    return _join([_object(obj, rng) for obj in sample(rng, scene.objects, len(scene.objects))])


def _places(scene: Scene, rng: random.Random) -> str:
    order = sample(rng, scene.objects, len(scene.objects))
    return _join([f"{_object(obj, rng)} {choose(rng, PLACES[obj.row * CELLS + obj.column])}" for obj in order])


def _relation(scene: Scene, rng: random.Random) -> str:
    subject, kind, other = choose(rng, scene.relations())
    verb, words = choose(rng, ("is", "sits", "lies")), _word(kind, rng)
    return f"{_object(scene.objects[subject], rng)} {verb} {words} {_object(scene.objects[other], rng)}"


def _backdrop(scene: Scene, rng: random.Random) -> str:
    noun = choose(rng, ("background", "backdrop"))
    return _with_article(_word(scene.background_style, rng), scene.background, noun)


def _tally(scene: Scene, rng: random.Random) -> str:
    """By shape or by colour: two stars and one ring; two red shapes and one blue shape."""
    attribute, noun = choose(rng, (("shape", ""), ("colour", " shape"), ("colour", " object")))
    counts = Counter(getattr(obj, attribute) for obj in scene.objects)
    return _join([with_number(count, _word(value, rng) + noun) for value, count in counts.items()])


_SLOTS: dict[str, Callable[[Scene, random.Random], str]]
_SLOTS = dict(objects=_objects, places=_places, relation=_relation, backdrop=_backdrop, tally=_tally)
_SLOTS["part"] = lambda scene, rng: _object(choose(rng, scene.objects), rng)
_SLOTS["count"] = lambda scene, rng: with_number(len(scene.objects), choose(rng, ("shape", "object", "figure")))
