"""More positives than the five captions: CxC and ECCV Caption, human judgements on the 5,000 images of COCO test.

COCO knows five captions of an image and calls every other wrong, though many describe it as well. Crisscrossed
Captions (Parekh et al., EACL 2021, arXiv 2004.15020) adds the pairs that raters found equivalent, and asks 24,972 of
the 25,000 captions. ECCV Caption (Chun et al., ECCV 2022, arXiv 2204.03359) had the best candidates of five models
verified for 1,261 images and 1,332 captions; its measures are mAP@R, R-precision and R@1 (`map_at_r`, `r_precision`,
`hit_r1`).

Both come with the package `eccv-caption` as JSON, of which nothing is imported. Every ranking is over all 25,000
captions or all 5,000 images. Numbers equal those of that package for rankings without ties. Plausible matches (PMRP,
arXiv 2101.05068) are a separate download and are not included.
"""

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from hf_vse.evaluation.positions import Positives, sorted_positives
from hf_vse.evaluation.ranking import retrieval_ranking
from hf_vse.evaluation.ranks import Array

Annotations = Literal["coco", "cxc", "eccv"]
# The start of the file names in the package.
FILES: dict[str, str] = {"coco": "original", "cxc": "cxc", "eccv": "eccv"}


def annotation_folder() -> Path:
    """Where the package keeps its annotations; it is looked up, not imported.

    Raises:
        ImportError: the package is not installed.
    """
    spec = find_spec("eccv_caption")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("the annotations of CxC and ECCV Caption need a package: pip install eccv-caption")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_annotations(name: Annotations, direction: Literal["image_to_caption", "caption_to_image"]) -> np.ndarray:
    """Pairs of a query's id and the id of one of its positives, (pairs, 2) int64."""
    path = annotation_folder() / f"{FILES[name]}_{direction}.json"
    try:
        annotated = json.loads(path.read_text(encoding="utf-8"))
        return np.array([(int(query), int(own)) for query, every in annotated.items() for own in every], np.int64)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise OSError(f"{path.name} of eccv-caption cannot be read ({error!r}); reinstall eccv-caption") from error


def rows_by_id(name: str, ids: Sequence[int], official: Iterable[int]) -> dict[int, int]:
    """The row of each id; a ValueError unless `ids` are the official ones, each once, in any order."""
    rows = {int(each): row for row, each in enumerate(ids)}
    wanted = set(official)
    missing, other = len(wanted - rows.keys()), len(rows.keys() - wanted)
    if missing or other or len(rows) < len(ids):
        raise ValueError(
            f"{name} lack {missing:,} of the {len(wanted):,} ids of COCO's Karpathy test split, hold {other:,} others "
            f"and {len(ids) - len(rows):,} twice; CxC and ECCV Caption need that whole split with its original ids"
        )
    return rows


def mapped(pairs: np.ndarray, queries: dict[int, int], candidates: dict[int, int]) -> Positives:
    """Positives as rows; a candidate outside the split gets a negative number, which counts as never found."""
    candidate = [candidates.get(own, -1 - place) for place, own in enumerate(pairs[:, 1].tolist())]
    query = [queries[asked] for asked in pairs[:, 0].tolist()]
    return sorted_positives(torch.tensor(query), torch.tensor(candidate))


def extended_positives(
    name: Annotations, image_ids: Sequence[int], caption_ids: Sequence[int]
) -> tuple[Positives, Positives]:
    """Image-to-text and text-to-image positives as rows of COCO's Karpathy test split.

    Args:
        name: "cxc", "eccv", or "coco" for the original five captions of an image.
        image_ids: (images,) COCO's id of each image (`cocoid`), in the order of its embeddings.
        caption_ids: (texts,) COCO's annotation id of each caption (`sentids`), in the order of its embeddings.

    Returns:
        The positives of images and of captions, in ECCV Caption annotated apart: neither is the other turned round. It
        names two captions that are not among the 25,000; they count as never found, as they do in eccv-caption.

    Raises:
        ImportError: the package eccv-caption is not installed.
        ValueError: the ids are not those of the whole split.
    """
    if name not in FILES:
        raise ValueError(f"name={name!r} is not a set of annotations; choose one of {', '.join(FILES)}")
    original = read_annotations("coco", "caption_to_image")
    images = rows_by_id("image_ids", image_ids, original[:, 1].tolist())
    captions = rows_by_id("caption_ids", caption_ids, original[:, 0].tolist())
    return (
        mapped(read_annotations(name, "image_to_caption"), images, captions),
        mapped(read_annotations(name, "caption_to_image"), captions, images),
    )


def extended_metrics(
    image_embeds: Array, text_embeds: Array, image_ids: Sequence[int], caption_ids: Sequence[int]
) -> dict[str, dict[str, float | int]]:
    """`retrieval_ranking` by the annotations of CxC and of ECCV Caption, as "cxc" and "eccv".

    Args and errors: see `extended_positives` and `retrieval_ranking`.
    """
    found: dict[str, dict[str, float | int]] = {}
    for name in ("cxc", "eccv"):
        positives = extended_positives(name, image_ids, caption_ids)
        found[name] = retrieval_ranking(image_embeds, text_embeds, *positives)
    return found
