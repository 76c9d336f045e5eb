"""What a row loss needs to know about all negatives of a query, as one number or a few.

Of the logits x of a query's negatives (minus infinity where a candidate is not a negative):

| reduction           | number                     | objectives                               | slope by x_j          |
|---------------------|----------------------------|------------------------------------------|-----------------------|
| `logsumexp`         | log sum_j e^{x_j}          | `nce`, `clip`                            | e^{x_j - number}      |
| `hardest`           | max_j x_j                  | `hardnce`, `hardnce_smooth`, `hinge_max` | 1 for the maximum     |
| `hardest_few`       | the k largest x_j          | `nce`, `clip` with `negatives_kept`      | 1 for each of its own |
| `guarded_logsumexp` | log sum_{x_j <= 0} e^{x_j} | `nce`, `clip` with `false_negative_gap`  | e^{x_j - number} or 0 |
| `hinge_sum`         | sum_j max(0, x_j)          | `hinge_sum`                              | 1 where x_j > 0       |
| `softplus_sum`      | sum_j log(1 + e^{x_j})     | `siglip`                                 | 1 / (1 + e^{-x_j})    |

The numbers of two sets of negatives can be merged into that of both. So the similarity matrix is computed tile by
tile, in any order and on several processes, and one pass serves the queries of both modalities.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

State = list[Tensor]


def total(one: State, other: State) -> State:
    """Merges sums."""
    return [a + b for a, b in zip(one, other, strict=True)]


class LogSumExp:
    """State: [log sum e^x]."""

    name = "logsumexp"

    def reduce(self, logits: Tensor, dim: int, first: int) -> State:
        """The state of a tile: reduces `dim`, along which the candidate indices start at `first`."""
        return [logits.logsumexp(dim)]

    def merge(self, one: State, other: State) -> State:
        return [torch.logaddexp(one[0], other[0])]

    def slopes(self, logits: Tensor, state: State, dim: int) -> Tensor:
        """Derivative of the number by every logit of a tile."""
        finite = state[0].masked_fill(state[0].isneginf(), 0.0)  # a query without negatives
        return (logits - finite.unsqueeze(dim)).exp_()


def without_positive(logits: Tensor) -> Tensor:
    """Minus infinity for logits above zero: of x - o, with o the greatest that a true negative may have."""
    return logits.masked_fill(logits > 0, float("-inf"))


class GuardedLogSumExp(LogSumExp):
    """State: [log sum e^x over x <= 0]."""

    name = "guarded_logsumexp"

    def reduce(self, logits: Tensor, dim: int, first: int) -> State:
        return super().reduce(without_positive(logits), dim, first)

    def slopes(self, logits: Tensor, state: State, dim: int) -> Tensor:
        return super().slopes(without_positive(logits), state, dim)


class HingeSum:
    """State: [sum of max(0, x), sum of the slopes]."""

    name = "hinge_sum"
    merge = staticmethod(total)

    def reduce(self, logits: Tensor, dim: int, first: int) -> State:
        return [self.term(logits).sum(dim), self.slope(logits).sum(dim)]

    def slopes(self, logits: Tensor, state: State, dim: int) -> Tensor:
        return self.slope(logits)

    def term(self, logits: Tensor) -> Tensor:
        return logits.clamp(min=0)

    def slope(self, logits: Tensor) -> Tensor:
        return logits.sign().clamp_(min=0)


class SoftplusSum(HingeSum):
    """State: [sum of log(1 + e^x), sum of the slopes]."""

    name = "softplus_sum"

    def term(self, logits: Tensor) -> Tensor:
        return F.softplus(logits)

    def slope(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class GuardedCount(HingeSum):
    """State: [how many x <= 0, nothing]. It has no gradient."""

    name = "guarded_count"

    def term(self, logits: Tensor) -> Tensor:
        return without_positive(logits).isfinite().float()

    def slope(self, logits: Tensor) -> Tensor:
        return torch.zeros_like(logits)


class Hardest:
    """State: [max x, index of the maximum], -1 without negatives. Its gradient is a gather, not a tile."""

    name = "hardest"

    def reduce(self, logits: Tensor, dim: int, first: int) -> State:
        values, places = logits.max(dim)
        return [values, torch.where(values.isneginf(), -1, places + first)]

    def merge(self, one: State, other: State) -> State:
        better = other[0] > one[0]
        return [torch.where(better, b, a) for a, b in zip(one, other, strict=True)]


class HardestFew(Hardest):
    """State: [the k largest x, their indices], (queries, k); minus infinity and -1 where negatives are fewer."""

    name = "hardest_few"

    def __init__(self, kept: int, guarded: bool = False):
        self.kept, self.guarded = kept, guarded

    def reduce(self, logits: Tensor, dim: int, first: int) -> State:
        logits = (without_positive(logits) if self.guarded else logits).movedim(dim, -1)
        values, places = logits.topk(min(self.kept, logits.shape[-1]))
        missing = (0, self.kept - values.shape[-1])
        places = torch.where(values.isneginf(), -1, places + first)
        return [F.pad(values, missing, value=float("-inf")), F.pad(places, missing, value=-1)]

    def merge(self, one: State, other: State) -> State:
        both = [torch.cat(pair, dim=-1) for pair in zip(one, other, strict=True)]
        values, chosen = both[0].topk(self.kept)
        return [values, *(places.gather(-1, chosen) for places in both[1:])]


Sum = LogSumExp | HingeSum  # every negative of a tile has a slope
Reduction = Sum | Hardest
