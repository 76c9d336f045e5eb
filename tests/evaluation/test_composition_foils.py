"""Foils of scenes against a second reader of their captions, and foils of captions against what must hold of any."""

import re
from collections import Counter
from typing import get_args

import pytest

from hf_vse.data.scene_captions import describe
from hf_vse.data.scene_truth import Difficulty, Scene, SceneObject, random_stream, sample_scene
from hf_vse.data.scenes import load_scenes
from hf_vse.evaluation.composition import caption_foils as rules
from hf_vse.evaluation.composition.caption_foils import (
    CaptionFoilKind,
    Captions,
    Sentence,
    caption_foils,
    foil_of_each,
)
from hf_vse.evaluation.composition.probe import Foil
from hf_vse.evaluation.composition.scene_foils import SceneFoilKind, is_true, scene_foils

SCENE_KINDS = get_args(SceneFoilKind)
CAPTION_KINDS = get_args(CaptionFoilKind)

# Written down a second time: what each word of a scene's caption means.
SYNONYMS = {
    **{"disc": "circle", "box": "square", "hoop": "ring", "rhombus": "diamond", "moon": "crescent"},
    **{"little": "small", "tiny": "small", "big": "large", "solid": "plain", "stripy": "striped"},
    **{"spotted": "dotted", "unfilled": "outlined"},
}
SHAPES = "circle square triangle star cross ring diamond heart crescent arrow".split()
COLOURS = "red orange yellow green cyan blue purple pink brown black white".split()
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}
ROWS = {"top": 0, "upper": 0, "middle": 1, "centre": 1, "bottom": 2, "lower": 2}
COLUMNS = {"left": 0, "right": 2}


def canonical(caption: str) -> list[str]:
    """The words, each under its first name and shapes in the singular."""
    words = []
    for word in re.findall(r"\w+", re.sub("plus signs?", "cross", caption.lower())):
        for stem in (word, word.removesuffix("s"), word.removesuffix("es")):
            if stem in SHAPES or stem in SYNONYMS:
                word = SYNONYMS.get(stem, stem)
                break
        words.append(word)
    return words


def place_of(words: list[str]) -> tuple[int, int] | None:
    """(row, column) of the words between an object and what follows it."""
    text = " ".join(words)
    if not re.match(r"(in|at|on) the (top|bottom|upper|lower|left|right|middle|centre)", text) or " side of " in text:
        return None
    if "middle of the top row" in text or "middle of the bottom row" in text:
        return ROWS["top" if "top" in text else "bottom"], 1
    rows = [row for word, row in ROWS.items() if word in words]
    columns = [column for word, column in COLUMNS.items() if word in words]
    return rows[0] if rows else 1, columns[0] if columns else 1


def objects_said(words: list[str]) -> list[tuple[dict, list[str]]]:
    """The objects that are mentioned, each with the words from it to the next."""
    starts = [place for place, pair in enumerate(zip(words, words[1:], strict=False)) if pair[0] in COLOURS]
    starts = [place for place in starts if words[place + 1] in SHAPES and not {*NUMBERS} & {words[place - 1]}]
    found = []
    for number, start in enumerate(starts):
        said = {"colour": words[start], "shape": words[start + 1]}
        for word in words[max(0, start - 2) : start]:
            if word in ("small", "large"):
                said["size"] = word
            if word in ("plain", "striped", "dotted", "outlined"):
                said["texture"] = word
        rest = words[start + 2 : starts[number + 1] if number + 1 < len(starts) else None]
        found.append((said, rest))
    return found


def agrees(obj: SceneObject, said: dict, place: tuple[int, int] | None) -> bool:
    facts = vars(obj)
    return all(facts[name] == value for name, value in said.items()) and place in (None, (obj.row, obj.column))


def is_related(a: SceneObject, words: list[str], b: SceneObject) -> bool:
    text = " ".join(words)
    if "left" in text:
        return a.column < b.column
    if "right" in text:
        return a.column > b.column
    return a.row < b.row if re.search("above|higher", text) else a.row > b.row


