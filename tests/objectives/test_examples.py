"""The example objectives of `scripts/examples/objectives/` against their formulas, by loops over plain numbers."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hf_vse.model.losses_vse import OBJECTIVES, nce
from hf_vse.objectives.own import load_objective
from tests.objectives.test_own import same_table_afterwards

__all__ = ["same_table_afterwards"]  # a fixture of every test here
EXAMPLES = Path(__file__).parents[2] / "scripts" / "examples" / "objectives"
T, GAP = 0.3, 0.4


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dcl(own: float, others: list[float]) -> float:
    return math.log(sum(math.exp(s / T) for s in others)) - own / T if others else 0.0


def cacr(own: float, others: list[float]) -> float:
    shares = [math.exp(-2 * (2 - 2 * s)) for s in others]
    return 2 - 2 * own - sum(w / sum(shares) * (2 - 2 * s) for w, s in zip(shares, others, strict=True))


def cmim(own: float, others: list[float]) -> float:
    mean = sum(math.exp(s / T) for s in others) / len(others) if others else 0.0
    return -math.log(math.exp(own / T) / (math.exp(own / T) + mean))


def simlap(own: float, others: list[float]) -> float:
    return math.log(1 + sum(math.exp((s - own) / T) for s in others))


def pcmepp(own: float, others: list[float]) -> float:
    decisions = [-math.log(sigmoid(5 - 5 * (2 - 2 * own)))]
    decisions += [-math.log(1 - sigmoid(5 - 5 * (2 - 2 * s))) for s in others]
    return sum(decisions) / len(decisions)


def pcmepp_pseudo(own: float, others: list[float]) -> float:
    decisions = [-math.log(sigmoid(5 - 5 * (2 - 2 * own)))]
    for s in others:
        taken = sigmoid(5 - 5 * (2 - 2 * s))
        decisions.append(-math.log(taken if s >= own else 1 - taken))
    return pcmepp(own, others) + 0.1 * sum(decisions) / len(decisions)


def accept(own: float, others: list[float]) -> float:
    accepted = math.exp(own / T) + sum(math.exp(s / T) for s in others if s - own > GAP)
    return -math.log(accepted / (math.exp(own / T) + sum(math.exp(s / T) for s in others)))


FORMULAS = {each.__name__: each for each in (accept, dcl, cacr, cmim, simlap, pcmepp, pcmepp_pseudo)}


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = 2 * torch.rand(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1
    excluded = torch.zeros(4, 6, dtype=torch.bool)
    excluded[0, 1] = excluded[1, 1:] = excluded[3, 5] = True  # the second query has no negatives
    return scores.requires_grad_(), torch.tensor([2, 0, 5, 3]), excluded


def rows_of(name: str, scores, positives, excluded) -> torch.Tensor:
    chosen = OBJECTIVES[load_objective(f"{EXAMPLES / name.partition('_')[0]}.py:{name}")]
    return chosen.rows(scores, positives, excluded, {"temperature": T, "false_negative_gap": GAP})


def test_every_example_has_its_formula_here():
    assert FORMULAS.keys() - {"pcmepp_pseudo"} == {path.stem for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_an_example_is_its_formula(name, masked):
    scores, positives, excluded = batch()
    found = rows_of(name, scores, positives, excluded if masked else None)
    for i, positive in enumerate(positives.tolist()):
        others = [
            scores[i, j].item() for j in range(scores.shape[1]) if j != positive and not (masked and excluded[i, j])
        ]
        assert found[i].item() == pytest.approx(FORMULAS[name](scores[i, positive].item(), others), rel=1e-12)


@pytest.mark.parametrize("name", sorted(FORMULAS.keys() - {"cacr"}))
def test_the_gradient_of_an_example_is_that_of_its_formula(name):
    scores, positives, excluded = batch()
    (found,) = torch.autograd.grad(rows_of(name, scores, positives, excluded).sum(), scores)
    values, step = scores.tolist(), 1e-6
    for i, positive in enumerate(positives.tolist()):
        for j in range(scores.shape[1]):
            ends = []
            for sign in (1, -1):
                row = list(values[i])
                row[j] += sign * step
                others = [s for k, s in enumerate(row) if k != positive and not excluded[i, k]]
                ends.append(FORMULAS[name](row[positive], others))
            assert found[i, j].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


def test_cacr_holds_its_weights_fixed_so_that_no_negative_is_attracted():
    scores, positives, excluded = batch()
    (found,) = torch.autograd.grad(rows_of("cacr", scores, positives, excluded).sum(), scores)
    own = F.one_hot(positives, 6).bool()
    assert (found[own] == -2).all() and (found[~own & ~excluded] > 0).all() and (found[excluded] == 0).all()
    total = found.masked_fill(own, 0.0).sum(dim=1)  # 2 w summed over the negatives
    torch.testing.assert_close(total, torch.tensor([2, 0, 2, 2], dtype=torch.float64))


def test_what_the_examples_say_about_nce_holds():
    scores, positives, excluded = batch()
    plain = nce(scores, positives, excluded, temperature=T)
    torch.testing.assert_close(rows_of("simlap", scores, positives, excluded), plain)
    gaps = (scores - scores.gather(1, positives[:, None])).masked_fill(excluded, -2)
    less = rows_of("accept", scores, positives, excluded) < plain - 1e-9
    assert torch.equal(less, (gaps > GAP).any(dim=1)) and 0 < less.sum() < 4
    one = nce(scores, positives, None, temperature=T, positive_margin=-T * math.log(5))
    torch.testing.assert_close(rows_of("cmim", scores, positives, None), one)
