"""Exact foils of the generated scenes: the truth is known, so a false sentence is false for certain.

A caption of a scene is read back into what it claims: the objects it mentions with their attributes and places, the
relation of two of them, the numbers it counts. Some of its words are exchanged or replaced, and the result is kept
only if the scene contradicts what it now claims. Swaps keep the bag of words and ask what belongs to which;
replacements keep the number of words and ask what there is: a new colour or shape is one that no object has.

In the manner of ARO (Yuksekgonul et al., ICLR 2023, arXiv 2210.01936), on scenes that are generated, as those of CLEVR
(Johnson et al., CVPR 2017, arXiv 1612.06890) are, so that nothing but the question asked can tell the sentences apart.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal, get_args

from hf_vse.data.scene_captions import NUMBER_WORDS, PLACES, WORDS, describe, with_number
from hf_vse.data.scene_truth import (
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Difficulty,
    Scene,
    SceneObject,
    check_choice,
    random_stream,
    sample,
    sample_scene,
    visible_colours,
)
from hf_vse.evaluation.composition.probe import Foil

Span = tuple[int, int]
Edits = list[tuple[Span, str]]  # what to write in place of some characters

OPPOSITES = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_ORDERS_TRIED = 20


def _meanings(values: Iterable[str]) -> dict[str, str]:
    """Every word for one of the values, and the value it stands for."""
    return {word: value for value in values for word in WORDS.get(value, (value,)) if word}


MEANINGS: dict[str, dict[str, str]] = {
    "size": _meanings(SIZES),
    "texture": _meanings(TEXTURES),
    "colour": _meanings(COLOURS),
    "shape": _meanings(SHAPES),
    "place": {word: str(cell) for cell, words in enumerate(PLACES) for word in words},
    "relation": _meanings(OPPOSITES),
}


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # "in the middle of the top row" before "in the middle"


_SLOT = {name: f"(?P<{name}>{_any(words)})" for name, words in MEANINGS.items()}
_OBJECT = re.compile(
    rf"\ban? (?:{_SLOT['size']} )?(?:{_SLOT['texture']} )?{_SLOT['colour']} {_SLOT['shape']}\b(?: {_SLOT['place']}\b)?"
)
_RELATION = re.compile(rf" (?:is|sits|lies) {_SLOT['relation']} ")
_COUNT = re.compile(
    rf"\b(?P<number>{_any(NUMBER_WORDS)}) (?:{_SLOT['colour']} )?"
    rf"(?P<noun>{_any((*MEANINGS['shape'], 'shape', 'object', 'figure'))})(?:es|s)?\b"
)


@dataclass(frozen=True)
class Mention:
    """An object in a sentence: the value of each attribute that is mentioned, and the position of its word."""

    span: Span
    claims: dict[str, str]
    spans: dict[str, Span]

    def fits(self, obj: SceneObject) -> bool:
        facts = {"size": obj.size, "texture": obj.texture, "colour": obj.colour, "shape": obj.shape}
        placed = "place" not in self.claims or in_place(obj, int(self.claims["place"]))
        return placed and all(facts[name] == value for name, value in self.claims.items() if name != "place")


def in_place(obj: SceneObject, cell: int) -> bool:
    """Whether an object is where a cell's words say; a corner at the top is also "at the top"."""
    row, column = divmod(cell, CELLS)
    middle = CELLS // 2
    right_row, right_column = obj.row == row, obj.column == column
    if (row == middle) != (column == middle):  # an edge
        return right_row if column == middle else right_column
    return right_row and right_column


def read_mentions(sentence: str) -> list[Mention]:
    """The objects that a sentence mentions, in their order; the sentence does not begin with a capital."""
    mentions = []
    for match in _OBJECT.finditer(sentence):
        named = [name for name, word in match.groupdict().items() if word]
        claims = {name: MEANINGS[name][match[name]] for name in named}
        last = match.end("shape")  # the place is not part of the phrase
        mentions.append(Mention((match.start(), last), claims, {name: match.span(name) for name in named}))
    return mentions


