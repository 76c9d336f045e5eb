"""The margin-cosine loss against the formula, and on sampled classes against the whole softmax."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_vse.objectives.classes import margin_cosine_loss, sampled_classes

OWN = torch.tensor([3, 0, 3, 6, 1])


def batch(seed=0, classes=7, dim=5):
    torch.manual_seed(seed)
    images = F.normalize(torch.randn(len(OWN), dim), dim=1).requires_grad_()
    return images, torch.randn(classes, dim).requires_grad_()


def written_out(images, vectors, own, margin, temperature):
    rows = []
    for image, label in zip(images, own.tolist(), strict=True):
        cosines = [image @ (vector / vector.norm()) for vector in vectors]
        top = ((cosines[label] - margin) / temperature).exp()
        others = sum((cosine / temperature).exp() for place, cosine in enumerate(cosines) if place != label)
        rows.append(-(top / (top + others)).log())
    return torch.stack(rows)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("margin", [0.0, 0.35])
def test_the_loss_is_the_formula_forward_and_backward(seed, margin):
    found = []
    for loss in (margin_cosine_loss, written_out):
        images, vectors = batch(seed)
        rows = loss(images, vectors, OWN, margin=margin, temperature=0.2)
        (rows * torch.arange(1.0, 6)).sum().backward()
        found.append((rows.detach(), images.grad, vectors.grad))
    assert all(each.abs().max() > 1e-3 for each in found[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("samples", [7, 100])
def test_all_classes_sampled_are_the_whole_softmax_forward_and_backward(samples):
    chosen = torch.from_numpy(sampled_classes(OWN.unique().numpy(), 7, samples, np.random.default_rng(0)))
    assert chosen.tolist() == list(range(7))
    found = []
    for sampled in (True, False):
        images, vectors = batch()
        if sampled:
            rows, own = F.embedding(chosen, vectors, sparse=True), torch.searchsorted(chosen, OWN)
        else:
            rows, own = vectors, OWN
        loss = margin_cosine_loss(images, rows, own, margin=0.2, temperature=0.1).mean()
        loss.backward()
        found.append((loss.detach(), images.grad, vectors.grad.to_dense()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_sampled_classes_hold_those_present_and_are_drawn_evenly():
    present, counts = np.array([5, 40]), np.zeros(100)
    for step in range(500):
        chosen, again = (sampled_classes(present, 100, 10, np.random.default_rng((3, step))) for _ in range(2))
        assert (chosen == again).all() and set(present) <= set(chosen.tolist()) and 10 <= len(chosen) <= 12
        assert (np.diff(chosen) > 0).all()
        counts[chosen] += 1
    assert (counts[present] == 500).all()
    others = np.delete(counts, present)
    assert abs(others.mean() - 50) < 1 and others.std() < 2 * math.sqrt(45)


def test_a_sample_of_a_million_classes_touches_no_others():
    vectors = torch.randn(1_000_000, 4).requires_grad_()
    chosen = torch.from_numpy(sampled_classes(np.array([0, 999_999]), 1_000_000, 64, np.random.default_rng(0)))
    rows, own = F.embedding(chosen, vectors, sparse=True), torch.tensor([0, len(chosen) - 1])
    margin_cosine_loss(torch.eye(4)[:2], rows, own, margin=0.2, temperature=0.1).sum().backward()
    assert vectors.grad.coalesce().indices()[0].tolist() == chosen.tolist() and 64 <= len(chosen) <= 66
