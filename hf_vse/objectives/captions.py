"""Several captions of an image in one batch, and which of them are its positives.

Image i has K captions, `text_embeds[i]`, (K, dim). They are never negatives of their image. With s_k the similarities
to the own captions and t the temperature:

| positives | row losses of an image                                         | row losses of its captions |
|-----------|----------------------------------------------------------------|----------------------------|
| `each`    | one for each s_k, the other own captions left out; their mean  | one each; their mean       |
| `any`     | one; the own captions are one candidate, t log sum_k e^{s_k/t} | one each; their mean       |
| `centre`  | one; the unit mean of the captions is the only text            | one, of that mean          |

So each direction is the mean over the captions of an image, and then, as with one caption, the mean or the sum over
images. `each` is SupCon's L_out without the positives in its denominator (arXiv 2004.11362), `any` has the positives
of MIL-NCE (arXiv 1912.06430), but a direction at a time.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.model.losses_vse import Scalar, objective, pair_ids

Positives = Literal["one", "each", "any", "centre"]
NO_IMAGE = torch.iinfo(torch.int64).min  # an image id that no image has


class Candidates(NamedTuple):
    """`embeds` (n, dim), unit vectors; `ids` (n, kinds) integers."""

    embeds: Tensor
    ids: Tensor


class Captioned(NamedTuple):
    """Images and texts that are compared, in float32; text j belongs to image `j // captions`, by construction."""

    images: Tensor  # (B, dim)
    texts: Tensor  # (B * captions, dim)
    captions: int
    own: Tensor  # (B, P) positive's scores, one for each row loss of an image
    own_of_texts: Tensor  # (B * captions,)
    ids: tuple[Tensor | None, Tensor | None]  # (B, kinds), (B * captions, kinds)
    own_ids: tuple[Tensor | None, Tensor | None]  # the same, as candidates of their own modality
    foils: Candidates | None = None  # further candidates of images, with ids as images have them


def caption_count(text_embeds: Tensor) -> int:
    """How many captions an image has: 1 of (B, dim), K of (B, K, dim)."""
    return 1 if text_embeds.ndim == 2 else text_embeds.shape[1]


def check_captioned(positives: str, captions: int, loss_type: str) -> None:
    """Raises ValueError where a number of captions and `positives` do not fit, or not the objective."""
    if positives not in get_args(Positives):
        raise ValueError(f"positives is one of {', '.join(get_args(Positives))}, got {positives!r}")
    if positives == "one" and captions > 1:
        raise ValueError(f"positives one takes one caption of an image, got {captions}: choose each, any or centre")
    if positives == "any" and "temperature" not in objective(loss_type).settings:
        raise ValueError(f"positives any needs a temperature, loss_type {loss_type!r} has none: choose each or centre")


def captioned(
    image_embeds: Tensor,
    text_embeds: Tensor,
    positives: Positives,
    settings: Mapping[str, Scalar],
    image_ids: Tensor | None,
    text_ids: Tensor | None,
    first: int,
    same_modality: bool = False,
    foils: Candidates | None = None,
) -> Captioned:
    """A batch as it is compared.

    Args:
        image_embeds: (B, dim); text_embeds: (B, dim), or (B, K, dim).
        settings: `SETTINGS` by name.
        image_ids, text_ids: as in `contrastive_loss`; `text_ids` (B, K) or (B, K, kinds) for K captions. A text with a
            caption of an image is no negative of it.
        first: place of the first image among those of all processes.
        same_modality: images are compared with images too, and texts with texts; then there are ids for it.
        foils: see `foils.py`; their ids are text ids, with as many kinds as `text_ids`.
    """
    images, texts = image_embeds.float(), text_embeds.float()  # so that gradients add up in float32
    if image_ids is None and (texts.ndim == 3 or same_modality or foils is not None):
        image_ids = torch.arange(first, first + len(images), device=images.device)
    if texts.ndim == 2:
        own, ids = torch.linalg.vecdot(images, texts), pair_ids(image_ids, text_ids)
        shown = foils_for_images(foils, ids, image_ids)
        return Captioned(images, texts, 1, own[:, None], own, (ids, ids), (ids, ids), shown)
    of_captions = texts.new_zeros(*texts.shape[:2], 0, dtype=torch.int64) if text_ids is None else text_ids
    of_captions = of_captions.view(*texts.shape[:2], -1)
    assert image_ids is not None  # given, or made above
    shared = ids_of_captions(image_ids, of_captions, positives == "centre", same_modality)
    if positives == "centre":
        texts = centre(texts)[:, None]
    own = own_of_texts = torch.linalg.vecdot(images[:, None], texts)
    if positives == "any":
        t = settings["temperature"]
        own = t * (own / t).logsumexp(dim=1, keepdim=True)
    shown = foils_for_images(foils, shared[0][0], image_ids)
    return Captioned(images, texts.flatten(0, 1), texts.shape[1], own, own_of_texts.flatten(), *shared, shown)


def centre(text_embeds: Tensor) -> Tensor:
    """The unit means of the captions of each image: (B, K, dim) -> (B, dim)."""
    return F.normalize(text_embeds.mean(dim=1), dim=-1)


def texts_of_each(positives: str, captions: int) -> int:
    """How many texts an image with so many captions is compared as."""
    return 1 if positives in ("centre", "entity") else captions


def text_of_each(
    text_embeds: Tensor, positives: str, image_ids: Tensor | None = None, text_ids: Tensor | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """A text for each image that stands for its captions, (B, dim), and the ids of these pairs, to look at a batch."""
    ids = {"image_ids": image_ids, "text_ids": text_ids}
    if text_embeds.ndim == 2:
        return text_embeds, ids
    first = None if text_ids is None else text_ids[:, 0]
    texts = centre(text_embeds) if positives in ("centre", "entity") else text_embeds[:, 0]
    return texts, ids | {"text_ids": first}


def ids_of_captions(
    image_ids: Tensor, text_ids: Tensor, centre: bool, same_modality: bool = False
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The ids of images and of their texts, equal in one place where they are no negatives of each other.

    Args:
        image_ids: (B,) or (B, kinds); text_ids: (B, K, kinds), of no kinds where captions do not matter.
        centre: an image has one text, the centre of its K captions.
        same_modality: there are places for two images, which are compared by all of their captions.

    Returns:
        (B, n) and (texts, n), and the same where they are candidates of their own modality.
    """
    captions = text_ids.shape[1]
    images, own = image_ids.reshape(len(image_ids), -1), text_ids.transpose(1, 2)  # (B, kinds, K)
    if not (centre or same_modality):
        of_images = as_candidates = torch.cat([images, own.flatten(1)], dim=1)
    else:  # every caption of the one with every caption of the other
        pairs = own[..., None].expand(*own.shape, captions)
        of_images, as_candidates = (
            torch.cat([images, each.flatten(1)], dim=1) for each in (pairs, pairs.transpose(2, 3))
        )
    if centre:
        return (of_images, as_candidates), (as_candidates, of_images)
    of_texts = text_ids.flatten(0, 1).repeat_interleave(captions**2 if same_modality else captions, dim=1)
    of_texts = torch.cat([images.repeat_interleave(captions, dim=0), of_texts], dim=1)
    return (of_images, of_texts), (as_candidates, of_texts)


def foils_for_images(
    foils: Candidates | None, ids_of_images: Tensor | None, image_ids: Tensor | None
) -> Candidates | None:
    """Foils as candidates of images: they show none, and are no negatives where an image has them as a caption.

    Args:
        ids_of_images: (B, n), of which the first are those of `image_ids`, (B,) or (B, kinds), and the others repeat
            each kind of text id equally often; there may be none.
    """
    if foils is None:
        return None
    assert ids_of_images is not None and image_ids is not None  # `captioned` makes them where there are foils
    kinds = image_ids[0].numel()
    times = (ids_of_images.shape[1] - kinds) // foils.ids.shape[1]
    of_texts = foils.ids.repeat_interleave(times, dim=1)
    of_none = of_texts.new_full((len(of_texts), kinds), NO_IMAGE)
    return Candidates(foils.embeds.float(), torch.cat([of_none, of_texts], dim=1))


def mean_of_captions(rows: Tensor, images: int) -> Tensor:
    """The mean of the row losses of each image, or of its texts: (images * n,) -> (images,)."""
    return rows if len(rows) == images else rows.view(images, -1).mean(dim=1)
