"""Why a model is good or bad, next to how good it is: everything in this folder at once, or a few numbers of a batch.

None of these numbers says which model is better; recalls do. They say where to look: at the space (geometry), at
candidates that stand before all others (hubness), at how close the wrong ones come (similarities), at which captions
are found (breakdown), at single rows and at the data itself (suspects), and at what a score is worth (calibration).
Shares are in percent throughout.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_vse.evaluation.diagnostics.breakdown import breakdown
from hf_vse.evaluation.diagnostics.calibration import calibration
from hf_vse.evaluation.diagnostics.geometry import effective_rank, geometry, moments, potential, uniformity
from hf_vse.evaluation.diagnostics.hubness import hubness, skewness
from hf_vse.evaluation.diagnostics.neighbours import find_hard_negatives
from hf_vse.evaluation.diagnostics.similarities import similarities
from hf_vse.evaluation.diagnostics.suspects import suspects
from hf_vse.evaluation.ranks import (
    Array,
    as_matrix,
    as_tensor,
    check_correspondence,
    finite_norms,
    retrieval_ranks,
    with_float64,
)

UNIT_TOLERANCE = 0.01  # that of bfloat16
BATCH_ROWS = 256  # of a batch, for what is quadratic in them
BATCH_NEIGHBOURS = 5


def unit_vectors(name: str, embeds: Array) -> Tensor:
    """Embeddings as a matrix (items, dim), refused unless its rows have length one."""
    matrix = as_matrix(name, embeds)
    off = (finite_norms(name, matrix) - 1).abs()
    if off.max() > UNIT_TOLERANCE:
        row = int(off.argmax())
        raise ValueError(
            f"{name} must be unit vectors, row {row} has length {matrix[row].double().norm().item():.3g}; "
            "divide each row by its length"
        )
    return matrix


def checked_correspondence(
    image_embeds: Array, text_embeds: Array, text_to_image: Array, captions: Sequence[str] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The embeddings and the image of each text as tensors on one device; errors as in `diagnose`."""
    images, texts = unit_vectors("image_embeds", image_embeds), unit_vectors("text_embeds", text_embeds)
    texts, owner = texts.to(images.device), as_tensor(text_to_image).to(images.device, torch.int64)
    check_correspondence(images, texts, owner, distractors=False)
    if len(images) < 2:
        raise ValueError("image_embeds must have two rows at least to be told apart, got 1")
    if captions is not None and len(captions) != len(texts):
        raise ValueError(f"captions must have one text for each row of text_embeds, got {len(captions)}, {len(texts)}")
    return images, texts, owner


