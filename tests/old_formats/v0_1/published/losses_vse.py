"""Row losses: what the objectives mean.

Every cross-modal objective is a row loss. Given the similarities of Q anchors to C candidates of the other modality,
`scores (Q, C)`, the place of each anchor's own candidate, `positives (Q,)`, and the candidates that show the same
image and so are no negatives, `excluded (Q, C)` or None, it returns one loss per anchor, `(Q,)`. Both directions, the
reduction and every fast way of execution exist once, outside. With s = cosine similarity, p = that of the positive,
n = that of the hardest negative, t = temperature, m = margin:

| name             | row loss                                      | known as                                         |
|------------------|-----------------------------------------------|--------------------------------------------------|
| `nce`            | -log( e^{p/t} / sum_j e^{s_j/t} )             | ConVSE (Jain & Verma, arXiv 2110.08872)          |
| `hardnce`        | max(0, (n + m - p) / t)                       | ConVSE++ (the same, as its authors' code has it) |
| `hardnce_smooth` | -log( e^{p/t} / (e^{p/t} + e^{(n+m)/t}) )     | `hardnce` with the positive in the normaliser    |
| `hinge_sum`      | sum_j max(0, m + s_j - p)                     | VSE0, UVS (Kiros et al., arXiv 1411.2539)        |
| `hinge_max`      | max(0, m + n - p)                             | VSE++ (Faghri et al., arXiv 1707.05612)          |
| `clip`           | `nce` with a learned temperature              | CLIP (Radford et al., arXiv 2103.00020)          |
| `siglip`         | -log sig(p/t + b) - sum_j log sig(-s_j/t - b) | SigLIP (Zhai et al., arXiv 2303.15343)           |

The paper's losses are means over the rows with the two directions added; VSE0 and VSE++ sum over the batch; CLIP and
SigLIP average the directions. Everything is computed in float32, whatever autocast says.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Scalar = float | Tensor


def own_scores(scores: Tensor, positives: Tensor) -> Tensor:
    """The similarity of every anchor to its own candidate: (Q, C), (Q,) -> (Q,)."""
    return scores.gather(1, positives[:, None]).squeeze(1)


def negative_scores(scores: Tensor, positives: Tensor, excluded: Tensor | None) -> Tensor:
    """The scores with everything that is no negative at minus infinity: (Q, C)."""
    negatives = scores.scatter(1, positives[:, None], float("-inf"))
    return negatives if excluded is None else negatives.masked_fill(excluded, float("-inf"))


def nce(scores: Tensor, positives: Tensor, excluded: Tensor | None, *, temperature: Scalar, **_: Scalar) -> Tensor:
    logits = scores / temperature
    candidates = logits if excluded is None else logits.masked_fill(excluded, float("-inf"))
    return candidates.logsumexp(dim=1) - own_scores(logits, positives)


def hardnce(
    scores: Tensor, positives: Tensor, excluded: Tensor | None, *, temperature: Scalar, margin: Scalar, **_: Scalar
) -> Tensor:
    return hinge_max(scores, positives, excluded, margin=margin) / temperature


def hardnce_smooth(
    scores: Tensor, positives: Tensor, excluded: Tensor | None, *, temperature: Scalar, margin: Scalar, **_: Scalar
) -> Tensor:
    hardest = negative_scores(scores, positives, excluded).max(dim=1).values
    return F.softplus((hardest + margin - own_scores(scores, positives)) / temperature)


def hinge_sum(scores: Tensor, positives: Tensor, excluded: Tensor | None, *, margin: Scalar, **_: Scalar) -> Tensor:
    negatives = negative_scores(scores, positives, excluded)
    return (margin + negatives - own_scores(scores, positives)[:, None]).clamp(min=0).sum(dim=1)


def hinge_max(scores: Tensor, positives: Tensor, excluded: Tensor | None, *, margin: Scalar, **_: Scalar) -> Tensor:
    hardest = negative_scores(scores, positives, excluded).max(dim=1).values
    return (margin + hardest - own_scores(scores, positives)).clamp(min=0)


def siglip(
    scores: Tensor, positives: Tensor, excluded: Tensor | None, *, temperature: Scalar, logit_bias: Scalar, **_: Scalar
) -> Tensor:
    logits = scores / temperature + logit_bias
    negatives = F.softplus(negative_scores(logits, positives, excluded)).sum(dim=1)
    return negatives + F.softplus(-own_scores(logits, positives))


class Objective(NamedTuple):
    """A row loss, how rows become a batch loss, and how the two directions are put together."""

    row_loss: Callable[..., Tensor]
    reduction: Literal["mean", "sum"]
    directions: Literal["add", "average"]


OBJECTIVES: dict[str, Objective] = {
    "nce": Objective(nce, "mean", "add"),
    "hardnce": Objective(hardnce, "mean", "add"),
    "hardnce_smooth": Objective(hardnce_smooth, "mean", "add"),
    "hinge_sum": Objective(hinge_sum, "sum", "add"),
    "hinge_max": Objective(hinge_max, "sum", "add"),
    "clip": Objective(nce, "mean", "average"),
    "siglip": Objective(siglip, "mean", "average"),
}


def objective(loss_type: str) -> Objective:
    if loss_type not in OBJECTIVES:
        raise ValueError(f"loss_type {loss_type!r} is unknown; choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[loss_type]


def similarity(queries: Tensor, candidates: Tensor) -> Tensor:
    """Dot products in float32 even under autocast: (Q, dim), (C, dim) -> (Q, C)."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries.float() @ candidates.float().T


