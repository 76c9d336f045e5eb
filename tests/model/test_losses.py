"""Every objective against a naive double loop in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_vse.model.losses_vse import OBJECTIVES, SETTINGS, contrastive_loss

TEMPERATURE, MARGIN, BIAS = 0.3, 0.2, -1.5
# Values of the fields that change nothing by default, for the objectives that have them.
FRAMES = (
    *(
        ("nce", frame)
        for frame in ({"positive_margin": 0.25}, {"hardness": 0.8}, {"positive_margin": -0.5, "hardness": 3})
    ),
    ("clip", {"positive_margin": 0.1, "hardness": 1, "image_weight": 0.75}),
    ("nce", {"negatives_kept": 2}),
    ("nce", {"false_negative_gap": 0.0}),
    ("clip", {"false_negative_gap": -0.2, "hardness": 0.5, "negatives_kept": 3}),
    ("nce", {"negatives_kept": 3, "hardness": 0.5}),
    ("hinge_max", {"image_weight": 0.0}),
    ("siglip", {"image_weight": 1}),
)


def naive_row(
    loss_type: str,
    scores: list,
    positive: int,
    negatives: list[int],
    positive_margin: float = 0,
    hardness: float = 0,
    negatives_kept: int = 0,
    false_negative_gap: float = 2,
):
    """One anchor, written with scalars; `scores` are 0-d float64 tensors."""
    p = scores[positive]
    zero = torch.zeros((), dtype=torch.float64)
    if loss_type in ("nce", "clip"):
        own = ((p - positive_margin) / TEMPERATURE).exp()
        negatives = [j for j in negatives if scores[j] <= p + false_negative_gap]
        if negatives_kept:
            negatives = sorted(negatives, key=lambda j: scores[j].item())[-negatives_kept:]
        total = own
        hard = {j: math.exp(hardness * scores[j].item() / TEMPERATURE) for j in negatives}
        for j in negatives:
            weight = len(negatives) * hard[j] / sum(hard.values())
            total = total + weight * (scores[j] / TEMPERATURE).exp()
        return -(own / total).log()
    if loss_type == "hinge_sum":
        return sum((torch.maximum(zero, MARGIN + scores[j] - p) for j in negatives), zero)
    if loss_type == "siglip":
        loss = -torch.sigmoid(p / TEMPERATURE + BIAS).log()
        for j in negatives:
            loss = loss - torch.sigmoid(-scores[j] / TEMPERATURE - BIAS).log()
        return loss
    if not negatives:
        return zero
    hardest = max((scores[j] for j in negatives), key=lambda score: score.item())
    if loss_type == "hinge_max":
        return torch.maximum(zero, MARGIN + hardest - p)
    if loss_type == "hardnce":
        return torch.maximum(zero, -((p / TEMPERATURE).exp() / ((hardest + MARGIN) / TEMPERATURE).exp()).log())
    assert loss_type == "hardnce_smooth"
    own, other = (p / TEMPERATURE).exp(), ((hardest + MARGIN) / TEMPERATURE).exp()
    return -(own / (own + other)).log()


def naive_loss(loss_type, images, texts, *ids, image_weight=0.5, **frame):
    """Each of `ids` is None or has a number, or a name, for each pair."""
    count = len(images)
    rows = []
    for a, b, weight in ((images, texts, image_weight), (texts, images, 1 - image_weight)):
        for i in range(count):
            scores = [(a[i] * b[j]).sum() for j in range(count)]
            others = [j for j in range(count) if j != i]
            negatives = [j for j in others if not any(each[i] == each[j] for each in ids if each is not None)]
            rows.append(2 * weight * naive_row(loss_type, scores, i, negatives, **frame))
    total = torch.stack(rows).sum()
    if loss_type in ("hinge_sum", "hinge_max"):
        return total
    return total / count / (2 if loss_type in ("clip", "siglip") else 1)


def embeddings(count=7, dim=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1).to(dtype) for _ in "it"
    ]


def options():
    return {"temperature": TEMPERATURE, "margin": MARGIN, "logit_bias": BIAS}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("text_ids", [None, [9, 8, 7, 7, 7, 6, 5]])
@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 3, 1, 4]])
@pytest.mark.parametrize(("loss_type", "frame"), [*((name, {}) for name in OBJECTIVES), *FRAMES])
def test_loss_equals_double_loop_forward_and_gradient(loss_type, frame, ids, text_ids, seed):
    reference = [each.requires_grad_() for each in embeddings(seed=seed)]
    expected = naive_loss(loss_type, *reference, ids, text_ids, **frame)
    expected.backward()
    assert expected.item() > 0 and reference[0].grad.abs().max() > 0
    images, texts = (each.detach().float().requires_grad_() for each in reference)
    given = {"image_ids": ids, "text_ids": text_ids}
    given = {name: None if each is None else torch.tensor(each) for name, each in given.items()}
    loss = contrastive_loss(images, texts, loss_type=loss_type, **given, **options(), **frame)
    loss.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(images.grad.double(), reference[0].grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts.grad.double(), reference[1].grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [3, 5, 33])
def test_hardnce_is_hinge_max_divided_by_temperature_and_batch(batch):
    images, texts = embeddings(batch, seed=batch)
    hard = contrastive_loss(images, texts, loss_type="hardnce", **options())
    hinge = contrastive_loss(images, texts, loss_type="hinge_max", **options())
    assert hinge > 0
    torch.testing.assert_close(hard, hinge / (TEMPERATURE * batch))


def test_mask_changes_the_loss():
    images, texts = embeddings()
    ids = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    for loss_type in OBJECTIVES:
        masked = contrastive_loss(images, texts, loss_type=loss_type, image_ids=ids, **options())
        assert masked < contrastive_loss(images, texts, loss_type=loss_type, **options()), loss_type


@pytest.mark.parametrize(("loss_type", "frame"), [*((name, {}) for name in OBJECTIVES), *FRAMES])
def test_pair_without_negatives_has_a_finite_loss_and_gradient(loss_type, frame):
    images, texts = (each.float().requires_grad_() for each in embeddings(count=3))
    ids = torch.tensor([5, 5, 5])
    loss = contrastive_loss(images, texts, loss_type=loss_type, image_ids=ids, **options(), **frame)
    loss.backward()
    assert loss.isfinite() and images.grad.isfinite().all() and texts.grad.isfinite().all()


@pytest.mark.parametrize("loss_type", ["nce", "hardnce", "siglip"])
def test_loss_is_float32_under_bf16_autocast(loss_type):
    images, texts = embeddings(64, 32, dtype=torch.float32)
    outside = contrastive_loss(images, texts, loss_type=loss_type, **options())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive_loss(images, texts, loss_type=loss_type, **options())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


def test_collapsed_values_are_those_of_the_literature():
    alike = torch.ones(8, 1)
    assert contrastive_loss(alike, alike, loss_type="nce").item() == pytest.approx(2 * math.log(8))
    assert contrastive_loss(alike, alike, loss_type="hardnce").item() == pytest.approx(2 * 0.2 / 0.1)
    assert contrastive_loss(alike, alike, loss_type="hinge_max").item() == pytest.approx(2 * 0.2 * 8)


def test_low_temperature_does_not_overflow_in_half_precision():
    images, texts = (each.half() for each in embeddings(16, 8))
    loss = contrastive_loss(images, texts, loss_type="nce", temperature=0.01)
    assert loss.isfinite()


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_settings_are_those_that_change_the_loss(loss_type):
    images, texts = embeddings()
    loss = contrastive_loss(images, texts, loss_type=loss_type, **options())
    for name, value in ({name: 0 for name in SETTINGS} | options()).items():
        changed = contrastive_loss(images, texts, loss_type=loss_type, **(options() | {name: value + 0.1}))
        assert (changed != loss) == (name in OBJECTIVES[loss_type].settings), name


def test_bad_input_names_the_remedy():
    images, texts = embeddings()
    with pytest.raises(TypeError, match="hardnes is no setting of an objective; there are temperature, "):
        contrastive_loss(images, texts, hardnes=1)
    with pytest.raises(ValueError, match="'ncee' is unknown; choose one of nce"):
        contrastive_loss(images, texts, loss_type="ncee")
    with pytest.raises(ValueError, match=r"must both be \(batch, dim\).*one caption for each image"):
        contrastive_loss(images, texts[:3])


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_half_of_the_weight_is_the_sum_of_both_directions_to_the_bit(loss_type):
    """As it was before the weight was a field."""
    rows = torch.randn(2, 33).exp().requires_grad_()
    weighed = OBJECTIVES[loss_type].reduce(*rows)
    plain = rows[0].sum() + rows[1].sum()
    plain = plain / 33 if OBJECTIVES[loss_type].reduction == "mean" else plain
    plain = plain / 2 if OBJECTIVES[loss_type].directions == "average" else plain
    assert torch.equal(weighed, plain)
    assert torch.equal(*(torch.autograd.grad(each, rows)[0] for each in (weighed, plain)))


def test_hardness_goes_from_all_negatives_to_the_hardest_alone():
    images, texts = embeddings(9)
    plain = contrastive_loss(images, texts, **options())
    torch.testing.assert_close(contrastive_loss(images, texts, hardness=1e-9, **options()), plain)
    hardest = contrastive_loss(
        images, texts, loss_type="hardnce_smooth", **(options() | {"margin": TEMPERATURE * math.log(8)})
    )
    torch.testing.assert_close(contrastive_loss(images, texts, hardness=99, **options()), hardest, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kept", [1, 8, 500])
def test_negatives_kept_go_from_the_hardest_alone_to_all(kept):
    images, texts = embeddings(9)
    settings = options() | {"loss_type": "hardnce_smooth", "margin": 0} if kept == 1 else options()
    found = contrastive_loss(images, texts, negatives_kept=kept, **options())
    torch.testing.assert_close(found, contrastive_loss(images, texts, **settings))
