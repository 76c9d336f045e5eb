import itertools
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from datasets import Image, List, Value

from hf_vse.data import scene_captions, scenes
from hf_vse.data.scene_captions import describe
from hf_vse.data.scene_pictures import CONTOURS, render
from hf_vse.data.scene_truth import (
    BACKGROUND_STYLES,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TEXTURES,
    Difficulty,
    Scene,
    SceneObject,
    random_stream,
    sample_scene,
    visible_colours,
)
from hf_vse.data.scenes import load_scenes
from tests.processes import start_fork

DIFFICULTIES = get_args(Difficulty)
EACH_DIFFICULTY = pytest.mark.parametrize("difficulty", DIFFICULTIES)
SMALL = dict(num_train=6, num_eval=4, image_size=16)


def sampled(difficulty: str, count: int = 150) -> list[Scene]:
    return [sample_scene(0, index, difficulty, "test") for index in range(count)]


def captions_of(scene: Scene, index: int = 0) -> list[str]:
    return describe(scene, random_stream(0, "test", index, "captions"))


def test_scene_depends_on_seed_split_and_index_alone():
    forwards = [sample_scene(3, index, "hard") for index in range(20)]
    backwards = [sample_scene(3, index, "hard") for index in reversed(range(20))]
    assert forwards == backwards[::-1]
    streams = [[random_stream(*key, "scene").random()] for key in itertools.product((0, 1), scenes.SPLITS, (0, 1, 11))]
    assert len({tuple(stream) for stream in streams}) == len(streams)


def test_scene_is_the_same_for_ever():
    """Published numbers rest on these scenes and words. If this fails on purpose, raise SCENES_VERSION."""
    scene = sample_scene(0, 0, "medium", "test")
    assert scenes.SCENES_VERSION == 1
    assert (scene.background, scene.background_style) == ("beige", "striped")
    assert [(o.size, o.texture, o.colour, o.shape, o.row, o.column) for o in scene.objects] == [
        ("small", "plain", "purple", "diamond", 1, 0),
        ("small", "outlined", "black", "crescent", 2, 1),
    ]
    assert captions_of(scene) == [
        "A plain purple diamond on the left and an outlined black moon in the middle of the bottom row.",
        "A little purple diamond and a small outlined black crescent on a stripy beige backdrop.",
        "The picture shows a tiny black crescent and a solid purple rhombus.",
        "A little unfilled black moon is under a small purple rhombus.",
        "Two shapes: a tiny plain purple rhombus and an outlined black moon.",
    ]


@EACH_DIFFICULTY
def test_scene_keeps_what_its_difficulty_promises(difficulty):
    for scene in sampled(difficulty):
        assert len(scene.objects) in {"easy": (1, 2), "medium": (2, 3), "hard": (3, 4)}[difficulty]
        assert len({(o.shape, o.colour) for o in scene.objects}) == len(scene.objects)
        assert len({(o.row, o.column) for o in scene.objects}) == len(scene.objects)
        if difficulty == "easy":
            assert {o.texture for o in scene.objects} | {scene.background_style} == {"plain"}
        if difficulty == "hard":
            shapes, colours = {o.shape for o in scene.objects}, {o.colour for o in scene.objects}
            assert min(len(shapes), len(colours)) < len(scene.objects)


def test_scenes_use_every_attribute():
    found = sampled("medium")
    objects = [obj for scene in found for obj in scene.objects]
    assert {o.shape for o in objects} == set(SHAPES)
    assert {o.colour for o in objects} == set(COLOURS)
    assert {o.size for o in objects} == set(SIZES)
    assert {o.texture for o in objects} == set(TEXTURES)
    assert {s.background for s in found} == set(BACKGROUNDS)
    assert {s.background_style for s in found} == set(BACKGROUND_STYLES)
    assert len(set(found)) == len(found)


@EACH_DIFFICULTY
def test_objects_stay_inside_and_apart(difficulty):
    for scene in sampled(difficulty):
        for obj in scene.objects:
            assert all(SIZES[obj.size] < c < 1 - SIZES[obj.size] for c in obj.centre)
        for a, b in itertools.combinations(scene.objects, 2):
            gaps = [abs(p - q) - SIZES[a.size] - SIZES[b.size] for p, q in zip(a.centre, b.centre, strict=True)]
            assert max(gaps) > 0


def test_colours_stand_out_from_their_background():
    for scene in sampled("hard"):
        for obj in scene.objects:
            assert obj.colour in visible_colours(scene.background)
    for background, shades in BACKGROUNDS.items():
        assert len(visible_colours(background)) >= 7
        for colour in visible_colours(background):
            assert min(math.dist(COLOURS[colour], shade) for shade in shades) >= 120


