"""Objectives: what training minimises.

Every objective is a row loss. It gets the similarities of Q queries to C candidates of the other modality,
`scores (Q, C)`, the place of each query's positive, `positives (Q,)`, the candidates that are no negatives, because
they show the query's image or have its caption, `excluded (Q, C)` or None, and by name the settings it uses. It gives
one loss for each query, `(Q,)`. Both directions, the reduction and every faster way to compute it stand outside, once.

The docstring of a row loss is its formula and what it means, with s_j = cosine similarity to candidate j, p = that to
the positive, n = that to the hardest negative, t = temperature, m = margin, b = bias. All is computed in float32.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Scalar = float | Tensor
# What a row loss may use, and the value where nobody gives one.
SETTINGS: dict[str, Scalar] = {
    "temperature": 0.1, "margin": 0.2, "logit_bias": 0.0, "positive_margin": 0.0, "hardness": 0.0, "negatives_kept": 0,
    "false_negative_gap": 2.0,
}  # fmt: skip
# The name of a row loss of one's own: a file, a function, and the beginning of the file's SHA-256 digest.
OWN = re.compile(r"(?P<file>.+\.py):(?P<function>\w+)(?:@(?P<digest>[0-9a-f]{12}))?")


def positive_scores(scores: Tensor, positives: Tensor) -> Tensor:
    """The similarity of every query to its positive: (Q, C), (Q,) -> (Q,)."""
    return scores.gather(1, positives[:, None]).squeeze(1)


def negative_scores(scores: Tensor, positives: Tensor, excluded: Tensor | None) -> Tensor:
    """The scores with minus infinity wherever a candidate is not a negative: (Q, C)."""
    negatives = scores.scatter(1, positives[:, None], float("-inf"))
    return negatives if excluded is None else negatives.masked_fill(excluded, float("-inf"))


def hardest_negative(scores: Tensor, positives: Tensor, excluded: Tensor | None) -> Tensor:
    """The highest similarity of every query to a negative, minus infinity without one: (Q,)."""
    return negative_scores(scores, positives, excluded).max(dim=1).values


@torch.no_grad()
def log_weights(logits: Tensor, hardness: Scalar) -> Tensor:
    """Logarithms of the weights N e^{b x_j} / sum_k e^{b x_k} of each query's N negatives, b the hardness: (Q, C).

    They are held fixed. https://arxiv.org/abs/2010.04592 has them in its objective, without false negatives.
    """
    absent = logits.isneginf()
    shares = (hardness * logits).log_softmax(dim=1)
    return (shares + (~absent).sum(dim=1, keepdim=True).log()).masked_fill(absent, 0.0)


def nce(
    scores: Tensor,
    positives: Tensor,
    excluded: Tensor | None,
    *,
    temperature: Scalar,
    positive_margin: Scalar = 0.0,
    hardness: Scalar = 0.0,
    negatives_kept: Scalar = 0,
    false_negative_gap: Scalar = 2.0,
) -> Tensor:
    """-log( e^{p/t} / sum_j e^{s_j/t} )

    All candidates of the batch are contrasted with the positive.
    """
    logits = scores / temperature
    if false_negative_gap >= 2 and not (positive_margin or hardness or negatives_kept):  # the same, copying less
        candidates = logits if excluded is None else logits.masked_fill(excluded, float("-inf"))
        return candidates.logsumexp(dim=1) - positive_scores(logits, positives)
    own = positive_scores(logits, positives) - positive_margin / temperature
    negatives = negative_scores(logits, positives, excluded)
    if false_negative_gap < 2:  # cosines differ by 2 at most
        gaps = (scores - positive_scores(scores, positives)[:, None]).detach()
        negatives = negatives.masked_fill(gaps > false_negative_gap, float("-inf"))
    if negatives_kept > 0:
        negatives = negatives.topk(min(int(negatives_kept), negatives.shape[1]), dim=1).values
    if hardness > 0:
        negatives = negatives + log_weights(negatives, hardness)
    return torch.cat([own[:, None], negatives], dim=1).logsumexp(dim=1) - own


def hardnce(
    scores: Tensor, positives: Tensor, excluded: Tensor | None, *, temperature: Scalar, margin: Scalar
) -> Tensor:
    """max(0, (n + m - p) / t)

    Only the hardest negative counts. It is `hinge_max / (t * batch)`: the published code computes the hinge of VSE++
    in another unit.
    """
    return hinge_max(scores, positives, excluded, margin=margin) / temperature


def hardnce_smooth(
    scores: Tensor, positives: Tensor, excluded: Tensor | None, *, temperature: Scalar, margin: Scalar
) -> Tensor:
    """-log( e^{p/t} / (e^{p/t} + e^{(n+m)/t}) )

    Only the hardest negative counts, and the loss is never exactly zero.
    """
    hardest = hardest_negative(scores, positives, excluded)
    return F.softplus((hardest + margin - positive_scores(scores, positives)) / temperature)


def hinge_sum(scores: Tensor, positives: Tensor, excluded: Tensor | None, *, margin: Scalar) -> Tensor:
    """sum_j max(0, m + s_j - p)

    Every negative that comes closer than the margin counts.
    """
    negatives = negative_scores(scores, positives, excluded)
    return (margin + negatives - positive_scores(scores, positives)[:, None]).clamp(min=0).sum(dim=1)


def hinge_max(scores: Tensor, positives: Tensor, excluded: Tensor | None, *, margin: Scalar) -> Tensor:
    """max(0, m + n - p)

    Only the hardest negative counts, where it comes closer than the margin.
    """
    hardest = hardest_negative(scores, positives, excluded)
    return (margin + hardest - positive_scores(scores, positives)).clamp(min=0)


def siglip(
    scores: Tensor, positives: Tensor, excluded: Tensor | None, *, temperature: Scalar, logit_bias: Scalar
) -> Tensor:
    """-log sig(p/t + b) - sum_j log sig(-s_j/t - b)

    Every pair of the batch is a decision of its own.
    """
    logits = scores / temperature + logit_bias
    negatives = F.softplus(negative_scores(logits, positives, excluded)).sum(dim=1)
    return negatives + F.softplus(-positive_scores(logits, positives))


class Objective(NamedTuple):
    """All facts about an objective; a row loss that `objectives/streamed.py` knows is also computed without a matrix.

    Attributes:
        row_loss: see above.
        reduction: how the rows of a batch become one number.
        directions: how the losses of image-to-text and text-to-image are put together.
        known_as: its name in the literature, and the source.
        learned: settings that are parameters of the model.
        may_collapse: training from scratch may collapse; some epochs on another objective before help.
    """

    row_loss: Callable[..., Tensor]
    reduction: Literal["mean", "sum"] = "mean"
    directions: Literal["add", "average"] = "add"
    known_as: str = "an objective of its own"
    learned: tuple[str, ...] = ()
    may_collapse: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        """Those of `SETTINGS` that the row loss uses: its keyword arguments, or all where it takes any."""
        parameters = inspect.signature(self.row_loss).parameters.values()
        if any(each.kind is each.VAR_KEYWORD for each in parameters):
            return tuple(SETTINGS)
        return tuple(each.name for each in parameters if each.kind is each.KEYWORD_ONLY and each.name in SETTINGS)

    def rows(
        self, scores: Tensor, positives: Tensor, excluded: Tensor | None, settings: Mapping[str, Scalar]
    ) -> Tensor:
        """The row loss with those of the settings that it uses: (Q, C), (Q,), (Q, C) -> (Q,)."""
        with torch.autocast(scores.device.type, enabled=False):
            return self.row_loss(scores, positives, excluded, **{name: settings[name] for name in self.settings})

    def reduce(
        self, image_rows: Tensor, text_rows: Tensor, total_rows: int | None = None, image_weight: float = 0.5
    ) -> Tensor:
        """The batch loss from the row losses of the two directions.

        Args:
            image_rows, text_rows: (Q,) each; image-to-text and text-to-image.
            total_rows: what a mean divides by, where these are only some of the rows; default Q.
            image_weight: w, image-to-text counts 2 w times and text-to-image 2 (1 - w) times.
        """
        loss = 2 * (image_weight * image_rows.sum() + (1 - image_weight) * text_rows.sum())
        if self.reduction == "mean":
            loss = loss / (len(image_rows) if total_rows is None else total_rows)
        return loss / 2 if self.directions == "average" else loss


OBJECTIVES: dict[str, Objective] = {
    "nce": Objective(nce, known_as="ConVSE, the first loss of the paper"),
    "hardnce": Objective(
        hardnce, known_as="ConVSE++, the second loss of the paper as its authors' code has it", may_collapse=True
    ),
    "hardnce_smooth": Objective(
        hardnce_smooth, known_as="ConVSE++ with the positive in the normaliser", may_collapse=True
    ),
    "hinge_sum": Objective(
        hinge_sum, "sum", known_as="VSE0 or UVS, https://arxiv.org/abs/1411.2539", may_collapse=True
    ),
    "hinge_max": Objective(hinge_max, "sum", known_as="VSE++, https://arxiv.org/abs/1707.05612", may_collapse=True),
    "clip": Objective(
        nce, directions="average", known_as="CLIP, https://arxiv.org/abs/2103.00020", learned=("temperature",)
    ),
    "siglip": Objective(
        siglip, "mean", "average", "SigLIP, https://arxiv.org/abs/2303.15343", ("temperature", "logit_bias")
    ),
}


def objective(loss_type: str) -> Objective:
    """The objective of this name.

    Raises:
        ValueError: there is none, or it is a function in a file that was not loaded.
    """
    if loss_type in OBJECTIVES:
        return OBJECTIVES[loss_type]
    if OWN.fullmatch(loss_type):
        raise ValueError(
            f"loss_type {loss_type!r} is a function in a file, which is not part of the model and is not executed "
            "because a configuration names it: name it yourself, by --loss_type path/to/file.py:function or by "
            "hf_vse.load_objective, whose result is the loss_type of the configuration"
        )
    raise ValueError(
        f"loss_type {loss_type!r} is unknown; choose one of {', '.join(OBJECTIVES)}, or file.py:function for your own"
    )


def all_settings(given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """All `SETTINGS`, with the values given. Raises TypeError for any other name."""
    if unknown := given.keys() - SETTINGS.keys():
        raise TypeError(f"{', '.join(unknown)} is no setting of an objective; there are {', '.join(SETTINGS)}")
    return {**SETTINGS, **given}


def similarity(queries: Tensor, candidates: Tensor) -> Tensor:
    """Dot products in float32 even under autocast: (Q, dim), (C, dim) -> (Q, C)."""
    with torch.autocast(queries.device.type, enabled=False):
        return queries.float() @ candidates.float().T


def pair_ids(image_ids: Tensor | None, text_ids: Tensor | None) -> Tensor | None:
    """The ids of every pair side by side, (batch, kinds); None where there are none."""
    given = [each.reshape(len(each), -1) for each in (image_ids, text_ids) if each is not None]
    return torch.cat(given, dim=1) if given else None


def share_an_id(query_ids: Tensor, candidate_ids: Tensor) -> Tensor:
    """Whether an id of the query is the candidate's id of the same kind: (Q, kinds), (C, kinds) -> (Q, C) bool."""
    pairs = zip(query_ids.T, candidate_ids.T, strict=True)
    return reduce(torch.logical_or, (one[:, None] == other[None, :] for one, other in pairs))


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    loss_type: str = "nce",
    image_ids: Tensor | None = None,
    text_ids: Tensor | None = None,
    image_weight: float = 0.5,
    **settings: Scalar,
) -> Tensor:
    """The objective on one batch of pairs, computed densely: the reference for every faster way.

    Args:
        image_embeds, text_embeds: (batch, dim) unit vectors; row i of one belongs to row i of the other.
        loss_type: one of `OBJECTIVES`.
        image_ids: (batch,) integers; pairs with equal ids show one image and are no negatives of each other.
        text_ids: (batch,) integers, equal where the captions are, which then are no negatives of each other. Either
            may be (batch, kinds): one equal id of a kind is enough.
        image_weight: share of image-to-text in the loss, from 0 to 1; the rest is text-to-image.
        settings: those of `SETTINGS` that the objective uses: `temperature`, divisor of the similarities; `margin`, in
            units of cosine similarity; `logit_bias`, added to the scaled similarities; `positive_margin`, subtracted
            from the positive's similarity; `hardness`, see `log_weights`; `negatives_kept`, so many of the hardest
            negatives count, 0 all; `false_negative_gap`, negatives do not count whose similarity exceeds that of the
            positive by more.

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
    chosen, settings = objective(loss_type), all_settings(settings)
    scores = similarity(image_embeds, text_embeds)
    positives = torch.arange(len(scores), device=scores.device)
    ids = pair_ids(image_ids, text_ids)
    excluded = None if ids is None else share_an_id(ids, ids).fill_diagonal_(False)
    image_rows, text_rows = (chosen.rows(each, positives, excluded, settings) for each in (scores, scores.T))
    return chosen.reduce(image_rows, text_rows, image_weight=image_weight)
