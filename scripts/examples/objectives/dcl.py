"""Decoupled contrastive learning (Yeh et al., arXiv 2110.06848): `nce` without the positive in the normaliser.

hf-vse train RECIPE --loss_type scripts/examples/objectives/dcl.py:dcl
"""

from hf_vse.model.losses_vse import negative_scores, positive_scores


def dcl(scores, positives, excluded, *, temperature):
    """log( sum_{j is negative} e^{s_j/t} ) - p/t

    Decoupled contrastive learning (Yeh et al., arXiv 2110.06848): the positive is not in the normaliser.
    """
    logits = scores / temperature
    negatives = negative_scores(logits, positives, excluded)
    rows = negatives.logsumexp(dim=1) - positive_scores(logits, positives)
    return rows.where(negatives.isfinite().any(dim=1), 0.0)  # a query without negatives teaches nothing
