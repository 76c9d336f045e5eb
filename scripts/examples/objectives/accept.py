"""False negatives accepted: `nce` in which what exceeds the positive by `false_negative_gap` is a positive too.

hf-vse train RECIPE --loss_type scripts/examples/objectives/accept.py:accept --false_negative_gap 0.1

`nce` itself leaves such candidates out. PCME++ (arXiv 2305.18171) accepts them in a loss of single pairs, see
pcmepp.py. At the start half of all negatives exceed the positive: warm up on `nce` (hard_negative_warmup_epochs).
"""

import torch

from hf_vse.model.losses_vse import negative_scores, positive_scores


def accept(scores, positives, excluded, *, temperature, false_negative_gap):
    """-log( (e^{p/t} + sum_{s_j > p + g} e^{s_j/t}) / (e^{p/t} + sum_j e^{s_j/t}) ), g = false_negative_gap

    Candidates much nearer than the positive are taken for positives, of which one need be near.
    """
    own = positive_scores(scores, positives)[:, None]
    negatives = negative_scores(scores / temperature, positives, excluded)
    rejected = (scores - own).detach() <= false_negative_gap
    accepted = torch.cat([own / temperature, negatives.masked_fill(rejected, float("-inf"))], dim=1)
    return torch.cat([own / temperature, negatives], dim=1).logsumexp(dim=1) - accepted.logsumexp(dim=1)
