"""Two catalogues of generated scenes with known links, duplicates and strangers, for record linkage.

An entity is a group of objects, each with its shape, colour and texture. A record is a view of it: the same objects
drawn anew in other sizes and places before another background, and described in other words.

FOLDER/a/metadata.jsonl, FOLDER/a/0000.png, ...    one catalogue; `entity` tells what a record shows
FOLDER/b/                                          the other
FOLDER/pairs.csv                                   links: columns a and b, one empty where a record has no match
FOLDER/duplicates.csv                              records of `a` that show the same; a single one has an empty b
FOLDER/train/                                      views of further entities, of which neither a nor b shows any
"""

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hf_vse.data.scene_captions import describe
from hf_vse.data.scene_pictures import render
from hf_vse.data.scene_truth import (
    BACKGROUND_STYLES,
    BACKGROUNDS,
    CELLS,
    SIZES,
    Difficulty,
    Scene,
    choose,
    random_stream,
    sample,
    sample_scene,
    visible_colours,
)
from hf_vse.files import check_output_folder, write_table

TRIES = 100  # scenes for each entity, until one shows other objects than all before


def distinct_scenes(seed: int, difficulty: Difficulty) -> Iterator[Scene]:
    """Scenes of which no two show the same objects.

    Raises:
        ValueError: there are not enough.
    """
    seen: set[frozenset] = set()
    index = 0
    while index < TRIES * (len(seen) + 1):
        scene = sample_scene(seed, index, difficulty, "test")
        index += 1
        entity = frozenset((each.shape, each.colour, each.texture) for each in scene.objects)
        if entity not in seen:
            seen.add(entity)
            yield scene
    raise ValueError(f"there are not more than {len(seen):,} entities of difficulty {difficulty!r}: make fewer")


def another_view(scene: Scene, rng: random.Random) -> Scene:
    """The same objects in other sizes and places, before another background."""
    colours = {each.colour for each in scene.objects}
    backgrounds = [name for name in BACKGROUNDS if colours <= set(visible_colours(name))]
    cells = sample(rng, range(CELLS**2), len(scene.objects))
    objects = []
    for each, cell in zip(scene.objects, cells, strict=True):
        row, column = divmod(cell, CELLS)
        objects.append(replace(each, size=choose(rng, list(SIZES)), row=row, column=column))
    return Scene(choose(rng, backgrounds), choose(rng, BACKGROUND_STYLES), tuple(objects))


def write_catalogues(
    folder: str | Path,
    links: int = 200,
    *,
    strangers: int | None = None,
    duplicates: int | None = None,
    captions: int = 2,
    seed: int = 0,
    difficulty: Difficulty = "medium",
    image_size: int = 64,
    training: int = 0,
    views: int = 4,
) -> dict[str, Any]:
    """Writes the two catalogues, whole or not at all.

    Args:
        folder: new, or empty.
        links: entities that both catalogues show, each with one record.
        strangers: entities that only one of them shows; default: a quarter of `links` in each.
        duplicates: strangers of `a` with a second record there; default: half of the strangers.
        captions: sentences of a record.
        training: further entities, to train on; 0 writes none.
        views: records of each of these.

    Returns:
        Where the parts are, and how many records each catalogue has.

    Raises:
        OSError: the folder holds something.
        ValueError: more duplicates than strangers, or there are not so many entities.
    """
    folder = check_output_folder("folder", folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"folder {folder} holds something: give a new one")
    strangers = links // 4 if strangers is None else strangers
    duplicates = strangers // 2 if duplicates is None else duplicates
    if duplicates > strangers:
        raise ValueError(f"duplicates={duplicates} are of the {strangers} strangers of a: give no more")
    scenes = distinct_scenes(seed, difficulty)
    entities = [next(scenes) for _ in range(links + 2 * strangers + training)]
    first = [*range(links + strangers), *range(links, links + duplicates)]
    second = [*range(links), *range(links + strangers, links + 2 * strangers)]
    further = [*range(links + 2 * strangers, len(entities))] * views
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix=f".{folder.name[:80]}.", dir=folder.parent))
    try:
        names = []
        for catalogue, shown in (("a", first), ("b", second), ("train", further))[: 3 if training else 2]:
            rng = random_stream(seed, catalogue, 0, "catalogue")
            scenes_shown = [(entity, entities[entity]) for entity in sample(rng, shown, len(shown))]
            names.append(write_views(unfinished / catalogue, scenes_shown, rng, captions, image_size))
        write_truth(unfinished, *names[:2])
        unfinished.chmod(0o755)
        unfinished.replace(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    parts: dict[str, Any] = {
        name: str(folder / file) for name, file in (("a", "a"), ("b", "b"), ("pairs", "pairs.csv"))
    }
    parts |= {"duplicates": str(folder / "duplicates.csv"), "records": [len(first), len(second)]}
    return parts | ({"train": str(folder / "train"), "training_records": len(further)} if training else {})


def write_views(
    folder: Path, shown: list[tuple[int, Scene]], rng: random.Random, captions: int, image_size: int
) -> dict[str, int]:
    """Writes a catalogue; returns the entity of each file."""
    folder.mkdir()
    entities = {}
    with (folder / "metadata.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for number, (entity, scene) in enumerate(shown):
            view, name = another_view(scene, rng), f"{number:05d}.png"
            render(view, image_size).save(folder / name)
            line = {"file_name": name, "captions": describe(view, rng)[:captions], "objects": len(view.objects)}
            file.write(json.dumps(line | {"entity": f"e{entity:05d}"}) + "\n")
            entities[name] = entity
    return entities


def write_truth(folder: Path, first: dict[str, int], second: dict[str, int]) -> None:
    """Writes `pairs.csv` and `duplicates.csv`."""
    in_second = {entity: name for name, entity in second.items()}
    in_first: dict[int, list[str]] = {}
    for name, entity in first.items():
        in_first.setdefault(entity, []).append(name)
    pairs = [(name, in_second.get(entity, "")) for name, entity in first.items()]
    pairs += [("", name) for name, entity in second.items() if entity not in in_first]
    duplicates = [(names[0], other) for names in in_first.values() for other in names[1:] or [""]]
    for file_name, lines in (("pairs.csv", pairs), ("duplicates.csv", duplicates)):
        write_table(folder / file_name, ("a", "b"), lines)