def counted_objects(match: re.Match[str], scene: Scene) -> int:
    """How many objects of the scene are of the kind that a sentence counts."""
    if match["colour"]:
        return sum(obj.colour == match["colour"] for obj in scene.objects)
    if match["noun"] in MEANINGS["shape"]:
        return sum(obj.shape == MEANINGS["shape"][match["noun"]] for obj in scene.objects)
    return len(scene.objects)


def is_true(sentence: str, scene: Scene) -> bool:
    """Whether a scene agrees with everything that a sentence claims of its objects (of the background none are read).

    Numbers are exact: a picture with three stars is not one that "has two stars".
    """
    sentence = sentence[0].lower() + sentence[1:]
    mentions = read_mentions(sentence)
    fitting = [[place for place, obj in enumerate(scene.objects) if mention.fits(obj)] for mention in mentions]
    if not all(fitting):
        return False
    if relation := _RELATION.search(sentence):
        kind = MEANINGS["relation"][relation["relation"]]
        true = set(scene.relations())
        if not any((one, kind, other) in true for one in fitting[0] for other in fitting[1]):
            return False
    return all(
        counted_objects(match, scene) == NUMBER_WORDS.index(match["number"]) for match in _COUNT.finditer(sentence)
    )


def swaps(name: str, sentence: str, scene: Scene) -> Iterator[Edits]:
    """Exchanges the words that two objects have for an attribute or their place."""
    for one, other in combinations(read_mentions(sentence), 2):
        if name in one.spans and name in other.spans and one.claims[name] != other.claims[name]:
            yield exchange_spans(sentence, one.spans[name], other.spans[name])


def relation_swaps(sentence: str, scene: Scene) -> Iterator[Edits]:
    """Exchanges the two objects of a relation."""
    if _RELATION.search(sentence):
        one, other = read_mentions(sentence)
        yield exchange_spans(sentence, one.span, other.span)


def exchange_spans(sentence: str, one: Span, other: Span) -> Edits:
    return [(one, sentence[slice(*other)]), (other, sentence[slice(*one)])]


def replacements(name: str, sentence: str, scene: Scene) -> Iterator[Edits]:
    """Replaces an attribute of an object, or its place, by every other one; colours and shapes by absent ones."""
    options = {
        "size": set(SIZES),
        "texture": set(TEXTURES),
        "colour": set(visible_colours(scene.background)) - {obj.colour for obj in scene.objects},
        "shape": set(SHAPES) - {obj.shape for obj in scene.objects},
        "place": set(MEANINGS["place"].values()),
    }
    for mention in read_mentions(sentence):
        if name in mention.spans:
            for word, value in MEANINGS[name].items():
                if value in options[name] - {mention.claims[name]}:
                    yield [(mention.spans[name], word)]


def relation_replacements(sentence: str, scene: Scene) -> Iterator[Edits]:
    """Says the opposite of a relation in the same words."""
    if match := _RELATION.search(sentence):
        kind = MEANINGS["relation"][match["relation"]]
        yield [(match.span("relation"), WORDS[OPPOSITES[kind]][WORDS[kind].index(match["relation"])])]


def count_replacements(sentence: str, scene: Scene) -> Iterator[Edits]:
    """Other numbers in a tally; not where objects are numbered and then listed, which would deny itself."""
    for match in _COUNT.finditer(sentence):
        if match["colour"] or match["noun"] in MEANINGS["shape"]:
            noun = f"{match['colour'] or ''} {match['noun']}".strip()
            yield from ([(match.span(), with_number(number, noun))] for number in range(1, len(NUMBER_WORDS)))


def orders(sentence: str, rng: random.Random) -> Iterator[str]:
    """The words of a sentence in random orders, punctuation where it was, without a phrase that means anything."""
    words = re.findall(r"\w+", sentence)
    for _ in range(_ORDERS_TRIED):
        shuffled = iter(sample(rng, words, len(words)))
        foil = re.sub(r"\w+", lambda _: next(shuffled), sentence)  # noqa: B023 (called here and now)
        if not _OBJECT.search(foil) and not _COUNT.search(foil):
            yield foil


