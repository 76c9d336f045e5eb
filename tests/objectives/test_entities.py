"""Records of one entity against a double loop in float64, forward and backward, dense, in chunks and in processes."""

import pytest
import torch
import torch.nn.functional as F

from hf_vse.link.pooling import mean_of_texts, pooled_vectors
from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.objectives.entities import pooled_records
from hf_vse.objectives.execution import Execution, execute_loss
from hf_vse.objectives.past import Candidates
from hf_vse.training.callbacks import indifferent_loss
from tests.objectives.batches import OPTIONS, Batch, assert_same_together
from tests.objectives.test_past import ROWS
from tests.processes import in_processes

LABELS = torch.tensor([5, 1, 5, 2, 9, 1, 1, 2, 7])  # 9 and 7 have no second record
ENTITY = {"positives": "entity"}


def double_loop(images, texts, loss_type: str, weight: float):
    """The loss, each score on its own: float64, texts (B, K, dim)."""
    labels = LABELS.tolist()
    means = [F.normalize(of.mean(dim=0), dim=0) for of in texts]
    records = [
        F.normalize(weight * image + (1 - weight) * mean, dim=0) for image, mean in zip(images, means, strict=True)
    ]
    of_records = []
    for i, record in enumerate(records):
        others = [record @ other for j, other in enumerate(records) if labels[j] != labels[i]]
        own = [ROWS[loss_type](record @ other, others) for j, other in enumerate(records)
               if j != i and labels[j] == labels[i]]  # fmt: skip
        of_records += [sum(own) / len(own)] if own else []
    assert len(of_records) == 7
    chosen = OBJECTIVES[loss_type]
    total = sum(of_records) / (len(of_records) if chosen.reduction == "mean" else 1)
    return total if chosen.directions == "average" else 2 * total


def inputs(captions: int):
    generator = torch.Generator().manual_seed(2)
    images, texts = (torch.randn(9, n, 4, generator=generator).requires_grad_() for n in (1, captions))
    return images, texts, [F.normalize(each, dim=-1) for each in (images, texts)]


@pytest.mark.parametrize(("captions", "weight"), [(1, 0.5), (3, 0.3)])
@pytest.mark.parametrize("loss_type", ROWS)
def test_the_loss_is_that_of_a_double_loop(loss_type, captions, weight):
    images, texts, unit = inputs(captions)
    expected = double_loop(unit[0].double()[:, 0], unit[1].double(), loss_type, weight)
    gradients = torch.autograd.grad(expected, (images, texts), retain_graph=True)
    assert all(each.abs().max() > 0 for each in gradients)
    shown = unit[0][:, 0], unit[1][:, 0] if captions == 1 else unit[1]
    options = OPTIONS | ENTITY | {"loss_type": loss_type, "image_ids": LABELS, "image_weight": weight}
    for execution in (Execution("dense"), Execution("chunked", chunk_size=4), Execution()):
        found = execute_loss(*shown, execution=execution, **options)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        of_found = torch.autograd.grad(found, (images, texts), retain_graph=True)
        for one, other in zip(of_found, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def captions_loop(images, texts, loss_type: str):
    """The contrast of images with captions, each score on its own; other records of an entity are left out."""
    labels, captions = LABELS.tolist(), [(i, k) for i in range(len(texts)) for k in range(texts.shape[1])]
    row, of_images, of_texts = ROWS[loss_type], 0.0, 0.0
    for i, k in captions:
        own = images[i] @ texts[i, k]
        negatives = [images[i] @ texts[j, other] for j, other in captions if labels[j] != labels[i]]
        of_images = of_images + row(own, negatives) / texts.shape[1]
        negatives = [image @ texts[i, k] for j, image in enumerate(images) if labels[j] != labels[i]]
        of_texts = of_texts + row(own, negatives) / texts.shape[1]
    chosen = OBJECTIVES[loss_type]
    total = (of_images + of_texts) / (len(images) if chosen.reduction == "mean" else 1)
    return total / 2 if chosen.directions == "average" else total


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("loss_type", ROWS)
def test_captions_are_contrasted_beside_the_records(loss_type, captions):
    images, texts, unit = inputs(captions)
    double = unit[0].double()[:, 0], unit[1].double()
    expected = double_loop(*double, loss_type, 0.3) + 0.7 * captions_loop(*double, loss_type)
    gradients = torch.autograd.grad(expected, (images, texts), retain_graph=True)
    shown = unit[0][:, 0], unit[1][:, 0] if captions == 1 else unit[1]
    options = OPTIONS | ENTITY | {"loss_type": loss_type, "image_ids": LABELS, "image_weight": 0.3}
    for execution in (Execution("dense"), Execution("chunked", chunk_size=4), Execution()):
        found = execute_loss(*shown, execution=execution, caption_weight=0.7, **options)
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        of_found = torch.autograd.grad(found, (images, texts), retain_graph=True)
        for one, other in zip(of_found, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nce_is_supcon_without_the_other_positives_in_its_denominator():
    """Written with log-softmax over masked rows, as SupCon's authors do; two records an entity: SupCon itself."""
    _, _, (images, texts) = inputs(1)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4])
    records = pooled_records(images[:, 0], texts[:, 0])
    logits = (records @ records.T / 0.2).fill_diagonal_(float("-inf"))
    same = (labels[:, None] == labels).fill_diagonal_(False)
    expected = -logits.log_softmax(dim=1)[same].mean()
    found = execute_loss(images[:, 0], texts[:, 0], image_ids=labels, temperature=0.2, **ENTITY)
    torch.testing.assert_close(found, 2 * expected)


