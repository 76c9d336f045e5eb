"""Protocols: which metrics a data set gets, under titles that keep numbers apart that cannot be compared.

The field's R@K is a hit rate on a split of fixed size (Karpathy & Fei-Fei, arXiv 1412.2306): 1,000 images of
Flickr30K, 5,000 of COCO or the mean over five folds of 1,000. Tables that look the same may count otherwise: true
recall, one caption per image, the captions of an image averaged, more positives (CxC, ECCV Caption). Each is given
beside the hit rate with a title and a sentence of explanation. Only the split itself gets its official title, which
its captions or ids tell, see `data/official.py`: neither one of another size nor other images of the same number.
"""

import logging
from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vse.data.karpathy import CAPTIONS_PER_IMAGE, OFFICIAL_IMAGES
from hf_vse.data.official import OFFICIAL_DIGESTS
from hf_vse.evaluation.extended import extended_metrics, extended_positives
from hf_vse.evaluation.metrics import fold_metrics, retrieval_metrics, summarize_ranks
from hf_vse.evaluation.positions import standard_positives
from hf_vse.evaluation.ranking import retrieval_ranking
from hf_vse.evaluation.ranks import ROWS_AT_ONCE, Array, as_matrix, as_tensor, retrieval_ranks

logger = logging.getLogger(__name__)

DISPLAY_NAMES = {"coco": "COCO", "flickr30k": "Flickr30K", "flickr8k": "Flickr8k"}
NOT_CHECKED = "as many as official, not checked to be these"
FOLD_SIZE = 1000
# Of the COCO ids of the Karpathy test split, in the order in which its consecutive thousands are the published folds.
COCO_TEST_ORDER = "203ac417d83f9dae"

# What is added to the title of the split, and the sentence that says what the numbers are.
PROTOCOLS: dict[str, tuple[str, str]] = {
    "hit_rate": (
        "hit rate",
        "A query counts if any of its positives is among the first K: the R@K that the field reports, which is "
        "not the share of an image's captions that were found.",
    ),
    "ranking": (
        "hit rate and true recall",
        "Hit rate beside true recall (the share of a query's positives among the first K), mAP@R, R-precision, nDCG "
        "and MRR: only the hit rate may be compared with tables of R@K.",
    ),
    "folds_1k": (
        "1K folds",
        "Mean hit rate over five folds of 1,000 images, easier than the whole 5,000 and not comparable with it",
    ),
    "first_caption": (
        "one caption per image",
        "Only the first caption of each image takes part, as query and as candidate: one caption per image, not "
        "comparable with numbers on all captions.",
    ),
    "mean_caption": (
        "captions of an image averaged",
        "The captions of an image are averaged into one text, which says more than any of them: not comparable with "
        "R@K of single captions.",
    ),
    "cxc": (
        "CxC",
        "Crisscrossed Captions (arXiv 2004.15020), which adds the pairs that raters found equivalent and asks 24,972 "
        "captions: its R@K are hit_r1, hit_r5 and hit_r10, not comparable with those of COCO.",
    ),
    "eccv": (
        "ECCV Caption",
        "ECCV Caption (arXiv 2204.03359), verified positives of 1,261 images and 1,332 captions, ranked among all: "
        "its measures are map_at_r, r_precision and hit_r1, not comparable with R@K of COCO.",
    ),
}


def official_split(source: str, split: str) -> tuple[int, int] | None:
    """Images and captions of a split as the field uses it (COCO train with restval), or None where it knows none."""
    images = OFFICIAL_IMAGES.get(source, {}).get(split)
    return None if images is None else (images, images * CAPTIONS_PER_IMAGE)


def split_title(
    source: str, split: str, images: int, captions: int, broken: int = 0, digests: Collection[str] | None = None
) -> tuple[str, bool | None]:
    """The title of results on a split, and whether it is an official split.

    Args:
        source: the data set, "coco", "flickr30k", "flickr8k" or any other; split: "train", "validation" or "test".
        images: those that were evaluated; captions: theirs; broken: images left out because they cannot be read.
        digests: what `split_digests` says of them; None where neither captions nor ids are known.

    Returns:
        "Flickr30K test 1K" and True where a digest is the official one; "flickr8k test, 1,000 images, 5,000 captions
        (as many as official, not checked to be these)" and None where the sizes are and no digest is known to compare
        with; otherwise a title that says the sizes, such as "flickr30k test, 500 images (official: 1,000)", and False.
    """
    official, known = official_split(source, split), OFFICIAL_DIGESTS.get((source, split))
    if (images, captions) == official and not broken:
        if known is None or digests is None:
            return f"{source} {split}, {images:,} images, {captions:,} captions ({NOT_CHECKED})", None
        if known.isdisjoint(digests):
            return f"{source} {split}, {images:,} images, {captions:,} captions (not the official ones)", False
        size = f"{images // 1000}K" if images % 1000 == 0 else f"{images:,}"
        return f"{DISPLAY_NAMES[source]} {split} {size}", True
    title = ", ".join(filter(None, (f"{source} {split}".strip(), f"{images:,} images")))
    if official is None or images == official[0]:
        title += f", {captions:,} captions"
    if broken:
        title += f", {broken:,} unreadable left out"
    if official is None:
        return title, False
    expected = f"{official[0]:,} and {official[1]:,}" if images == official[0] else f"{official[0]:,}"
    return f"{title} (official: {expected})", False


