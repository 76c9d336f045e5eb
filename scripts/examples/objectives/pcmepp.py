"""PCME++ (Chun, arXiv 2305.18171) on the means: every pair is a decision by its squared distance.

hf-vse train RECIPE --loss_type scripts/examples/objectives/pcmepp.py:pcmepp
hf-vse train RECIPE --loss_type scripts/examples/objectives/pcmepp.py:pcmepp_pseudo    # with pseudo-positives

The paper's vectors have variances, which are added to the distance; here they are zero. Its scale and shift, 5 and 5
at the start, are learned; here they stay.
"""

import torch
import torch.nn.functional as F

from hf_vse.model.losses_vse import negative_scores, positive_scores


def pcmepp(scores, positives, excluded, *, scale=5.0, shift=5.0):
    """mean over candidates of -log sig(a d - b), of the positive -log sig(b - a d); d = 2 - 2s, a = b = 5

    Is the squared distance d small? The mean is over the positive and the negatives.
    """
    logits = shift - scale * (2 - 2 * scores)
    negatives = negative_scores(logits, positives, excluded)
    rows = F.softplus(negatives).sum(dim=1) + F.softplus(-positive_scores(logits, positives))
    return rows / (1 + negatives.isfinite().sum(dim=1))


def pcmepp_pseudo(scores, positives, excluded, *, scale=5.0, shift=5.0, weight=0.1):
    """L + 0.1 L', L = mean of -log sig(a d - b), of the positive -log sig(b - a d); d = 2 - 2s, a = b = 5

    In L' all candidates that are at least as near as the positive count as positives, because they may be.
    """
    logits = shift - scale * (2 - 2 * scores)
    counted = negative_scores(scores, positives, excluded).isfinite().scatter(1, positives[:, None], True)
    accepted = scores >= positive_scores(scores, positives)[:, None]
    decisions = F.softplus(torch.where(accepted, -logits, logits)) * counted
    own = pcmepp(scores, positives, excluded, scale=scale, shift=shift)
    return own + weight * decisions.sum(dim=1) / counted.sum(dim=1)
