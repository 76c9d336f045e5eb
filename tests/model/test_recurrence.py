import pytest
import torch
from torch import nn

from hf_vse.model.recurrence import prefix_tree, tree_states

LENGTHS = torch.tensor([5, 2, 7, 7, 1, 4])


def sentences(vocabulary: int = 4) -> torch.Tensor:
    """Few words, so that many sentences begin alike; the third and the fourth are equal."""
    ids = torch.randint(1, vocabulary, (len(LENGTHS), 8))
    ids[:, 0] = 1
    ids[3] = ids[2]
    return ids.masked_fill(torch.arange(8)[None, :] >= LENGTHS[:, None], 0)


def towers(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Embedding(4, 3).to(dtype), nn.GRU(3, 5, batch_first=True).to(dtype)


def packed_states(gru, embedding, ids, lengths):
    """The reference: PyTorch's own recurrence over packed sentences; zero beyond a sentence."""
    words = nn.utils.rnn.pack_padded_sequence(embedding(ids), lengths, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(gru(words)[0], batch_first=True, total_length=ids.shape[1])[0]


def run(read, ids, dtype=torch.float64):
    """Valid states and the gradients of all weights, for a loss in which every state has a weight of its own."""
    embedding, gru = towers(dtype)
    states = read(gru, embedding, ids, LENGTHS)
    valid = torch.arange(ids.shape[1])[None, :] < LENGTHS[:, None]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (states * weights)[valid].sum().backward()
    return [states[valid].detach(), *(parameter.grad for parameter in (*embedding.parameters(), *gru.parameters()))]


def test_tree_has_one_node_for_every_distinct_beginning():
    ids = sentences()
    tree = prefix_tree(ids, LENGTHS)
    beginnings = {
        tuple(row[: end + 1]) for row, length in zip(ids.tolist(), LENGTHS, strict=True) for end in range(length)
    }
    assert sum(len(words) for words in tree.words) == len(beginnings) < LENGTHS.sum()
    assert torch.equal(tree.places[2], tree.places[3])
    node_of = {}
    for row, places, length in zip(ids.tolist(), tree.places.tolist(), LENGTHS, strict=True):
        for end in range(length):
            assert node_of.setdefault(places[end], tuple(row[: end + 1])) == tuple(row[: end + 1])


@pytest.mark.parametrize("seed", range(4))
def test_tree_equals_packed_gru_forward_and_backward(seed):
    torch.manual_seed(seed)
    ids = sentences()
    for fast, slow in zip(run(tree_states, ids), run(packed_states, ids), strict=True):
        assert slow.abs().max() > 0
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)  # the recurrence itself is in float32


def test_tree_under_autocast_stays_near_float32():
    ids = sentences()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = run(tree_states, ids, torch.float32)
    for low, full in zip(lowered, run(tree_states, ids, torch.float32), strict=True):
        assert (low - full).norm() < 0.03 * full.norm()
