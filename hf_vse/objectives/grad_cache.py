"""Gradient cache: embeds a large batch in mini-batches, with the gradient of the whole batch (arXiv 2101.06983).

1. Embed all mini-batches without a graph; keep the embeddings, and the random state before each mini-batch.
2. Compute the loss of the whole batch and its gradient by every embedding: the cache.
3. Embed each mini-batch again from its random state, now with a graph, and backpropagate its part of the cache.

A step needs the memory of one mini-batch and of the embeddings, and one forward pass more. Dropout hides the same
units both times. Batch normalisation in training mode sees mini-batches; its running statistics move once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce

import torch
from torch import Tensor, nn

from hf_vse.objectives.exchange import row_counts

Inputs = dict[str, Tensor]


class RandomState:
    """State of the random generators of the CPU and of the device of the inputs."""

    def __init__(self, inputs: Inputs):
        self.device = next(iter(inputs.values())).device
        self.states = generator_states(self.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The same random numbers again; afterwards the generators continue as if nothing had been drawn."""
        here = generator_states(self.device)
        set_generator_states(self.device, self.states)
        try:
            yield
        finally:
            set_generator_states(self.device, here)


def generator_states(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *(get(*which) for get, _, which in device_generator(device))]


def set_generator_states(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state, (_, put, which) in zip(states[1:], device_generator(device), strict=True):
        put(state, *which)


def device_generator(device: torch.device) -> list[tuple[Callable, Callable, tuple]]:
    """How the generator of a device is read and set, and its arguments; Apple's GPU has one, without a number."""
    if device.type == "cpu":
        return []
    module = torch.get_device_module(device)
    return [(module.get_rng_state, module.set_rng_state, () if device.type == "mps" else (device,))]


@contextmanager
def unmoved_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisations do not change their running statistics."""
    norms = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.training]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def mini_batches(inputs: Inputs, size: int) -> list[Inputs]:
    """Splits inputs into parts of nearly equal length, at most `size` rows; the same number on every process.

    A sharded model is gathered in every forward pass, so all processes need equally many. Parts are larger than `size`
    only where a process has fewer rows than others need parts.
    """
    counts = row_counts(next(iter(inputs.values())))
    parts = min(-(-max(counts) // size), min(counts))
    of_parts = zip(*(tensor.tensor_split(parts) for tensor in inputs.values()), strict=True)
    return [dict(zip(inputs, part, strict=True)) for part in of_parts]


def cached_loss(
    model: nn.Module,
    embed: Callable[[Inputs], Sequence[Tensor]],
    parts: list[Inputs],
    loss: Callable[..., Tensor],
    backward: Callable[[Tensor], None],
    unsynchronised: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """The loss of a batch that is too large to embed at once.

    Args:
        model: the model that `embed` calls.
        embed: mini-batch -> (rows, dim) embeddings, followed by scalars of the model (temperature, bias).
        parts: the mini-batches.
        loss: embeddings of the whole batch, scalars -> loss.
        backward: backpropagates a mini-batch; called for all but the last.
        unsynchronised: context in which data-parallel training adds gradients without exchanging them.

    Returns:
        The loss. Its backward pass, left to the caller, is that of the last mini-batch, so gradients are exchanged
        between processes once.
    """
    states, embedded = [], []
    with torch.no_grad(), unsynchronised(), unmoved_statistics(model):
        for part in parts:
            states.append(RandomState(part))
            embedded.append(embed(part))
    whole = [concatenated(each).detach().requires_grad_() for each in zip(*embedded, strict=True)]
    with torch.enable_grad():
        value = loss(*whole)
    gradients = [
        torch.zeros_like(each) if gradient is None else gradient
        for each, gradient in zip(whole, torch.autograd.grad(value, whole, allow_unused=True), strict=True)
    ]
    lengths = [len(each[0]) for each in embedded]
    caches = list(zip(*(gradient.split(lengths) for gradient in gradients if gradient.ndim), strict=True))
    with unsynchronised():
        for part, state, cache in zip(parts[:-1], states, caches, strict=False):
            with state.restored():
                backward(inner_product(embed(part), cache))
    with states[-1].restored():
        of_scalars = [gradient for gradient in gradients if not gradient.ndim]
        replayed = inner_product(embed(parts[-1]), [*caches[-1], *of_scalars])
    return value.detach() + replayed - replayed.detach()


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Embeddings concatenated; of a scalar, which is the same in all parts, the first."""
    return torch.cat(tuple(parts)) if parts[0].ndim else parts[0]


def inner_product(outputs: Sequence[Tensor], cache: Sequence[Tensor]) -> Tensor:
    """A scalar whose gradient with respect to each output is the cached gradient."""
    return reduce(torch.add, [(output * gradient).sum() for output, gradient in zip(outputs, cache, strict=False)])
