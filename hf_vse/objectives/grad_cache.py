"""A batch of any size in mini-batches, with the gradient of the whole batch (Gao et al., arXiv 2101.06983).

1. Embed all mini-batches without keeping anything but the embeddings and the random state each began with.
2. Compute the loss of the whole batch and its gradient by every embedding: the cache.
3. Embed each mini-batch again from the same random state, now with a graph, and send its part of the cache back.

The memory of a step is that of one mini-batch and of the embeddings; its time grows by one forward pass. Dropout falls
on the same units both times. Batch normalisation in training mode sees mini-batches; its running statistics move once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from hf_vse.objectives.exchange import row_counts

Inputs = dict[str, Tensor]


class RandomState:
    """The state of the generators that a forward pass draws from: that of the CPU, and that of the inputs' device."""

    def __init__(self, inputs: Inputs):
        self.device = next(iter(inputs.values())).device
        self.states = generator_states(self.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Draws the same numbers again; afterwards the generators go on as if nothing had been drawn."""
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
    """How the generator of a device is read and set, and which one is meant; Apple's GPU has but one and no number."""
    if device.type == "cpu":
        return []
    module = torch.get_device_module(device)
    return [(module.get_rng_state, module.set_rng_state, () if device.type == "mps" else (device,))]


@contextmanager
def unmoved_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisations keep their running statistics, whatever passes through them."""
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
    """Parts of nearly equal length of at most `size` rows; equally many on all processes, none of them empty.

    A sharded model is gathered in every forward pass, so that all have to go through it equally often. Parts are
    larger than `size` only where a process has not as many rows as others need parts.
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
    """The loss of a batch that is too large to be embedded at once.

    Args:
        model: what `embed` calls.
        embed: mini-batch -> (rows, dim) embeddings, followed by scalars of the model (temperature, bias).
        parts: the mini-batches.
        loss: embeddings of the whole batch, scalars -> loss.
        backward: sends back a mini-batch, all but the last.
        unsynchronised: context in which data-parallel training adds up gradients without exchanging them.

    Returns:
        The loss. Its backward pass, left to the caller, is that of the last mini-batch, so that gradients are
        exchanged between processes once, and then.
    """
    states, embedded = [], []
    with torch.no_grad(), unsynchronised(), unmoved_statistics(model):
        for part in parts:
            states.append(RandomState(part))
            embedded.append(embed(part))
    whole = [joined(each).detach().requires_grad_() for each in zip(*embedded, strict=True)]
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


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Embeddings one below the other; of a scalar, which is the same in all parts, the first."""
    return torch.cat(tuple(parts)) if parts[0].ndim else parts[0]


def inner_product(outputs: Sequence[Tensor], cache: Sequence[Tensor]) -> Tensor:
    """A number whose gradient by each output is its cached gradient."""
    return sum((output * gradient).sum() for output, gradient in zip(outputs, cache, strict=False))
