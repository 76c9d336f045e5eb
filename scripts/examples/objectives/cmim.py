"""cMIM (arXiv 2509.21511), its contrastive term between two modalities: `nce` with the mean over the negatives.

hf-vse train RECIPE --loss_type scripts/examples/objectives/cmim.py:cmim

The paper contrasts a vector with itself, whose similarity is 1; here the caption of an image takes its place. With N
negatives it is `nce` with the positive_margin -t log N, so large batches do not make it harder.
"""

import torch

from hf_vse.model.losses_vse import negative_scores, positive_scores


def cmim(scores, positives, excluded, *, temperature):
    """-log( e^{p/t} / (e^{p/t} + mean_j e^{s_j/t}) ), the mean over the negatives

    A query has to be nearer to its positive than to an average negative.
    """
    logits = scores / temperature
    negatives, own = negative_scores(logits, positives, excluded), positive_scores(logits, positives)
    count = negatives.isfinite().sum(dim=1).clamp(min=1).to(logits.dtype)
    return torch.cat([own[:, None], negatives - count.log()[:, None]], dim=1).logsumexp(dim=1) - own