def test_a_record_is_pooled_as_the_links_pool_it():
    _, _, (images, texts) = inputs(3)
    of_texts = mean_of_texts(texts.detach().flatten(0, 1).numpy(), torch.full((9,), 3).numpy())
    expected = pooled_vectors(images.detach()[:, 0].numpy(), of_texts, 0.3)
    torch.testing.assert_close(pooled_records(images[:, 0], texts, 0.3), torch.from_numpy(expected))


def test_without_a_positive_there_is_nothing_to_learn():
    images, texts, unit = inputs(1)
    loss = execute_loss(unit[0][:, 0], unit[1][:, 0], image_ids=torch.arange(9), **ENTITY)
    loss.backward()
    assert loss == 0 and images.grad.abs().max() == texts.grad.abs().max() == 0


def check_processes(rank: int, world: int) -> None:
    for captions in (1, 2):
        batch = Batch(11, ids=1, captions=captions)
        batch.ids["image_ids"] = torch.tensor([0, 1, 0, 2, 3, 1, 1, 2, 8, 0, 9])
        for loss_type, weight in (("nce", 0.0), ("hinge_sum", 0.0), ("siglip", 0.0), ("nce", 0.5), ("hinge_sum", 0.5)):
            options = ENTITY | {"loss_type": loss_type, "caption_weight": weight}
            expected = batch.loss_and_gradients(execute_loss, **options, execution=Execution(negatives="local"))
            assert expected[0] > 0 and expected[1].abs().max() > 0
            for execution in (Execution(), Execution("chunked", chunk_size=3)):
                found = batch.loss_and_gradients(
                    execute_loss, slice((0, 9)[rank], (9, 11)[rank]), execution=execution, **options
                )
                assert_same_together(found, expected)


def test_two_processes_are_one():
    in_processes(2, check_processes, 2)


def test_loss_that_the_alarm_compares_with_is_that_of_equal_similarities():
    images, texts, labels = torch.ones(6, 1), torch.ones(6, 2, 1), torch.tensor([0, 0, 1, 1, 2, 2])
    for loss_type in ("nce", "hardnce", "hinge_sum"):
        expected = execute_loss(images, texts, loss_type=loss_type, image_ids=labels, **ENTITY).item()
        found = indifferent_loss(6, [4] * 6, loss_type=loss_type, positives="entity", captions=2)
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"execution": Execution("streamed")}, "positives entity has no loss execution 'streamed': give auto, dense"),
        (
            {"execution": Execution(negatives="ring")},
            "needs the records of all processes at once: give negatives: gath",
        ),
        ({"same_modality": True}, "positives entity contrasts records alone"),
        ({"foils": Candidates(torch.ones(1, 4), torch.ones(1, 1))}, "positives entity contrasts records alone"),
        ({"image_ids": None}, "positives entity needs image_ids, the labels of the records"),
    ],
)
def test_what_has_no_place_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        execute_loss(torch.ones(2, 4), torch.ones(2, 4), **{"image_ids": torch.zeros(2)} | given | ENTITY)