def test_relations_are_all_true_and_complete():
    margin = 0.25  # of the image: no relation that needs a ruler
    for scene in sampled("hard"):
        expected = set()
        for (i, a), (j, b) in itertools.permutations(enumerate(scene.objects), 2):
            (ax, ay), (bx, by) = a.centre, b.centre
            truths = {"left of": ax < bx, "right of": ax > bx, "above": ay < by, "below": ay > by}
            far = {"left of": ax - bx, "right of": ax - bx, "above": ay - by, "below": ay - by}
            expected |= {(i, kind, j) for kind, true in truths.items() if true and abs(far[kind]) > margin}
        assert set(scene.relations()) == expected
        assert len(scene.relations()) == len(expected)


@EACH_DIFFICULTY
def test_captions_are_five_and_different(difficulty):
    for index, scene in enumerate(sampled(difficulty)):
        captions = captions_of(scene, index)
        assert len({caption.lower() for caption in captions}) == 5 == scenes.CAPTIONS_PER_IMAGE


@EACH_DIFFICULTY
def test_captions_are_english_sentences(difficulty):
    for index, scene in enumerate(sampled(difficulty)):
        for caption in captions_of(scene, index):
            assert re.fullmatch(r"[A-Z][a-z ,:]*[a-z]\.", caption), caption
            assert "  " not in caption
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", caption.lower()), caption


WORDS = scene_captions.WORDS
CANONICAL = {word: key for key in (*SIZES, *TEXTURES, *SHAPES) for word in WORDS.get(key, (key,)) if word}
OBJECT = re.compile(
    rf"\ban? ((?:(?:{'|'.join(word for word in CANONICAL if CANONICAL[word] not in SHAPES)}) )*)"
    rf"({'|'.join(COLOURS)}) ({'|'.join(word for word in CANONICAL if CANONICAL[word] in SHAPES)})\b"
)


def mentioned(caption: str) -> list[tuple[str, ...]]:
    """The objects that a caption names, each as (size, texture, colour, shape), with "" for what is left open."""
    found = []
    for words, colour, shape in OBJECT.findall(caption.lower()):
        keys = [CANONICAL[word] for word in words.split()]
        size = next((key for key in keys if key in SIZES), "")
        texture = next((key for key in keys if key in TEXTURES), "")
        found.append((size, texture, colour, CANONICAL[shape]))
    return found


def fits(said: tuple[str, ...], obj: SceneObject) -> bool:
    truth = (obj.size, obj.texture, obj.colour, obj.shape)
    return all(word in ("", true) for word, true in zip(said, truth, strict=True))


@EACH_DIFFICULTY
def test_captions_name_objects_that_are_there(difficulty):
    complete = 0
    for index, scene in enumerate(sampled(difficulty)):
        for caption in captions_of(scene, index):
            said = mentioned(caption)
            assert all(any(fits(one, obj) for obj in scene.objects) for one in said), (caption, scene)
            complete += len(said) == len(scene.objects)
            words = set(re.findall("[a-z]+", caption.lower()))
            there = {o.colour for o in scene.objects} | set(scene.background.split())
            assert words & set(COLOURS) <= there, (caption, scene)
    assert complete > 2 * 150  # and the pattern above does find them


def test_captions_relate_objects_truly():
    kinds = {words: kind for kind in ("left of", "right of", "above", "below") for words in WORDS[kind]}
    sentence = re.compile(rf"(.*) (?:is|sits|lies) ({'|'.join(sorted(kinds, key=len, reverse=True))}) (.*)\.")
    seen = set()
    for index, scene in enumerate(sampled("hard")):
        (match,) = [m for caption in captions_of(scene, index) if (m := sentence.fullmatch(caption))]
        subject, other = (mentioned(part)[0] for part in match.group(1, 3))
        kind = kinds[match[2]]
        seen.add(kind)
        assert any(
            kind == true and fits(subject, scene.objects[i]) and fits(other, scene.objects[j])
            for i, true, j in scene.relations()
        ), (match[0], scene)
    assert len(seen) == 4


def test_captions_count_truly():
    numbers = ("zero", "one", "two", "three", "four")
    counts, tallies = 0, 0
    for index, scene in enumerate(sampled("hard")):
        for caption in captions_of(scene, index):
            if match := re.match(r"(\w+) (?:shape|object|figure)s(:|, namely)", caption):
                counts += 1
                assert match[1].lower() == numbers[len(scene.objects)]
            elif re.match("In this picture|The scene has|The drawing consists", caption):
                tallies += 1
                assert sum(map(numbers.index, re.findall("|".join(numbers), caption))) == len(scene.objects)
    assert counts > 20 and tallies > 20


def test_swapped_colours_keep_the_wording():
    a = SceneObject("star", "red", "small", "plain", 0, 0)
    b = SceneObject("circle", "blue", "large", "dotted", 2, 1)
    scene = Scene("white", "plain", (a, b))
    foil = replace(scene, objects=(replace(a, colour="blue"), replace(b, colour="red")))
    swap = {"red": "blue", "blue": "red"}
    for seed in range(20):
        pairs = zip(describe(scene, random.Random(seed)), describe(foil, random.Random(seed)), strict=True)
        for true, false in pairs:
            assert false == " ".join(swap.get(word, word) for word in true.split(" "))
    assert render(scene).tobytes() != render(foil).tobytes()


