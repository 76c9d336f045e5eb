"""Checks, before the work, what is asked of a model besides recalls: a typo must not cost an evaluation."""

from collections.abc import Sequence
from typing import cast, get_args

from hf_vse.evaluation.composition.choice import OWN_FOILS
from hf_vse.evaluation.composition.published import PublishedName, load_foils
from hf_vse.evaluation.zero_shot import check_templates, load_labelled


def check_foils_asked(foils: str | None, foils_dir: str | None, foils_images: str | None) -> None:
    """Raises OSError or ValueError if foils cannot be read, or an option has no effect."""
    published = get_args(PublishedName)
    if foils is not None and foils not in (*OWN_FOILS, *published):
        raise ValueError(f"foils={foils!r} are not known; choose one of {', '.join((*OWN_FOILS, *published))}")
    for name, folder in (("foils_dir", foils_dir), ("foils_images", foils_images)):
        if folder is not None and foils not in published:
            raise ValueError(
                f"{name}={folder!r} has no effect without published foils: add --foils ({', '.join(published)})"
            )
    if foils in published:
        if foils_dir is None:
            raise ValueError(f"foils={foils!r} needs foils_dir, the folder with its files")
        load_foils(cast(PublishedName, foils), foils_dir, foils_images)


def check_classes_asked(labelled: str | None, label_column: str | None, templates: Sequence[str] | None) -> None:
    """The same for zero-shot classification."""
    for name, value in (("label_column", label_column), ("templates", templates)):
        if value is not None and labelled is None:
            raise ValueError(f"{name} has no effect without images whose classes are known: add --labelled")
    if templates is not None:
        check_templates(templates)
    if labelled is not None:
        load_labelled(labelled, label_column=label_column)
