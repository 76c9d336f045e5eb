"""Soft targets against a double loop in float64, forward and backward, in every execution."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hf_vse.objectives.execution import Execution, execute_loss
from hf_vse.objectives.past import Candidates, Past
from hf_vse.objectives.soft_targets import SoftTargets
from tests.objectives.batches import Batch, assert_same
from tests.processes import in_processes

PAIRS, T, WEIGHT, THEIRS = 11, 0.2, 0.3, 0.1
WAYS = (("dense", None), ("chunked", 3), ("streamed", 4), ("auto", None))


def units(*shape: int, seed: int = 1) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def double_loop(images: Tensor, texts: Tensor, soft: SoftTargets) -> Tensor:
    """The mean of both cross entropies over the pairs; texts (B, K, dim)."""
    total, captions = torch.zeros((), dtype=torch.float64), texts.shape[1]
    flat, theirs = texts.flatten(0, 1), soft.texts.double().reshape(len(texts) * captions, -1)
    for i, image in enumerate(images):
        shares = torch.stack([soft.images[i].double() @ each / THEIRS for each in theirs]).exp()
        logits = torch.stack([image @ each / T for each in flat])
        total = total - sum(shares / shares.sum() * (logits - logits.exp().sum().log()))
    for j, text in enumerate(flat):
        shares = torch.stack([theirs[j] @ each.double() / THEIRS for each in soft.images]).exp()
        logits = torch.stack([text @ each / T for each in images])
        total = total - sum(shares / shares.sum() * (logits - logits.exp().sum().log())) / captions
    return total / len(images)


def test_soft_targets_are_the_cross_entropy_of_a_double_loop():
    images, texts = (units(PAIRS, 4, seed=seed).requires_grad_() for seed in (1, 2))
    soft = SoftTargets(units(PAIRS, 5, seed=3), units(PAIRS, 5, seed=4), WEIGHT, THEIRS)
    options = {"temperature": T, "image_ids": torch.arange(PAIRS) // 2, "text_ids": torch.arange(PAIRS)}
    past = Past(*(Candidates(units(7, 4, seed=seed), torch.full((7, 2), -1)) for seed in (5, 6)))
    for given in ({}, {"past": past}):
        hard = execute_loss(images, texts, execution=Execution("dense"), **options, **given)
        expected = (1 - WEIGHT) * hard + WEIGHT * double_loop(images.double(), texts.double()[:, None], soft)
        gradients = torch.autograd.grad(expected, (images, texts))
        for name, size in WAYS:
            found = execute_loss(
                images, texts, execution=Execution(name, chunk_size=size), soft=soft, **options, **given
            )
            torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
            for one, other in zip(torch.autograd.grad(found, (images, texts)), gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positives", ["each", "any", "centre"])
def test_soft_targets_of_several_captions_are_those_of_a_double_loop(positives):
    images, texts = units(5, 4, seed=1).requires_grad_(), units(5, 3, 4, seed=2).requires_grad_()
    soft = SoftTargets(units(5, 6, seed=3), units(5, 3, 6, seed=4), WEIGHT, THEIRS)
    hard = execute_loss(images, texts, temperature=T, positives=positives)
    ours, theirs = texts.double(), soft
    if positives == "centre":
        ours = F.normalize(ours.mean(dim=1, keepdim=True), dim=-1)
        theirs = soft._replace(texts=F.normalize(soft.texts.mean(dim=1, keepdim=True), dim=-1))
    expected = (1 - WEIGHT) * hard + WEIGHT * double_loop(images.double(), ours, theirs)
    gradients = torch.autograd.grad(expected, (images, texts))
    for name, size in WAYS:
        execution = Execution(name, chunk_size=size)
        found = execute_loss(images, texts, execution=execution, soft=soft, positives=positives, temperature=T)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        for one, other in zip(torch.autograd.grad(found, (images, texts)), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_pair_that_is_no_negative_keeps_its_share():
    """The mask makes no difference to soft targets, which pull two pairs of one image together."""
    images, texts = (units(2, 4, seed=seed).requires_grad_() for seed in (1, 2))
    alike = torch.ones(2, 1)
    found = [
        execute_loss(images, texts, image_ids=ids, soft=SoftTargets(alike, alike, 1.0, THEIRS))
        for ids in (torch.tensor([3, 3]), torch.tensor([3, 4]))
    ]
    assert torch.equal(*found)
    (gradient,) = torch.autograd.grad(found[0], images)
    closer = images - 0.1 * gradient
    assert ((closer @ texts.T).softmax(1) - 0.5).abs().sum() < ((images @ texts.T).softmax(1) - 0.5).abs().sum()


@pytest.mark.parametrize("captions", [1, 3])
def test_distance_is_the_mean_over_pairs(captions):
    images, texts = units(5, 4, seed=1), units(5, captions, 4, seed=2)
    soft = SoftTargets(units(5, 4, seed=3), units(5, captions, 4, seed=4), 0.0, THEIRS, 0.7)
    expected = sum(
        sum((a - b) ** 2 for a, b in zip(images[i].tolist(), soft.images[i].tolist(), strict=True))
        + sum((a - b) ** 2 for k in range(captions)
              for a, b in zip(texts[i, k].tolist(), soft.texts[i, k].tolist(), strict=True)) / captions
        for i in range(5)
    ) / 5  # fmt: skip
    given = {"temperature": T}
    if captions == 1:
        texts, soft = texts[:, 0], soft._replace(texts=soft.texts[:, 0])
    else:
        given["positives"] = "each"
    found = execute_loss(images, texts, soft=soft, **given) - execute_loss(images, texts, **given)
    assert found.item() == pytest.approx(0.7 * expected, abs=1e-5)
    with pytest.raises(ValueError, match="the model's have 4 dimensions, the teacher's 6"):
        execute_loss(images, texts, soft=soft._replace(images=units(5, 6), texts=units(*texts.shape[:-1], 6)), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "hinge_max"}, "soft_targets need an objective with a temperature, loss_type 'hinge_max'"),
        ({"execution": Execution("auto", "ring")}, "soft_targets are shares of all candidates at once"),
    ],
)
def test_soft_targets_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        execute_loss(units(3, 4), units(3, 4), soft=SoftTargets(units(3, 2), units(3, 2), 0.5, 0.1), **options)


def check_processes(rank: int, world: int) -> None:
    bounds = [0, 4, 5, PAIRS]
    local = slice(bounds[rank], bounds[rank + 1])
    soft = SoftTargets(units(PAIRS, 4, seed=3), units(PAIRS, 4, seed=4), WEIGHT, THEIRS, 0.5)
    part = soft._replace(images=soft.images[local], texts=soft.texts[local])
    for loss_type in ("nce", "siglip"):
        batch, options = Batch(PAIRS, 2), {"loss_type": loss_type}
        execution = Execution("dense", "local")
        expected = batch.loss_and_gradients(execute_loss, execution=execution, soft=soft, **options)
        for name in ("dense", "chunked", "streamed"):
            execution = Execution(name, chunk_size=2)
            found = batch.loss_and_gradients(execute_loss, local, execution=execution, soft=part, **options)
            for tensor in found:
                dist.all_reduce(tensor)
            assert_same([tensor / world for tensor in found], expected)


def test_soft_targets_on_processes_equal_those_on_one():
    in_processes(3, check_processes, 3)
