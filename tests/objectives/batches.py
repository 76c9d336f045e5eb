"""Small batches whose gradients reach one shared weight, and the dense loss of them as the reference."""

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hf_vse.model.losses_vse import contrastive_loss, nce
from hf_vse.objectives.gather import gathered_contrastive_loss

OPTIONS = {"temperature": 0.2, "margin": 0.3, "logit_bias": -1.0}


# Fields of the objective that change nothing by default.
FRAMES = (
    ("nce", {"positive_margin": 0.2}),
    ("nce", {"hardness": 0.7}),
    ("clip", {"positive_margin": -0.4, "hardness": 2.0, "image_weight": 0.75}),
    ("hinge_max", {"image_weight": 0.3}),
    ("nce", {"negatives_kept": 3}),
    ("nce", {"false_negative_gap": 0.1}),
    ("clip", {"false_negative_gap": -0.1, "hardness": 1.5}),
    ("clip", {"false_negative_gap": 0.3, "negatives_kept": 4}),
    ("nce", {"negatives_kept": 10**9, "hardness": 0.5}),
    ("clip", {"negatives_kept": 5, "hardness": 1.0, "positive_margin": 0.1}),
)


def squared(scores: Tensor, positives: Tensor, excluded: Tensor | None, **settings: float | Tensor) -> Tensor:
    """A row loss that no fast way knows."""
    return nce(scores, positives, excluded, temperature=settings["temperature"]).square()


class Batch:
    """Pairs that two weight matrices make of fixed inputs.

    Args:
        pairs: how many.
        ids: whether some pairs share an image; with 2, others share a caption.
        seed: of weights and inputs.
        dtype: of the embeddings.
        captions: of every image.
    """

    def __init__(
        self,
        pairs: int,
        ids: int = False,
        seed: int = 3,
        dtype: torch.dtype = torch.float32,
        dim: int = 4,
        captions: int = 1,
    ):
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(2, 6, dim, generator=generator)
        self.inputs = torch.randn(2, pairs, 6, generator=generator)
        names = ("image_ids", "text_ids")[: int(ids)]
        self.ids = {name: torch.randint(0, max(2, pairs // 2), (pairs,), generator=generator) for name in names}
        self.dtype = dtype
        if captions > 1:
            self.inputs = self.inputs[0], torch.randn(pairs, captions, 6, generator=generator)
            shared = torch.randint(0, 3 * pairs, (pairs, captions), generator=generator)
            self.ids |= {"text_ids": shared} if ids > 1 else {}

    def loss_and_gradients(self, loss, rows: slice = slice(None), **options) -> list[Tensor]:
        """Value of `loss` on some rows, and its gradients by the weights, the temperature and the bias."""
        settings = OPTIONS | options
        weights = self.weights.clone().requires_grad_()
        learned = {name: torch.tensor(settings[name], requires_grad=True) for name in ("temperature", "logit_bias")}
        ids = {name: each[rows] for name, each in self.ids.items()}
        embeds = [F.normalize(self.inputs[side][rows] @ weights[side], dim=-1).to(self.dtype) for side in (0, 1)]
        value = loss(*embeds, **(ids | settings | learned))
        gradients = torch.autograd.grad(value, (weights, *learned.values()), allow_unused=True)
        return [
            value.detach().clone(),
            *(torch.zeros(()) if each is None else each.float().clone() for each in gradients),
        ]

    def reference(self, **options) -> list[Tensor]:
        """The dense loss of one process."""
        loss = contrastive_loss if self.inputs[1].ndim == 2 else partial(gathered_contrastive_loss, negatives="local")
        found = self.loss_and_gradients(loss, **options)
        assert found[0] > 0 and found[1].abs().max() > 0, "nothing to compare"
        return found


def assert_same_together(found: list[Tensor], expected: list[Tensor]) -> None:
    """What each process found, averaged over all of them, is what is expected."""
    for tensor in found:
        dist.all_reduce(tensor)
    assert_same([tensor / dist.get_world_size() for tensor in found], expected)


def assert_same(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype = torch.float32) -> None:
    tolerance = {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
