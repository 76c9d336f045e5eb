import pytest
import torch

from hf_vse.model.pooling_vse import GPO_TEMPERATURE, Pooling, reverse_valid

LENGTHS = [4, 1, 3]


def states_and_mask():
    mask = torch.arange(4)[None, :] < torch.tensor(LENGTHS)[:, None]
    return torch.randn(3, 4, 6), mask


@pytest.mark.parametrize(
    ("pooling_type", "naive"),
    [
        ("mean", lambda row: row.mean(dim=0)),
        ("max", lambda row: row.amax(dim=0)),
        ("last", lambda row: row[-1]),
        ("cls", lambda row: row[0]),
    ],
)
def test_pooling_equals_a_loop_over_unpadded_rows(pooling_type, naive):
    states, mask = states_and_mask()
    pooled = Pooling(pooling_type)(states, mask, None)
    expected = torch.stack([naive(row[:length]) for row, length in zip(states, LENGTHS, strict=True)])
    torch.testing.assert_close(pooled, expected)


def naive_generalized_pooling(operator, row):
    """One unpadded set: sort, weigh the ranks by a bidirectional GRU over their encoding."""
    encoding = operator.rank_encoding(len(row), row)[None]
    ahead = operator.forward_gru(encoding)[0]
    behind = operator.backward_gru(encoding.flip(1))[0].flip(1)
    weights = (operator.score((ahead + behind) / 2)[0, :, 0] / GPO_TEMPERATURE).softmax(dim=0)
    return (row.sort(dim=0, descending=True).values * weights[:, None]).sum(dim=0)


def test_generalized_pooling_equals_a_loop_over_unpadded_sets():
    states, mask = states_and_mask()
    pooling = Pooling("gpo")
    pooled = pooling(states, mask, None)
    rows = zip(states, LENGTHS, strict=True)
    expected = torch.stack([naive_generalized_pooling(pooling.learned, row[:length]) for row, length in rows])
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


def test_padding_never_matters():
    states, mask = states_and_mask()
    noisy = states.masked_fill(~mask[:, :, None], 1e4)
    for pooling_type in ("mean", "max", "last", "cls", "gpo"):
        pooling = Pooling(pooling_type)
        torch.testing.assert_close(pooling(noisy, mask, None), pooling(states, mask, None))


def test_pooler_needs_a_pooled_output():
    states, mask = states_and_mask()
    with pytest.raises(ValueError, match="'pooler' needs a tower with a pooled output"):
        Pooling("pooler")(states, mask, None)


def test_reverse_valid_turns_each_row_within_its_length():
    row = torch.arange(4.0)[None, :, None]
    assert reverse_valid(row, torch.tensor([3]))[0, :, 0].tolist() == [2, 1, 0, 3]