@pytest.mark.parametrize("image_size", [16, 64, 100])
def test_render_shows_every_object(image_size):
    for scene in sampled("hard", 20):
        image = render(scene, image_size)
        assert image.mode == "RGB" and image.size == (image_size, image_size)
        empty = np.asarray(render(replace(scene, objects=()), image_size)).astype(int)
        changed = np.abs(np.asarray(image).astype(int) - empty).sum(-1) > 60
        for obj in scene.objects:
            x, y, radius = (round(value * image_size) for value in (*obj.centre, SIZES[obj.size]))
            inside = changed[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            assert inside.mean() > 0.1, (obj, scene)
        assert changed.mean() < 0.5


def test_render_shows_the_colour():
    for colour, texture in itertools.product(COLOURS, TEXTURES):
        background = "navy blue" if colour in visible_colours("navy blue") else "white"
        scene = Scene(background, "plain", (SceneObject("square", colour, "large", texture, 1, 1),))
        pixels = np.asarray(render(scene, 64)).reshape(-1, 3)
        assert (np.abs(pixels - np.array(COLOURS[colour])).max(-1) <= 2).any()


def test_render_tells_all_shapes_and_textures_apart():
    pictures = {
        render(Scene("white", "plain", (SceneObject(shape, "black", size, texture, 1, 1),))).tobytes()
        for shape, size, texture in itertools.product(SHAPES, SIZES, TEXTURES)
    }
    assert len(pictures) == len(SHAPES) * len(SIZES) * len(TEXTURES)
    assert tuple(CONTOURS) == SHAPES


def test_load_has_the_columns_of_the_schema(tmp_path):
    dataset = load_scenes(**SMALL, cache_dir=tmp_path)
    assert {name: len(part) for name, part in dataset.items()} == {"train": 6, "validation": 4, "test": 4}
    for part in dataset.values():
        assert part.features == {
            "image": Image(),
            "image_id": Value("int64"),
            "captions": List(Value("string")),
            "caption_ids": List(Value("int64")),
        }
    image_ids = [n for part in dataset.values() for n in part["image_id"]]
    caption_ids = [n for part in dataset.values() for ids in part["caption_ids"] for n in ids]
    assert len(set(image_ids)) == 14
    assert len(set(caption_ids)) == 70
    row = dataset["test"][2]
    scene = sample_scene(0, 2, "medium", "test")
    assert row["captions"] == captions_of(scene, 2)
    assert np.array_equal(row["image"], render(scene, 16))


def test_load_gives_the_same_rows_however_many(tmp_path):
    few = load_scenes(**SMALL, cache_dir=tmp_path)
    many = load_scenes(num_train=9, num_eval=5, image_size=16, cache_dir=tmp_path)
    for split in few:
        assert few[split][:] == many[split][: len(few[split])]


def test_load_reads_the_cache_until_something_changes(tmp_path, monkeypatch):
    first = load_scenes(**SMALL, cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "render", None)
        second = load_scenes(**SMALL, cache_dir=tmp_path)
    assert first["train"][:] == second["train"][:]
    assert first["train"].cache_files == second["train"].cache_files
    changes = [{"seed": 1}, {"difficulty": "hard"}, {"image_size": 20}, {"num_train": 7}]
    others = [load_scenes(**(SMALL | change), cache_dir=tmp_path) for change in changes]
    monkeypatch.setattr(scenes, "SCENES_VERSION", 999)
    others.append(load_scenes(**SMALL, cache_dir=tmp_path))
    files = {other["train"].cache_files[0]["filename"] for other in [first, *others]}
    assert len(files) == len(changes) + 2


def print_last(folder: Path) -> None:
    print(load_scenes(num_train=200, num_eval=3, image_size=16, cache_dir=folder)["train"][199])


def test_load_may_be_called_by_two_processes_at_once(tmp_path):
    logs = [tmp_path / "one.log", tmp_path / "other.log"]
    both = [start_fork(log, print_last, tmp_path / "scenes") for log in logs]
    for process in both:
        process.join()
    said = [log.read_text() for log in logs]
    assert [process.exitcode for process in both] == [0, 0], said
    assert "'image_id': 597" in said[0] and "'image_id': 597" in said[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train": 0}, "num_train=0 is too small: give at least 1"),
        ({"num_eval": -1}, "num_eval=-1 is too small: give at least 1"),
        ({"image_size": 15}, "image_size=15 is too small: give at least 16"),
        ({"difficulty": "herd"}, "difficulty='herd' is unknown: use one of easy, medium, hard"),
    ],
)
def test_load_refuses_what_makes_no_sense(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_scenes(**options, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_sample_refuses_unknown_names():
    with pytest.raises(ValueError, match="difficulty='tough' is unknown: use one of easy, medium, hard"):
        sample_scene(0, 0, "tough")
    with pytest.raises(ValueError, match="split='val' is unknown: use one of train, validation, test"):
        sample_scene(0, 0, "easy", "val")
