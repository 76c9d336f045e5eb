"""PCME++ (Chun, arXiv 2305.18171) on the means: every pair is a decision by its squared distance.

hf-vse train RECIPE --loss_type scripts/examples/objectives/pcmepp.py:pcmepp

The paper's vectors have variances, which are added to the distance; here they are zero. Its scale and shift, 5 and 5
at the start, are learned; here they stay. Its pseudo-positives, of a small weight, are left out.
"""

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