def holds(caption: str, scene: Scene) -> bool:
    """Whether a caption is true of a scene: every mention is tried on every object, places taken at their word."""
    words = canonical(caption)
    said = objects_said(words)
    fits = []
    for mention, rest in said:
        place = place_of(rest)
        fits.append([obj for obj in scene.objects if agrees(obj, mention, place)])
    if not all(fits):
        return False
    if len(said) == 2 and said[0][1] and said[0][1][0] in ("is", "sits", "lies"):
        return any(is_related(a, said[0][1], b) for a in fits[0] for b in fits[1])
    for place, word in enumerate(words):
        if word in NUMBERS:
            following = words[place + 1]
            if following in COLOURS:
                count = sum(obj.colour == following for obj in scene.objects)
            elif following in SHAPES:
                count = sum(obj.shape == following for obj in scene.objects)
            else:
                count = len(scene.objects)
            if count != NUMBERS[word]:
                return False
    return True


def captions_of(index: int, difficulty: Difficulty, seed: int = 0) -> tuple[Scene, list[str]]:
    scene = sample_scene(seed, index, difficulty, "test")
    return scene, describe(scene, random_stream(seed, "test", index, "captions"))


def bag(text: str) -> Counter:
    return Counter(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("difficulty", get_args(Difficulty))
def test_scene_foils_are_false_and_captions_true_for_a_second_reader(difficulty):
    for index in range(120):
        scene, captions = captions_of(index, difficulty)
        for caption in captions:
            assert holds(caption, scene) and is_true(caption, scene), caption
    kinds = set()
    for foil in scene_foils(120, 0, difficulty):
        kinds.add(foil.kind)
        (false,) = foil.false_captions
        scene, captions = captions_of(foil.image, difficulty)
        assert foil.true_caption in captions and false not in captions
        assert foil.kind == "word_order" or not holds(false, scene), (foil, scene)
    assert kinds == set(SCENE_KINDS) - ({"swap_texture"} if difficulty == "easy" else set())


def test_scene_foils_agree_with_the_other_reader_on_any_scene():
    """A caption of one scene told of another: mostly false, sometimes true, and both readers say the same."""
    verdicts = Counter()
    for index in range(40):
        _, captions = captions_of(index, "easy")
        for other in range(40):
            scene, _ = captions_of(other, "easy")
            for caption in captions:
                if "middle of the" not in caption and not re.search(r" (at|on) the (top|bottom|left|right)", caption):
                    verdict = is_true(caption, scene)
                    assert verdict == holds(caption, scene), (caption, scene)
                    verdicts[verdict, index == other] += 1
    assert verdicts[True, False] > 0 and verdicts[False, False] > 1000 and not verdicts[False, True]


def test_scene_swaps_keep_the_bag_of_words_and_replacements_the_length():
    for foil in scene_foils(60, 3, "hard"):
        true, false = foil.true_caption, foil.false_captions[0]
        assert true != false
        if foil.kind.startswith("swap_") or foil.kind == "word_order":
            assert bag(true) == bag(false), foil
        else:
            assert len(true.split()) == len(false.split()), foil
        if foil.kind != "word_order":
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", false), foil


def test_scene_relations_are_reversed_in_all_four_directions():
    foils = scene_foils(60, 3, "hard", kinds=["replace_relation"])
    for words in ("above", "below|under|lower", "left", "right"):
        assert any(re.search(words, foil.false_captions[0]) for foil in foils)
    assert len(foils) == 60  # every scene of several objects has a relation


def test_scene_foils_belong_to_the_rows_of_load_scenes(tmp_path):
    rows = load_scenes(num_train=1, num_eval=8, seed=5, difficulty="hard", image_size=16, cache_dir=tmp_path)
    for foil in scene_foils(8, 5, "hard", "validation"):
        assert foil.true_caption in rows["validation"][foil.image]["captions"]


def test_scene_foils_depend_on_the_scene_alone():
    few, many = scene_foils(10, 1), scene_foils(20, 1)
    assert many[: len(few)] == few
    assert scene_foils(10, 1, kinds=["replace_colour"]) == [foil for foil in few if foil.kind == "replace_colour"]
    assert scene_foils(10, 2) != few and scene_foils(10, 1, split="train") != few


def test_place_words_are_taken_generously():
    corner = Scene("white", "plain", (SceneObject("star", "red", "small", "plain", 0, 0),))
    assert is_true("A red star at the top.", corner) and is_true("A red star at the left edge.", corner)
    assert not is_true("A red star at the bottom.", corner) and not is_true("A red star in the middle.", corner)


def test_scene_foils_refuse_what_they_do_not_know():
    for arguments, message in [
        (dict(num_scenes=0), "num_scenes=0 is too small"),
        (dict(num_scenes=1, kinds=["swap_taste"]), "kinds='swap_taste' is unknown"),
        (dict(num_scenes=1, difficulty="absurd"), "difficulty='absurd' is unknown"),
    ]:
        with pytest.raises(ValueError, match=message):
            scene_foils(**arguments)


# ---------------------------------------------------------------------------------------------------- captions

PERSONS, CLOTHES, COLOURS_WORN = ("man", "woman", "boy", "girl"), ("hat", "coat", "scarf"), ("red", "green", "black")
PLACES = ("in a kitchen", "on a bench", "near a lake", "near a fountain", "near a castle", "under a bridge")


def photograph(number: int) -> list[str]:
    """Two captions of an imagined photograph; over the numbers each word meets each other one."""
    person, garment = PERSONS[number % 4], CLOTHES[number % 3]
    first, second = COLOURS_WORN[number % 3], COLOURS_WORN[(number // 3 + number + 1) % 3]
    other = PERSONS[(number + 1 + number // 4) % 4]
    place = PLACES[(number // 2) % 6]
    pet = ("dog", "horse")[number // 6 % 2]
    return [
        f"A {person} in a {first} {garment} and a {second} {CLOTHES[(number + 1) % 3]} sits {place}.",
        f"An old {person} leads a {pet} while a young {other} watches {('two', 'three')[number % 2]} boats.",
    ]


CAPTIONS = [photograph(number) for number in range(240)]


def test_caption_foils_differ_from_every_caption_of_their_image():
    foils = caption_foils(CAPTIONS, seed=4)
    assert {foil.kind for foil in foils} == set(CAPTION_KINDS)
    for foil in foils:
        captions = CAPTIONS[foil.image]
        assert foil.true_caption in captions and foil.false_captions
        assert not {text.lower() for text in foil.false_captions} & {text.lower() for text in captions}
        assert len(set(foil.false_captions)) == len(foil.false_captions)
        for false in foil.false_captions:
            assert false[0].isupper() and false.endswith(".")
            if foil.kind.startswith("swap_") or "order" in foil.kind:
                assert bag(false) == bag(foil.true_caption), foil
            else:
                assert bag(false) != bag(foil.true_caption), foil


def test_caption_foils_put_in_nothing_that_a_caption_of_the_image_mentions():
    checked = 0
    for foil in caption_foils(CAPTIONS, seed=1, kinds=["replace_attribute", "replace_object"]):
        new = bag(foil.false_captions[0]) - bag(foil.true_caption)
        mentioned = set().union(*(bag(text) for text in CAPTIONS[foil.image]))
        assert not (set(new) - {"a", "an"}) & mentioned, foil
        checked += bool(new)
    assert checked > 100


def test_caption_foils_are_at_most_one_for_each_image_and_kind():
    foils = caption_foils(CAPTIONS, seed=2)
    assert max(Counter((foil.image, foil.kind) for foil in foils).values()) == 1
    few = caption_foils(CAPTIONS, seed=2, per_kind=7)
    assert Counter(foil.kind for foil in few) == dict.fromkeys(CAPTION_KINDS, 7)
    assert set(few) <= set(foils)
    assert caption_foils(CAPTIONS, seed=2, per_kind=7) == few != caption_foils(CAPTIONS, seed=3, per_kind=7)


def foils_of(editor, text: str, image_captions: list[str] | None = None) -> set[str]:
    """Every foil of a sentence, with what is known of it and of `CAPTIONS`."""
    known = Captions([*CAPTIONS, image_captions or [text]])
    return set(editor(Sentence(text), len(CAPTIONS), known))


def test_noun_swaps_exchange_whole_phrases_and_only_where_it_matters():
    swap = rules.swapped_nouns
    assert foils_of(swap, "An old man leads a dog.") == {"A dog leads an old man."}
    assert foils_of(swap, "A man in a red hat watches a woman.") == {"A woman in a red hat watches a man."}
    for text in (
        "A man and a woman sit in the rain.",  # holds both ways
        "A man stands next to a woman.",
        "A man talks to a woman.",
        "A man kisses a woman.",
        "A man leads a man.",
        "A woman leads two dogs.",  # the verb would have to change
        "A person watches a man.",  # he may be the person
    ):
        assert not foils_of(swap, text), text


def test_adjective_swaps_need_two_nouns_and_one_class():
    swap = rules.swapped_adjectives
    assert foils_of(swap, "A man in a red hat and a green coat.") == {"A man in a green hat and a red coat."}
    assert not foils_of(swap, "A red hat next to a green hat.")
    assert not foils_of(swap, "A red hat and an old coat.")  # may both be said of both


def test_relations_become_their_opposites():
    replace = rules.replaced_relations
    for text, false in [
        ("A dog is in front of a castle.", "A dog is behind a castle."),
        ("A dog sits on a bench.", "A dog sits under a bench."),
        ("The boat on the left is red.", "The boat on the right is red."),
        ("A cat sleeps on top of the wardrobe.", "A cat sleeps underneath the wardrobe."),
    ]:
        assert foils_of(replace, text) == {false}
    for text in ("A man leaps into the air.", "A tower made out of a kit.", "All over the floor."):
        assert not foils_of(replace, text), text


def test_attributes_are_replaced_by_what_excludes_them():
    replace = rules.replaced_attributes
    assert foils_of(replace, "A man in a red hat.") == {"A man in a green hat.", "A man in a black hat."}
    assert foils_of(replace, "A man in a red hat.", ["A man in a red hat.", "Something green."]) == {
        "A man in a black hat."
    }
    assert foils_of(replace, "An old man leads a dog.") == {"A young man leads a dog."}


def test_people_are_replaced_by_the_other_sex_unless_it_is_mentioned():
    replace = rules.replaced_objects
    assert foils_of(replace, "A man watches.") == {"A woman watches."}
    assert not foils_of(replace, "A man watches.", ["A man watches.", "Her brother."])
    assert not foils_of(replace, "A man leads his dog.") & {"A woman leads his dog."}


def test_things_are_replaced_by_what_stands_there_elsewhere_and_is_not_mentioned():
    replace, text = rules.replaced_objects, "Birds sing near a lake."
    assert foils_of(replace, text) == {"Birds sing near a castle.", "Birds sing near a fountain."}
    assert foils_of(replace, text, [text, "Two castles."]) == {"Birds sing near a fountain."}


def test_things_are_replaced_only_by_what_is_seldom_seen_with_them():
    known = Captions(CAPTIONS)
    assert known.apart("lake", "castle") and not known.apart("hat", "coat")


def test_nouns_are_found_from_their_surroundings():
    nouns = Captions(CAPTIONS).nouns
    assert {*PERSONS, *CLOTHES, "dog", "horse", "kitchen", "bench", "lake", "boats"} <= nouns
    assert not nouns & {"a", "red", "old", "sits", "leads", "watches", "in"}


def test_four_orders_have_a_chance_of_a_fifth_and_keep_punctuation():
    foils = caption_foils(CAPTIONS, kinds=["order"])
    assert Counter(len(foil.false_captions) for foil in foils).most_common(1)[0][0] == 4
    (foil,) = caption_foils([["One bright morning, a boat sails away!"]], kinds=["word_order"])
    assert foil == Foil(0, "One bright morning, a boat sails away!", foil.false_captions, "word_order")
    assert re.fullmatch(r"[A-Z]\w* \w+ \w+, \w+ \w+ \w+ \w+!", foil.false_captions[0])


def test_foil_of_each_caption_is_by_a_rule_that_finds_one():
    images = CAPTIONS[:60] + [["A boat.", "...", "the left the right", CAPTIONS[0][0].upper()]]
    known, found = Captions(images), foil_of_each(images)
    kinds = Counter()
    for image, (captions, foils) in enumerate(zip(images, found, strict=True)):
        true = {" ".join(Sentence(caption).words) for caption in captions}
        for caption, foil in zip(captions, foils, strict=True):
            of_rules = {
                text: kind for kind, editor in rules._EDITORS.items()
                for text in editor(Sentence(caption), image, known) if " ".join(Sentence(text).words) not in true
            }  # fmt: skip
            assert foil in of_rules if of_rules else foil is None
            kinds[of_rules.get(foil)] += 1
    assert min(kinds[kind] for kind in rules._EDITORS) > 0 and kinds[None] >= 2
    assert foil_of_each(images) == found != foil_of_each(images, seed=1)


def test_caption_foils_refuse_nothing_and_unknown_kinds():
    with pytest.raises(ValueError, match="holds no English sentence"):
        caption_foils([["", "..."]])
    with pytest.raises(ValueError, match="kinds='negate' is unknown"):
        caption_foils(CAPTIONS, kinds=["negate"])