SceneFoilKind = Literal[
    "swap_colour",
    "swap_shape",
    "swap_size",
    "swap_texture",
    "swap_place",
    "swap_relation",
    "replace_colour",
    "replace_shape",
    "replace_size",
    "replace_texture",
    "replace_place",
    "replace_relation",
    "replace_count",
    "word_order",
]
_EDITORS: dict[str, Callable[[str, Scene], Iterator[Edits]]] = {
    **{f"swap_{name}": partial(swaps, name) for name in ("colour", "shape", "size", "texture", "place")},
    "swap_relation": relation_swaps,
    **{f"replace_{name}": partial(replacements, name) for name in ("colour", "shape", "size", "texture", "place")},
    "replace_relation": relation_replacements,
    "replace_count": count_replacements,
}


def edited(sentence: str, edits: Edits) -> str:
    """The sentence with the edits made and its articles mended."""
    for (start, stop), text in sorted(edits, reverse=True):
        sentence = sentence[:start] + text + sentence[stop:]
    return re.sub(r"\ban?(?= (\w))", lambda match: "an" if match[1] in "aeiou" else "a", sentence)


def candidates(sentence: str, kind: str, scene: Scene, rng: random.Random) -> list[str]:
    """Every foil of one kind that keeps the bag of words, or for replacements their number; some may be true."""
    if kind == "word_order":
        return list(orders(sentence, rng))[:1]
    found = [edited(sentence, edits) for edits in _EDITORS[kind](sentence, scene)]
    if kind.startswith("swap_"):
        bag = Counter(sentence.rstrip(".").replace(",", "").split())
        return [foil for foil in found if Counter(foil.rstrip(".").replace(",", "").split()) == bag]
    return [foil for foil in found if len(foil.split()) == len(sentence.split())]


def scene_foil(scene: Scene, captions: list[str], kind: str, rng: random.Random) -> tuple[str, str] | None:
    """One of the captions and a foil of it at random, or None if the scene allows none of this kind."""
    pairs = []
    for caption in captions:
        sentence = caption[0].lower() + caption[1:]
        pairs += [(caption, foil[0].upper() + foil[1:]) for foil in candidates(sentence, kind, scene, rng)]
    for caption, foil in sample(rng, pairs, len(pairs)):
        if foil not in captions and (kind == "word_order" or not is_true(foil, scene)):
            return caption, foil
    return None


def scene_foils(
    num_scenes: int,
    seed: int = 0,
    difficulty: Difficulty = "medium",
    split: str = "test",
    kinds: Iterable[SceneFoilKind] = get_args(SceneFoilKind),
) -> list[Foil]:
    """At most one foil of each kind for each scene, so that the items of a kind are independent.

    Args:
        num_scenes, seed, difficulty, split: the first scenes of `load_scenes(seed=..., difficulty=...)[split]`, whose
            rows `Foil.image` names and whose captions the true ones are. A foil depends on the seed, the split, the
            row, the difficulty and its kind alone.
        kinds: which foils; every one is false but `word_order`, which has no meaning. A scene of one object allows no
            swap, an easy one has no textures to exchange.

    Raises:
        ValueError: an unknown kind, split or difficulty, or no scene.
    """
    check_choice("difficulty", difficulty, get_args(Difficulty))
    check_choice("split", split, SPLITS)
    kinds = list(kinds)
    for kind in kinds:
        check_choice("kinds", kind, get_args(SceneFoilKind))
    if num_scenes < 1:
        raise ValueError(f"num_scenes={num_scenes} is too small: give at least 1")
    foils = []
    for index in range(num_scenes):
        scene = sample_scene(seed, index, difficulty, split)
        captions = describe(scene, random_stream(seed, split, index, "captions"))
        for kind in kinds:
            if found := scene_foil(scene, captions, kind, random_stream(seed, split, index, f"foils/{kind}")):
                foils.append(Foil(index, found[0], (found[1],), kind))
    return foils
