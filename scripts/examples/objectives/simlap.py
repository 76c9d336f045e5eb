"""SimLAP (arXiv 2410.18200), the row of its loss: softplus(L - p/t), L the logsumexp over the negatives.

hf-vse train RECIPE --loss_type scripts/examples/objectives/simlap.py:simlap

The paper takes the mean over all positives of a query, and a gate on the vectors that depends on labels. There is one
positive here and there are no labels, and then it is `nce`, written another way.
"""

import torch.nn.functional as F

from hf_vse.model.losses_vse import negative_scores, positive_scores


def simlap(scores, positives, excluded, *, temperature):
    """log(1 + sum_j e^{(s_j - p)/t}), j over the negatives

    Every negative counts by how near it comes to the positive.
    """
    logits = scores / temperature
    negatives = negative_scores(logits, positives, excluded).logsumexp(dim=1)
    return F.softplus(negatives - positive_scores(logits, positives))
