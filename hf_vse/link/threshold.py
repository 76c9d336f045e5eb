"""The score from which on two records are the same: tuned for F1 on known pairs, or by a stated false-accept rate."""

import numpy as np

FALSE_ACCEPT_RATE = 0.01  # where nobody states one


def threshold_for_f1(scores: np.ndarray, right: np.ndarray, true_pairs: int) -> float:
    """The threshold with the highest F1, halfway between the last link that it keeps and the first that it refuses.

    Args:
        scores: (links,) the score of each link that would be made without a threshold.
        right: (links,) whether it is a true pair.
        true_pairs: how many there are, found or not. F1 at a threshold that keeps n links, r of them right, is
            2 r / (n + true_pairs).

    Raises:
        ValueError: no link is right, so every threshold is as good.
    """
    if not right.any():
        raise ValueError(
            "none of the known pairs would be linked at any threshold, so none can be chosen: check the names in the "
            "labels, or give --threshold NUMBER"
        )
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order].astype(np.float64), right[order]
    f1 = 2 * right.cumsum() / (np.arange(1, len(right) + 1) + true_pairs)
    lower = np.append(scores[1:], -np.inf)
    last = int(np.where(lower < scores, f1, -1).argmax())  # links of equal score are kept or refused together
    return float(scores[last]) if last + 1 == len(scores) else float(scores[last] + lower[last]) / 2


def threshold_for_false_accepts(runner_up_scores: np.ndarray, rate: float) -> float:
    """The threshold that a record without a match exceeds with probability `rate`, without any known pair.

    The best score of a record without a match is the highest among records that are all strangers. So is the
    runner-up's score of a record that has exactly one match, as its best candidate. The threshold is the 1 - rate
    quantile of the runners-up's scores. That assumes that a record has at most one match in the other catalogue, that
    its match is its best candidate, and that records without a match resemble strangers as others do. Records with
    several matches make the threshold too high, many records without a match make it too low, since their
    runner-up is only their second-best stranger: where they are half, several times the rate may be linked.

    Args:
        runner_up_scores: (records,) the second-best score of each record; -inf where there is none.
        rate: share of the records without a match that may be linked, between 0 and 1.

    Raises:
        ValueError: a rate outside, or no record has two candidates.
    """
    if not 0 < rate < 1:
        raise ValueError(f"false_accept_rate must lie between 0 and 1, got {rate}")
    known = runner_up_scores[np.isfinite(runner_up_scores)]
    if not len(known):
        raise ValueError(
            "no record has two candidates, so nothing tells how alike strangers are: give --threshold NUMBER, or "
            "--labels"
        )
    return float(np.quantile(known.astype(np.float64), 1 - rate))
