"""CACR, contrastive attraction and repulsion (Zheng et al., arXiv 2105.03746), the nearest negatives pushed the most.

hf-vse train RECIPE --loss_type scripts/examples/objectives/cacr.py:cacr

The attraction is a mean over several positives of a query, weighted towards the farthest; here there is one, whose
weight is 1. The weights of the negatives are held fixed, as in the authors' code for ImageNet.
"""

from hf_vse.model.losses_vse import negative_scores, positive_scores


def cacr(scores, positives, excluded, *, nearness=2.0):
    """(2 - 2p) - sum_j w_j (2 - 2s_j), w_j = e^{-2(2 - 2s_j)} / sum_k e^{-2(2 - 2s_k)} over the negatives

    The positive is attracted and the negatives are repelled by their squared distances 2 - 2s.
    """
    weights = negative_scores(2 * nearness * scores.detach(), positives, excluded).softmax(dim=1).nan_to_num()
    return 2 - 2 * positive_scores(scores, positives) - (weights * (2 - 2 * scores)).sum(dim=1)