@torch.no_grad()
def diagnose(
    image_embeds: Array,
    text_embeds: Array,
    text_to_image: Array,
    captions: Sequence[str] | None,
    *,
    train_captions: Sequence[str] | None = None,
    temperature: float | None = None,
    ranks: tuple[Tensor, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All diagnostics of the embeddings of a split.

    Memory beyond the input is that of a few matrices of 2,000 rows and of the lists of neighbours.

    Args:
        image_embeds: (images, dim) unit vectors, each with a text; text_embeds: (texts, dim) unit vectors.
        text_to_image: (texts,) the row of `image_embeds` that each text describes.
        captions: the texts, in the order of `text_embeds`; without them there is no breakdown.
        train_captions: what the model was trained on, to tell rare words by; default: rare among `captions`.
        temperature: that of the model, to judge its probabilities by.
        ranks: of `retrieval_ranks`, where they are known already.
        seed: of the samples, which are named in the result.

    Returns:
        `geometry`, `hubness`, `similarities`, `breakdown`, `suspects`, `calibration`: what the functions of these
        names return, numbers, strings, lists and dicts.

    Raises:
        ValueError: shapes that do not fit, an image without text, rows that are not finite or not of length one.
    """
    images, texts, owner = checked_correspondence(image_embeds, text_embeds, text_to_image, captions)
    ranks = ranks or retrieval_ranks(images, texts, owner)
    negatives = find_hard_negatives(images, texts, owner)
    found = {
        "geometry": geometry(images, texts, owner, seed=seed),
        "hubness": hubness(images, texts),
        "similarities": similarities(images, texts, owner, negatives=negatives, seed=seed),
        "suspects": suspects(images, texts, owner, captions, ranks, negatives=negatives),
        "calibration": calibration(images, texts, owner, ranks[1], temperature=temperature, seed=seed),
    }
    if captions is not None:
        found["breakdown"] = breakdown(ranks[1], captions, train_captions=train_captions)
    return found


def rankings_of_batch(scores: Tensor, owner: Tensor) -> dict[str, Tensor]:
    """Hubness and hardest negatives from scores (texts, images); `owner` (texts,) is the image of each text."""
    numbers: dict[str, Tensor] = {}
    for direction, of_queries in (("t2i", scores), ("i2t", scores.T)):
        nearest = of_queries.topk(min(BATCH_NEIGHBOURS, of_queries.shape[1]), dim=1).indices
        # Unlike bincount, this need not wait for the device.
        counts = torch.zeros(of_queries.shape[1], device=scores.device).scatter_add_(
            0, nearest.flatten(), torch.ones(nearest.numel(), device=scores.device)
        )
        numbers[f"hubness_skew_{direction}"] = skewness(counts)
    positives = owner[:, None] == torch.arange(scores.shape[1], device=scores.device)
    scores = scores.masked_fill(positives, -torch.inf)
    for direction, dim in (("t2i", 1), ("i2t", 0)):
        hardest = scores.amax(dim=dim)
        asked = hardest.isfinite()
        numbers[f"hardest_negative_{direction}"] = torch.where(asked, hardest, 0).sum() / asked.sum()
    return numbers


@torch.no_grad()
def quick_diagnostics(
    image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor | None = None
) -> dict[str, float]:
    """A few numbers of one training batch to log; waits for the device at the beginning and at the end.

    What is quadratic takes the first 256 images and texts. Compare batches of one size: uniformity does not depend on
    it, effective rank (at most the rows), hubness and hardest negatives do.

    Args:
        image_embeds: (images, dim); text_embeds: (texts, dim); of any precision.
        text_to_image: (texts,) row of the image of each text; default: row i belongs to row i.

    Returns:
        `alignment`, `modality_gap`, `positive_similarity` over the whole batch; `uniformity_image, _text`,
        `effective_rank_image, _text`, `hardest_negative_t2i, _i2t` (means), `hubness_skew_t2i, _i2t` (of N_5).
        Empty for fewer than two images or texts, and for embeddings that are not finite.
    """
    image_embeds, text_embeds = with_float64(image_embeds.detach()), with_float64(text_embeds.detach())
    finite = image_embeds.isfinite().all() & text_embeds.isfinite().all()
    if min(len(image_embeds), len(text_embeds)) < 2 or not finite:
        return {}
    device = image_embeds.device
    owner = torch.arange(len(text_embeds)) if text_to_image is None else text_to_image
    owner = owner.to(device)
    with torch.autocast(device.type, enabled=False):
        images, texts = normalize(image_embeds.float()), normalize(text_embeds.float())
        positive = (texts * images[owner]).sum(dim=1).mean()
        numbers = {
            "alignment": 2 - 2 * positive,
            "modality_gap": (images.mean(dim=0) - texts.mean(dim=0)).norm(),
            "positive_similarity": positive,
        }
        images, texts, owner = images[:BATCH_ROWS], texts[:BATCH_ROWS], owner[:BATCH_ROWS]
        numbers |= rankings_of_batch(texts @ images.T, owner)
        modalities = {"image": images, "text": texts}
        for name, embeds in modalities.items():
            numbers[f"uniformity_{name}"] = uniformity(potential((embeds @ embeds.T).double()), len(embeds))
        for name, embeds in modalities.items():  # last, because eigenvalues wait for the device
            numbers[f"effective_rank_{name}"] = effective_rank(moments(embeds))
    return dict(zip(numbers, torch.stack([number.double() for number in numbers.values()]).tolist(), strict=True))
