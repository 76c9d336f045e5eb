"""A gated recurrent unit that computes once what several sentences of a batch begin with.

Captions are short and begin alike ("<start> a man in a ..."). A state depends only on the words read so far, so every
distinct beginning of a batch is one node of a prefix tree (a trie), and the recurrence runs over the nodes, level by
level. There is no padding, nothing to sort, and the input half of the gates is computed once for each distinct word.
Of the states of 128 Flickr8k captions 18 % fall away. The gradient is written out, which turns the many small products
of the weight gradient into one. Results equal those of `torch.nn.GRU`, forward and backward, up to rounding.

Made for the CPU; on a GPU, where the launch of many small operations costs more than they save, cuDNN is faster. It is
not part of the published model: `GRUTextTower` reads word by word there, and with this file where hf_vse is installed.
"""

from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hf_vse.model.towers_vse import GRUTextTower


class PrefixTree(NamedTuple):
    """The distinct beginnings of a batch of sentences; the nodes are numbered level by level.

    `words[t] (nodes of level t,)` the row of each node's last word, `parents[t]` its place in level t - 1, and
    `places (batch, length)` the node of every position; zero where there is padding.
    """

    words: list[Tensor]
    parents: list[Tensor]
    places: Tensor


def prefix_tree(words: Tensor, lengths: Tensor) -> PrefixTree:
    """(batch, length) integers from zero on and (batch,) valid positions of each row -> their tree."""
    vocabulary = int(words.max()) + 1
    node = torch.zeros_like(lengths)
    places = torch.zeros_like(words)
    tree = PrefixTree([], [], places)
    total = 0
    for level in range(int(lengths.max())):
        reading = (lengths > level).nonzero()[:, 0]
        keys, inverse = torch.unique(node[reading] * vocabulary + words[reading, level], return_inverse=True)
        tree.words.append(keys % vocabulary)
        tree.parents.append(keys // vocabulary)
        node[reading] = inverse
        places[reading, level] = inverse + total
        total += len(keys)
    return tree


class TreeRecurrence(torch.autograd.Function):
    """Runs the recurrence of `torch.nn.GRU` over the nodes of a tree.

    With r, z = sigmoid(gates), q = h W_n + b_n and n = tanh(gate + r q), a state follows from that of its parent h by
    h' = n + z (h - n).
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor, tree: PrefixTree) -> Tensor:
        """Input gates of the words (words, 3 * hidden), weight (3 * hidden, hidden), bias -> (nodes, hidden)."""
        hidden = weight.shape[1]
        ends = accumulate(len(words) for words in tree.words)
        levels = [slice(end - len(words), end) for words, end in zip(tree.words, ends, strict=True)]
        r_z = weight.new_empty(levels[-1].stop, 2 * hidden, dtype=torch.float32)
        h, q, n, states = (r_z.new_empty(len(r_z), hidden) for _ in range(4))
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
        with torch.autocast("cpu", enabled=False):
            factor = weight.to(dtype).T
            above = r_z.new_zeros(1, hidden)
            for level, words, parents in zip(levels, tree.words, tree.parents, strict=True):
                torch.index_select(above, 0, parents, out=h[level])
                gates = inputs[words].float()
                recurrent = (h[level].to(dtype) @ factor).float() + bias
                torch.sigmoid(gates[:, : 2 * hidden] + recurrent[:, : 2 * hidden], out=r_z[level])
                q[level] = recurrent[:, 2 * hidden :]
                torch.tanh(gates[:, 2 * hidden :].addcmul_(r_z[level, :hidden], q[level]), out=n[level])
                above = torch.lerp(n[level], h[level], r_z[level, hidden:], out=states[level])
        ctx.save_for_backward(inputs, weight, bias, h, r_z, n, q)
        ctx.tree, ctx.levels, ctx.dtype = tree, levels, dtype
        return states.to(inputs.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        inputs, weight, bias, h, r_z, n, q = ctx.saved_tensors
        hidden = weight.shape[1]
        r, z = r_z.split(hidden, dim=1)
        of_n = (1 - z).mul_(1 - n * n)  # d h' / d(argument of tanh), and likewise for the arguments of the sigmoids
        of_z = (h - n).mul_(z).mul_(1 - z)
        of_r = (1 - r).mul_(r).mul_(q)
        grad = grad.float().clone()
        of_gates = grad.new_empty(len(grad), 3 * hidden)
        factor = weight.to(ctx.dtype)
        for level in reversed(range(len(ctx.levels))):
            nodes = ctx.levels[level]
            above = of_gates[nodes]
            torch.mul(grad[nodes], of_n[nodes], out=above[:, 2 * hidden :])
            torch.mul(grad[nodes], of_z[nodes], out=above[:, hidden : 2 * hidden])
            torch.mul(above[:, 2 * hidden :], of_r[nodes], out=above[:, :hidden])
            if level:
                of_q = above[:, 2 * hidden :] * r[nodes]
                to_parent = (above[:, : 2 * hidden].to(ctx.dtype) @ factor[: 2 * hidden]).float()
                to_parent += of_q.to(ctx.dtype) @ factor[2 * hidden :]
                to_parent.addcmul_(grad[nodes], z[nodes])
                grad[ctx.levels[level - 1]].index_add_(0, ctx.tree.parents[level], to_parent)
        of_inputs = of_gates.new_zeros(inputs.shape).index_add_(0, torch.cat(ctx.tree.words), of_gates)
        of_gates[:, 2 * hidden :].mul_(r)
        of_weight = (of_gates.T.to(ctx.dtype) @ h.to(ctx.dtype)).to(weight.dtype)
        return of_inputs.to(inputs.dtype), of_weight, of_gates.sum(dim=0).to(bias.dtype), None


def tree_states(gru: nn.GRU, embedding: nn.Embedding, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """What `gru(embedding(input_ids))` gives: (batch, length) ids, (batch,) words of each -> (batch, length, hidden).

    Beyond its own length a sentence has the state of the batch's first node; pooling leaves these positions out.
    """
    words, rows = torch.unique(input_ids, return_inverse=True)
    tree = prefix_tree(rows, lengths)
    of_inputs, of_states, bias_of_inputs, bias_of_states = gru.all_weights[0]
    inputs = F.linear(embedding(words), of_inputs, bias_of_inputs)
    return F.embedding(tree.places, TreeRecurrence.apply(inputs, of_states, bias_of_states, tree))


def read_once(self: GRUTextTower, layer: nn.Module, words: Tensor, ids: Tensor | None, lengths: Tensor) -> Tensor:
    """`GRUTextTower.read` on the prefix tree, on the CPU and where equal words have equal vectors."""
    here = words.device.type == "cpu" and not torch.compiler.is_compiling()
    alike = not (self.training and self.dropout.p)
    if here and alike and ids is not None and isinstance(layer, nn.GRU):
        return tree_states(layer, self.embedding, ids, lengths)
    return layer(words)[0]


GRUTextTower.read = read_once  # type: ignore[method-assign]  # the published model reads word by word