def first_captions(text_embeds: Tensor, text_to_image: Tensor, images: int) -> Tensor:
    """The embedding of the first caption of each image, (images, dim)."""
    rows = torch.full((images,), len(text_to_image))
    return text_embeds[rows.scatter_reduce(0, text_to_image, torch.arange(len(text_to_image)), "amin")]


def mean_captions(text_embeds: Tensor, text_to_image: Tensor, images: int) -> Tensor:
    """The mean embedding of the captions of each image, scaled to unit length again, (images, dim) float64."""
    sums = torch.zeros((images, text_embeds.shape[1]), dtype=torch.float64)
    for owner, embeds in zip(text_to_image.split(ROWS_AT_ONCE), text_embeds.split(ROWS_AT_ONCE), strict=True):
        sums.index_add_(0, owner, embeds.double())
    return normalize(sums, dim=1)


def fold_order(image_ids: Sequence[int] | None) -> str:
    """A sentence on the folds: the published ones follow the order of the Karpathy file."""
    ids = [] if image_ids is None else image_ids
    if sha256(" ".join(str(int(each)) for each in ids).encode()).hexdigest()[:16] == COCO_TEST_ORDER:
        return "the folds are the published ones."
    return "the folds follow the order of this data set, which need not be that of the published ones."


def extended_results(
    embeds: tuple[Tensor, Tensor], ids: tuple[Sequence[int], Sequence[int]]
) -> dict[str, dict[str, float | int]]:
    """CxC and ECCV Caption; empty, with a warning that names the reason, without their package or the original ids."""
    try:
        extended_positives("coco", *ids)
    except (ImportError, ValueError) as reason:
        logger.warning("no CxC and no ECCV Caption: %s", reason)
        return {}
    return extended_metrics(*embeds, *ids)


def protocol_results(
    image_embeds: Array,
    text_embeds: Array,
    text_to_image: Array,
    *,
    source: str,
    split: str,
    image_ids: Sequence[int] | None = None,
    caption_ids: Sequence[int] | None = None,
    broken: int = 0,
    digests: Collection[str] | None = None,
    extended: bool = True,
    ranks: tuple[Tensor, Tensor] | None = None,
) -> dict[str, dict[str, Any]]:
    """The metrics of a split under every protocol that applies to it, most important first.

    Args:
        image_embeds: (images, dim); text_embeds: (texts, dim); text_to_image: (texts,); see `retrieval_metrics`.
        source, split, broken, digests: see `split_title`.
        image_ids: (images,); caption_ids: (texts,); the data set's own ids in the order of the embeddings.
        extended: also CxC and ECCV Caption, where the split is COCO's test split with its ids.
        ranks: of `retrieval_ranks`, where they are known already.

    Returns:
        For each name `title`, `note` (a sentence) and `metrics`: `hit_rate` (see `retrieval_metrics`), `ranking` (see
        `retrieval_ranking`), `folds_1k` (5,000 images of COCO), `first_caption` and `mean_caption` (where images have
        several captions; like the hit rate), `cxc` and `eccv` (see `extended_metrics`).

    Raises:
        ValueError: shapes that do not fit, an image without text, or embeddings that are not finite.
    """
    images, texts = as_matrix("image_embeds", image_embeds), as_matrix("text_embeds", text_embeds)
    owner, count = as_tensor(text_to_image).long(), len(images)
    metrics: dict[str, dict[str, float | int]] = {
        "hit_rate": summarize_ranks(*(ranks or retrieval_ranks(images, texts, owner)))
    }
    metrics["ranking"] = retrieval_ranking(images, texts, *standard_positives(owner, count))
    if source == "coco" and count == 5 * FOLD_SIZE:
        metrics["folds_1k"] = fold_metrics(images, texts, owner, FOLD_SIZE)
    one_to_one = count == len(texts)  # every image has a text, or retrieval_metrics had refused
    if not one_to_one:
        each = torch.arange(count)
        metrics["first_caption"] = retrieval_metrics(images, first_captions(texts, owner, count), each)
        metrics["mean_caption"] = retrieval_metrics(images, mean_captions(texts, owner, count), each)
    if extended and (source, split) == ("coco", "test") and image_ids is not None and caption_ids is not None:
        metrics |= extended_results((images, texts), (image_ids, caption_ids))
    title = split_title(source, split, count, len(texts), broken, digests)[0]
    title += ", one-to-one pairs" if one_to_one else ""
    results: dict[str, dict[str, Any]] = {}
    for name, found in metrics.items():
        subtitle, note = PROTOCOLS[name]
        if name == "folds_1k":
            note = f"{note}; {fold_order(image_ids)}"
        results[name] = {"title": f"{title}, {subtitle}", "note": note, "metrics": found}
    return results
