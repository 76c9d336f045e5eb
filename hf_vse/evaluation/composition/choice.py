"""Chooses the foils for a data set: exact ones of scenes, by rules from captions, or published ones."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_texts
from hf_vse.evaluation.composition.caption_foils import caption_foils
from hf_vse.evaluation.composition.probe import (
    Foil,
    composition_probe,
    composition_scores,
    distinct_sentences,
    winoground_probe,
)
from hf_vse.evaluation.composition.published import PublishedName, load_foils
from hf_vse.evaluation.composition.scene_foils import scene_foils
from hf_vse.evaluation.evaluator import PairEmbeddings

OWN_FOILS = ("auto", "scenes", "captions")
NOTES = {
    "scenes": "The foils are exact: the truth about a generated scene is known, and every foil contradicts it, but "
    "for word order, which is a sentence without meaning.",
    "captions": "The foils are made by rules from the captions, without a parser: some are true of the image by "
    "chance, or no good English, so that 100 is out of reach.",
}
PER_KIND = 500


def own_kind(asked: str, source: str) -> str:
    """`auto` means exact foils where the truth is known."""
    return asked if asked != "auto" else "scenes" if source == "scenes" else "captions"


def own_foils(kind: str, captions: Sequence[Sequence[str]], split: str, settings: Mapping[str, Any]) -> list[Foil]:
    """Foils of a data set's own images, whose rows `Foil.image` names.

    Raises:
        ValueError: `scenes` are asked for and the captions are not those of the scenes.
    """
    if kind == "captions":
        return caption_foils(captions, per_kind=PER_KIND)
    difficulty, seed = settings.get("difficulty", "medium"), settings.get("seed", 0)
    foils = scene_foils(len(captions), seed, difficulty, split)
    if any(foil.true_caption not in captions[foil.image] for foil in foils):
        raise ValueError("foils='scenes' is for the built-in scenes, whose truth is known: take 'captions' instead")
    return foils


def ask_own(
    encoder: Encoder,
    kind: str,
    pairs: PairEmbeddings,
    captions: Sequence[Sequence[str]],
    split: str,
    settings: Mapping[str, Any],
    **encoding: Any,
) -> dict[str, Any]:
    """`composition_scores` of foils made from a split, whose images are encoded already, with a `note`.

    Args:
        captions: of every row of the data set, broken images too.
    """
    place = {row: number for number, row in enumerate(pairs.image_rows.tolist())}
    foils = own_foils(kind, captions, split, settings)
    kept = [foil._replace(image=place[foil.image]) for foil in foils if foil.image in place]
    texts = distinct_sentences(kept)
    scores = composition_scores(kept, pairs.image_embeds, encode_texts(encoder, texts, **encoding), texts)
    return with_source(kind, NOTES[kind], scores)


def ask_published(
    encoder: Encoder, name: str, directory: str, image_dir: str | None, **encoding: Any
) -> dict[str, Any]:
    """`composition_scores` of published foils, with a `note`."""
    foils, images = load_foils(cast(PublishedName, name), directory, image_dir)
    found = composition_probe(encoder, foils, images, **encoding)
    if name == "winoground":
        found["winoground"] = winoground_probe(encoder, foils, images, **encoding)
    return with_source(name, f"The foils are those of {name}, {len(foils):,} items.", found)


def with_source(source: str, note: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Scores with the source of the foils, their kinds in alphabetical order."""
    return {"source": source, "note": note} | scores | {"kinds": dict(sorted(scores["kinds"].items()))}
