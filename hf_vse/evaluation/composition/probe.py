"""Does a model understand a sentence, or match its bag of words? True captions against foils.

A foil is a sentence made of the same or nearly the same words that is false of the image: two attributes exchanged, a
relation reversed, one word replaced. A dual encoder passes an item if the image scores its true caption higher than
every foil. The sentences come from `scene_foils.py` (exact), `caption_foils.py` (by rules) or `published.py`.

Three numbers keep the accuracy honest. Chance is stated. `blind_accuracy` is that of the same model when it is shown
the mean of all images in place of each: what it reaches, the sentences alone give away (Hsieh et al. found that many
published foils can be told without looking). `undecided` is the share of items whose scores differ by no more than
rounding: for swaps, a model without word order has them all there, whatever its accuracy.

Yuksekgonul et al., "When and why vision-language models behave like bags-of-words" (ICLR 2023, arXiv 2210.01936);
Hsieh et al., "SugarCrepe" (NeurIPS 2023, arXiv 2306.14610); Thrush et al., "Winoground" (CVPR 2022, arXiv 2204.03162).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Subset

from hf_vse.data.pairs import undecoded_images
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.evaluation.ranks import TIE_TOLERANCE, Array, as_matrix, as_tensor, finite_norms, pair_scores

# Similarities of float32 unit vectors that differ by less may owe it to rounding.
ROUNDING = 2e-6
NORMAL_95 = 1.959963984540054  # quantile of the normal distribution that leaves 2.5 % above

Images: TypeAlias = Dataset | Sequence[Mapping[str, Any]]


class Foil(NamedTuple):
    """An item of the probe: a row of the images, its true caption, and false ones."""

    image: int
    true_caption: str
    false_captions: tuple[str, ...]
    kind: str


class FoilScores(NamedTuple):
    """Similarities of one item in float64: of the caption, of each foil, and the same with the mean image."""

    true: float
    false: tuple[float, ...]
    blind_true: float
    blind_false: tuple[float, ...]

    @property
    def margin(self) -> float:
        return self.true - max(self.false)

    @property
    def blind_margin(self) -> float:
        return self.blind_true - max(self.blind_false)


def wilson_interval(successes: int, trials: int) -> list[float]:
    """95 % interval of a proportion in percent, [low, high] (Wilson, 1927, "Probable inference", JASA 22).

    It takes the trials as independent: with many items of one image the truth is wider.
    """
    share, z2 = successes / trials, NORMAL_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return [100 * max(0.0, min(centre - half, share)), 100 * min(1.0, max(centre + half, share))]


def distinct_sentences(foils: Sequence[Foil]) -> list[str]:
    """Every sentence of the foils once, in the order of its first appearance."""
    return list(dict.fromkeys(text for foil in foils for text in (foil.true_caption, *foil.false_captions)))


def check_foils(foils: Sequence[Foil], num_images: int) -> None:
    if not foils:
        raise ValueError("foils is empty; there is nothing to probe")
    for number, foil in enumerate(foils):
        if not 0 <= foil.image < num_images:
            raise ValueError(f"foil {number} belongs to image {foil.image}, but there are {num_images} images")
        if not foil.false_captions or foil.true_caption in foil.false_captions:
            raise ValueError(f"foil {number} needs false captions that differ from {foil.true_caption!r}")


def foil_scores(
    foils: Sequence[Foil], image_embeds: Array, text_embeds: Array, texts: Sequence[str]
) -> list[FoilScores | None]:
    """Similarities of every item, computed in float64 pair by pair; None where the image could not be read.

    Args:
        image_embeds: (images, dim) unit vectors; a row of infinities stands for an image that cannot be read.
        text_embeds: (texts, dim) unit vectors of `texts`, which holds every sentence of the foils.
    """
    images, captions = as_matrix("image_embeds", image_embeds), as_matrix("text_embeds", text_embeds)
    check_foils(foils, len(images))
    readable = ~images.isinf().all(dim=1)
    kept = [foil for foil in foils if readable[foil.image]]
    if not kept:
        raise ValueError(f"none of the images of the {len(foils)} foils can be read; check the image directory")
    if len(captions) != len(texts) or captions.shape[1] != images.shape[1]:
        shapes = f"{tuple(captions.shape)} and {tuple(images.shape)}"
        raise ValueError(
            f"text_embeds and image_embeds of shapes {shapes} do not fit each other or {len(texts)} texts"
        )
    place = {text: row for row, text in enumerate(texts)}
    if missing := next((text for text in distinct_sentences(foils) if text not in place), None):
        raise ValueError(f"texts lacks the sentence {missing!r}; encode distinct_sentences(foils)")
    sentences = torch.tensor([place[text] for foil in kept for text in (foil.true_caption, *foil.false_captions)])
    rows = torch.tensor([foil.image for foil in kept for _ in range(1 + len(foil.false_captions))])
    mean = images[rows.unique()].mean(dim=0, keepdim=True, dtype=torch.float64)
    finite_norms("text_embeds", captions)
    finite_norms("the mean of image_embeds in", mean)
    seen = pair_scores(captions, images, (sentences, rows)).tolist()
    blind = pair_scores(captions, mean, (sentences, torch.zeros_like(rows))).tolist()
    scores: list[FoilScores | None] = []
    first = 0
    for foil in foils:
        if not readable[foil.image]:
            scores.append(None)
            continue
        last = first + 1 + len(foil.false_captions)
        scores.append(
            FoilScores(seen[first], tuple(seen[first + 1 : last]), blind[first], tuple(blind[first + 1 : last]))
        )
        first = last
    return scores


def summary(items: Sequence[tuple[Foil, FoilScores]]) -> dict[str, Any]:
    """The numbers of some items: see `composition_scores`."""
    count = len(items)
    right = sum(scores.margin > TIE_TOLERANCE for _, scores in items)
    blind = sum(scores.blind_margin > TIE_TOLERANCE for _, scores in items)
    lengths = [len(text.split()) - len(foil.true_caption.split()) for foil, _ in items for text in foil.false_captions]
    return {
        "accuracy": 100 * right / count,
        "chance": 100 * sum(1 / (1 + len(foil.false_captions)) for foil, _ in items) / count,
        "items": count,
        "interval": wilson_interval(right, count),
        "blind_accuracy": 100 * blind / count,
        "undecided": 100 * sum(abs(scores.margin) <= ROUNDING for _, scores in items) / count,
        "foil_longer": 100 * sum(length > 0 for length in lengths) / len(lengths),
        "foil_shorter": 100 * sum(length < 0 for length in lengths) / len(lengths),
    }


def worst_items(items: Sequence[tuple[Foil, FoilScores]], count: int) -> list[dict[str, Any]]:
    """The items that the model gets most wrong, at most `count`, the worst first."""
    wrong = sorted((item for item in items if item[1].margin <= TIE_TOLERANCE), key=lambda item: item[1].margin)
    return [
        {
            "image": foil.image,
            "caption": foil.true_caption,
            "foil": foil.false_captions[scores.false.index(max(scores.false))],
            "margin": scores.margin,
        }
        for foil, scores in wrong[:count]
    ]


def composition_scores(
    foils: Sequence[Foil], image_embeds: Array, text_embeds: Array, texts: Sequence[str], *, examples: int = 5
) -> dict[str, Any]:
    """Accuracy of each kind of foil from embeddings that are there already; a tie counts as wrong.

    Args: see `foil_scores`; `examples` is how many of the worst errors to show for each kind.

    Returns:
        `kinds`: for every kind `accuracy` and `chance` in percent, `items`, the 95 % `interval` of the accuracy
        (Wilson), `blind_accuracy` (with the mean image), `undecided` (equal up to rounding), `foil_longer` and
        `foil_shorter` (of the false captions, by number of words), all in percent, and `examples`. `overall`: the same
        over all items, and `mean_of_kinds`, in which every kind weighs the same. `left_out`: items whose image cannot
        be read.
    """
    scores = foil_scores(foils, image_embeds, text_embeds, texts)
    items = [(foil, each) for foil, each in zip(foils, scores, strict=True) if each is not None]
    groups: dict[str, list[tuple[Foil, FoilScores]]] = {}
    for item in items:
        groups.setdefault(item[0].kind, []).append(item)
    kinds = {kind: summary(group) | {"examples": worst_items(group, examples)} for kind, group in groups.items()}
    mean = sum(numbers["accuracy"] for numbers in kinds.values()) / len(kinds)
    return {
        "kinds": kinds,
        "overall": summary(items) | {"mean_of_kinds": mean},
        "left_out": len(foils) - len(items),
    }


def embed_foils(
    encoder: Encoder,
    foils: Sequence[Foil],
    images: Images,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[list[Foil], Tensor, Tensor, list[str]]:
    """Encodes each image that a foil needs and each distinct sentence once.

    Args:
        batch_size: images or sentences encoded at once. Beyond it, memory is one vector for each image and sentence.

    Returns:
        The foils, renumbered to the rows of the embeddings; `image_embeds`, `text_embeds`, and the texts of these.
    """
    check_foils(foils, len(images))
    used = sorted({foil.image for foil in foils})
    row = {image: place for place, image in enumerate(used)}
    rows = undecoded_images(images).select(used) if isinstance(images, Dataset) else Subset(cast(Any, images), used)
    image_embeds, readable = encode_images(encoder, rows, batch_size, num_workers, progress)
    image_embeds[~readable] = torch.inf  # as `foil_scores` takes them
    texts = distinct_sentences(foils)
    text_embeds = encode_texts(encoder, texts, batch_size=batch_size, progress=progress)
    return [foil._replace(image=row[foil.image]) for foil in foils], image_embeds, text_embeds, texts


def composition_probe(
    encoder: Encoder,
    foils: Sequence[Foil],
    images: Images,
    *,
    examples: int = 5,
    **encoding: Any,
) -> dict[str, Any]:
    """How often a dual encoder prefers the true caption of an image to its foils.

    Args:
        foils: of `scene_foils`, `caption_foils` or `load_foils`.
        images: `foil.image` is a row of these; a split as `load_pairs` returns it, or rows `{"image": ...}`.
        encoding: `batch_size`, `num_workers`, `progress`, see `embed_foils`.

    Returns:
        See `composition_scores`, and the numbers of `images` and `sentences` encoded. Rows in `examples` are those of
        `images`.

    Raises:
        ValueError: no foils, a foil of an image that does not exist, or no image that can be read.
    """
    placed, image_embeds, text_embeds, texts = embed_foils(encoder, foils, images, **encoding)
    result = composition_scores(placed, image_embeds, text_embeds, texts, examples=examples)
    rows = dict(zip((foil.image for foil in placed), (foil.image for foil in foils), strict=True))
    for numbers in result["kinds"].values():
        for example in numbers["examples"]:
            example["image"] = rows[example["image"]]
    return result | {"images": len(image_embeds), "sentences": len(texts)}


def winoground_scores(scores: Array) -> dict[str, Any]:
    """Text, image and group score in percent (Thrush et al., 2022, equations 1 to 3); a tie counts as wrong.

    Args:
        scores: (examples, 2, 2); `scores[e, c, i]` is the similarity of caption c and image i of example e.

    Returns:
        `text` (each image prefers its own caption), `image` (each caption prefers its own image) and `group` (both),
        each with `accuracy`, `chance` and `interval`; `items`; `undecided`, the share of examples neither of whose
        images tells the captions apart by more than rounding.
    """
    table = as_tensor(scores).double()
    if table.ndim != 3 or table.shape[1:] != (2, 2) or not len(table) or not table.isfinite().all():
        raise ValueError(f"scores must be finite, of shape (examples, 2, 2), got {tuple(table.shape)}")
    own = table.diagonal(dim1=1, dim2=2)  # (examples, 2): image i with caption i
    over_captions = own - torch.stack([table[:, 1, 0], table[:, 0, 1]], dim=1)
    over_images = own - torch.stack([table[:, 0, 1], table[:, 1, 0]], dim=1)
    text, image = ((margins > TIE_TOLERANCE).all(dim=1) for margins in (over_captions, over_images))
    result: dict[str, Any] = {}
    for name, right, chance in (("text", text, 1 / 4), ("image", image, 1 / 4), ("group", text & image, 1 / 6)):
        count = int(right.sum())
        result[name] = {
            "accuracy": 100 * count / len(table),
            "chance": 100 * chance,
            "interval": wilson_interval(count, len(table)),
        }
    near = over_captions.abs().amax(dim=1) <= ROUNDING  # neither image tells the captions apart
    return result | {"items": len(table), "undecided": 100 * near.double().mean().item()}


def winoground_probe(encoder: Encoder, foils: Sequence[Foil], images: Images, **encoding: Any) -> dict[str, Any]:
    """The three scores of Winoground for a dual encoder.

    Args:
        foils: two by two, the first with the first image and caption of an example, the second with the others, as
            `load_foils("winoground", ...)` returns them.
        images, encoding: see `composition_probe`.

    Returns:
        See `winoground_scores`; `left_out` examples have an image that cannot be read.
    """
    if len(foils) % 2:
        raise ValueError(
            f"foils must come two by two, got {len(foils)}; load_foils('winoground', ...) returns them so"
        )
    pairs = list(zip(foils[::2], foils[1::2], strict=True))
    for number, (one, other) in enumerate(pairs):
        if (one.true_caption,) != other.false_captions or (other.true_caption,) != one.false_captions:
            raise ValueError(
                f"foils {2 * number} and {2 * number + 1} are no example: each caption is the other's foil"
            )
    placed, image_embeds, text_embeds, texts = embed_foils(encoder, foils, images, **encoding)
    scores = foil_scores(placed, image_embeds, text_embeds, texts)
    # Image 0 scores its caption and its foil, which is caption 1; image 1 the other way round.
    tables = [
        [[one.true, other.false[0]], [one.false[0], other.true]]
        for one, other in zip(scores[::2], scores[1::2], strict=True)
        if one is not None and other is not None
    ]
    if not tables:
        raise ValueError("no example of Winoground has two images that can be read; check the image directory")
    return winoground_scores(torch.tensor(tables, dtype=torch.float64)) | {"left_out": len(pairs) - len(tables)}
