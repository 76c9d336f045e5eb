"""Soft targets against a double loop in float64, forward and backward, in every execution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.objectives.execution import Execution, execute_loss
from hf_vse.objectives.past import Candidates, Past
from hf_vse.objectives.soft_targets import SoftTargets
from tests.objectives.batches import Batch, assert_same_together
from tests.processes import in_processes

PAIRS, T, WEIGHT, THEIRS = 11, 0.2, 0.3, 0.1
WAYS = (("dense", None), ("chunked", 3), ("streamed", 4), ("auto", None))


def units(*shape: int, seed: int = 1) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def double_loop(images: Tensor, texts: Tensor, theirs: Tensor) -> Tensor:
    """The mean of both cross entropies over the pairs; texts (B, K, dim), the teacher's scores (B, B * K)."""
    total, captions, flat = torch.zeros((), dtype=torch.float64), texts.shape[1], texts.flatten(0, 1)
    for i, image in enumerate(images):
        shares = torch.stack([theirs[i, j].double() / THEIRS for j in range(len(flat))]).exp()
        logits = torch.stack([image @ each / T for each in flat])
        total = total - sum(shares / shares.sum() * (logits - logits.exp().sum().log()))
    for j, text in enumerate(flat):
        shares = torch.stack([theirs[i, j].double() / THEIRS for i in range(len(images))]).exp()
        logits = torch.stack([text @ each / T for each in images])
        total = total - sum(shares / shares.sum() * (logits - logits.exp().sum().log())) / captions
    return total / len(images)


def products(soft: SoftTargets) -> Tensor:
    texts = soft.texts.double().reshape(-1, soft.texts.shape[-1])
    return torch.stack([torch.stack([image @ text for text in texts]) for image in soft.images.double()])


def given_scores(captions: int) -> tuple[SoftTargets, Tensor]:
    """Places of a batch in a table of scores, some of them unknown, and the scores there."""
    generator = torch.Generator().manual_seed(7)
    images, texts = torch.randperm(9, generator=generator)[:5], torch.randperm(9 * captions, generator=generator)
    texts = texts[: 5 * captions]
    unknown = torch.rand(9, 9 * captions, generator=generator) < 0.3
    unknown[images.repeat_interleave(captions), texts] = False
    table = torch.randn(9, 9 * captions, generator=generator).half().masked_fill(unknown, -torch.inf)
    there = torch.stack([torch.stack([table[row, column] for column in texts]) for row in images]).double()
    assert there.isneginf().any()
    places = images[:, None], texts.view(5, captions, 1) if captions > 1 else texts[:, None]
    return SoftTargets(*places, WEIGHT, THEIRS, scores=table), there


def test_soft_targets_are_the_cross_entropy_of_a_double_loop():
    images, texts = (units(PAIRS, 4, seed=seed).requires_grad_() for seed in (1, 2))
    soft = SoftTargets(units(PAIRS, 5, seed=3), units(PAIRS, 5, seed=4), WEIGHT, THEIRS)
    options = {"temperature": T, "image_ids": torch.arange(PAIRS) // 2, "text_ids": torch.arange(PAIRS)}
    past = Past(*(Candidates(units(7, 4, seed=seed), torch.full((7, 2), -1)) for seed in (5, 6)))
    for given in ({}, {"past": past}):
        hard = execute_loss(images, texts, execution=Execution("dense"), **options, **given)
        expected = (1 - WEIGHT) * hard + WEIGHT * double_loop(images.double(), texts.double()[:, None], products(soft))
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
    expected = (1 - WEIGHT) * hard + WEIGHT * double_loop(images.double(), ours, products(theirs))
    gradients = torch.autograd.grad(expected, (images, texts))
    for name, size in WAYS:
        execution = Execution(name, chunk_size=size)
        found = execute_loss(images, texts, execution=execution, soft=soft, positives=positives, temperature=T)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        for one, other in zip(torch.autograd.grad(found, (images, texts)), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("positives", "captions"), [("one", 1), ("each", 3), ("any", 3), ("centre", 3)])
def test_given_scores_are_those_of_a_double_loop(positives, captions):
    images, texts = units(5, 4, seed=1).requires_grad_(), units(5, captions, 4, seed=2).requires_grad_()
    soft, theirs = given_scores(captions)
    ours, shown = texts.double(), texts if captions > 1 else texts[:, 0]
    if positives == "centre":
        ours, theirs = F.normalize(ours.mean(dim=1, keepdim=True), dim=-1), theirs.view(5, 5, 3).mean(dim=2)
    given = {"positives": positives, "temperature": T, "image_ids": torch.tensor([0, 1, 1, 2, 3])}
    hard = execute_loss(images, shown, **given)
    expected = (1 - WEIGHT) * hard + WEIGHT * double_loop(images.double(), ours, theirs)
    gradients = torch.autograd.grad(expected, (images, texts))
    for name, size in WAYS:
        found = execute_loss(images, shown, execution=Execution(name, chunk_size=size), soft=soft, **given)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        for one, other in zip(torch.autograd.grad(found, (images, texts)), gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_score_that_is_no_number_is_refused(wrong):
    soft, _ = given_scores(1)
    soft.scores[soft.images[2], soft.texts[4]] = wrong
    with pytest.raises(ValueError, match="the scores of a teacher are numbers, or minus infinity"):
        execute_loss(units(5, 4), units(5, 4), soft=soft)


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


def check_processes(rank: int) -> None:
    bounds = [0, 4, 5, PAIRS]
    local = slice(bounds[rank], bounds[rank + 1])
    vectors = SoftTargets(units(PAIRS, 4, seed=3), units(PAIRS, 4, seed=4), WEIGHT, THEIRS, 0.5)
    places = torch.arange(PAIRS).flip(0)[:, None]
    given = SoftTargets(places, 2 * places, WEIGHT, THEIRS, scores=units(PAIRS, 2 * PAIRS, seed=5))
    for loss_type, soft in (("nce", vectors), ("siglip", vectors), ("clip", given)):
        part = soft._replace(images=soft.images[local], texts=soft.texts[local])
        batch, options = Batch(PAIRS, 2), {"loss_type": loss_type}
        execution = Execution("dense", "local")
        expected = batch.loss_and_gradients(execute_loss, execution=execution, soft=soft, **options)
        for name in ("dense", "chunked", "streamed"):
            execution = Execution(name, chunk_size=2)
            found = batch.loss_and_gradients(execute_loss, local, execution=execution, soft=part, **options)
            assert_same_together(found, expected)


def test_soft_targets_on_processes_equal_those_on_one():
    in_processes(3, check_processes)
