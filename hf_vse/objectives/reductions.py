"""What a row loss needs to know about all negatives of a query, as one number.

Of the logits x of a query's negatives (minus infinity where a candidate is not a negative):

| reduction      | number                 | objectives                               | slope, d number / d x_j     |
|----------------|------------------------|------------------------------------------|-----------------------------|
| `logsumexp`    | log sum_j e^{x_j}      | `nce`, `clip`                            | e^{x_j - number}            |
| `hardest`      | max_j x_j              | `hardnce`, `hardnce_smooth`, `hinge_max` | 1 for the maximum           |
| `hinge_sum`    | sum_j max(0, x_j)      | `hinge_sum`                              | 1 where x_j > 0             |
| `softplus_sum` | sum_j log(1 + e^{x_j}) | `siglip`                                 | 1 / (1 + e^{-x_j})          |

The numbers of two sets of negatives can be merged into that of both. So the similarity matrix is computed tile by
tile, in any order and on several processes, and one pass serves the queries of both modalities.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

State = list[Tensor]
ReductionName = Literal["logsumexp", "hardest", "hinge_sum", "softplus_sum"]


def total(one: State, other: State) -> State:
    """Merges sums."""
    return [a + b for a, b in zip(one, other, strict=True)]


class LogSumExp:
    """State: [log sum e^x]."""

    def reduce(self, logits: Tensor, dim: int, first: int) -> State:
        """The state of a tile: reduces `dim`, along which the candidate indices start at `first`."""
        return [logits.logsumexp(dim)]

    def merge(self, one: State, other: State) -> State:
        return [torch.logaddexp(one[0], other[0])]

    def slopes(self, logits: Tensor, state: State, dim: int) -> Tensor:
        """Derivative of the number by every logit of a tile."""
        finite = state[0].masked_fill(state[0].isneginf(), 0.0)  # a query without negatives
        return (logits - finite.unsqueeze(dim)).exp_()


class HingeSum:
    """State: [sum of max(0, x), sum of the slopes]."""

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

    def term(self, logits: Tensor) -> Tensor:
        return F.softplus(logits)

    def slope(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()


class Hardest:
    """State: [max x, index of the maximum], -1 without negatives. Its gradient is a gather, not a tile."""

    def reduce(self, logits: Tensor, dim: int, first: int) -> State:
        values, places = logits.max(dim)
        return [values, torch.where(values.isneginf(), -1, places + first)]

    def merge(self, one: State, other: State) -> State:
        better = other[0] > one[0]
        return [torch.where(better, b, a) for a, b in zip(one, other, strict=True)]


REDUCTIONS: dict[str, LogSumExp | HingeSum | Hardest] = {
    "logsumexp": LogSumExp(),
    "hardest": Hardest(),
    "hinge_sum": HingeSum(),
    "softplus_sum": SoftplusSum(),
}