def same_image(query_ids: Tensor, candidate_ids: Tensor, positives: Tensor) -> Tensor:
    """Candidates of an anchor's image other than its own one: (Q,), (C,), (Q,) -> (Q, C) bool."""
    return (query_ids[:, None] == candidate_ids[None, :]).scatter(1, positives[:, None], False)


def reduce_rows(loss_type: str, image_rows: Tensor, text_rows: Tensor, total_rows: int | None = None) -> Tensor:
    """The batch loss from the row losses of the two directions.

    Args:
        image_rows, text_rows: (Q,) each; image-to-text and text-to-image.
        total_rows: what a mean divides by, where these are only some of the rows; default Q.
    """
    chosen = objective(loss_type)
    loss = image_rows.sum() + text_rows.sum()
    if chosen.reduction == "mean":
        loss = loss / (len(image_rows) if total_rows is None else total_rows)
    return loss / 2 if chosen.directions == "average" else loss


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    loss_type: str = "nce",
    temperature: Scalar = 0.1,
    margin: Scalar = 0.2,
    logit_bias: Scalar = 0.0,
    image_ids: Tensor | None = None,
) -> Tensor:
    """The objective on one batch of pairs, computed densely: the reference that everything faster must equal.

    Args:
        image_embeds, text_embeds: (batch, dim) unit vectors; row i of one belongs to row i of the other.
        loss_type: one of `OBJECTIVES`.
        temperature: divisor of the similarities (`nce`, `hardnce*`, `clip`, `siglip`).
        margin: in units of cosine similarity (`hinge_*`, `hardnce*`).
        logit_bias: added to the scaled similarities (`siglip`).
        image_ids: (batch,) integers; pairs with equal ids show one image and are no negatives of each other.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: shapes that do not fit, or an unknown `loss_type`.
    """
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds and text_embeds must both be (batch, dim), got {tuple(image_embeds.shape)} and "
            f"{tuple(text_embeds.shape)}; give one caption for each image of the batch"
        )
    row_loss = objective(loss_type).row_loss
    options = {"temperature": temperature, "margin": margin, "logit_bias": logit_bias}
    scores = similarity(image_embeds, text_embeds)
    positives = torch.arange(len(scores), device=scores.device)
    excluded = None if image_ids is None else same_image(image_ids, image_ids, positives)
    with torch.autocast(scores.device.type, enabled=False):
        image_rows = row_loss(scores, positives, excluded, **options)
        text_rows = row_loss(scores.T, positives, excluded, **options)
    return reduce_rows(loss_type, image_rows, text_rows)


__all__ = ["OBJECTIVES", "Objective", "contrastive_loss", "objective", "reduce_rows", "same_image", "similarity"]
