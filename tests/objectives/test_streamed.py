"""One pass over tiles equals the dense loss, forward and backward, on one process."""

import pytest
import torch
import torch.nn.functional as F

from hf_vse.model.losses_vse import OBJECTIVES, Objective, contrastive_loss
from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.objectives.streamed import STREAMS, streamed_contrastive_loss
from tests.objectives.batches import OPTIONS, Batch, assert_same, squared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ids", [0, 1, 2])
@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_stream_equals_dense_loss_and_gradient(loss_type, ids, dtype):
    for seed, chunk_size in ((0, 1), (1, 5), (2, 8), (3, None)):
        batch = Batch(19, ids, seed, dtype)
        expected = batch.reference(loss_type=loss_type)
        found = batch.loss_and_gradients(streamed_contrastive_loss, loss_type=loss_type, chunk_size=chunk_size)
        assert_same(found, expected, dtype)


@pytest.mark.parametrize("ids", [0, 1, 2])
@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_chunks_equal_dense_loss_and_gradient(loss_type, ids):
    for chunk_size in (1, 7, 19):
        batch = Batch(19, ids)
        found = batch.loss_and_gradients(gathered_contrastive_loss, loss_type=loss_type, chunk_size=chunk_size)
        assert_same(found, batch.reference(loss_type=loss_type))


def test_chunks_take_a_row_loss_of_ones_own(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "squared", Objective(squared))
    batch = Batch(11)
    found = batch.loss_and_gradients(gathered_contrastive_loss, loss_type="squared", chunk_size=4)
    assert_same(found, batch.reference(loss_type="squared"))
    with pytest.raises(ValueError, match="'squared' has no stream; use chunked execution"):
        batch.loss_and_gradients(streamed_contrastive_loss, loss_type="squared")


def test_every_objective_has_a_stream():
    assert set(STREAMS) == {objective.row_loss for objective in OBJECTIVES.values()}


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_pair_without_negatives_has_the_dense_loss_and_a_finite_gradient(loss_type):
    images, texts = (F.normalize(torch.randn(3, 5), dim=1).requires_grad_() for _ in "it")
    ids = torch.tensor([5, 5, 5])
    loss = streamed_contrastive_loss(images, texts, loss_type=loss_type, image_ids=ids, **OPTIONS)
    torch.testing.assert_close(loss, contrastive_loss(images, texts, loss_type=loss_type, image_ids=ids, **OPTIONS))
    loss.backward()
    assert images.grad.isfinite().all() and texts.grad.isfinite().all()


@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_collapsed_embeddings_and_low_temperature_stay_finite(loss_type):
    for embeds, temperature in ((torch.ones(9, 1), 0.1), (F.normalize(torch.randn(9, 3), dim=1), 0.01)):
        images, texts = embeds.clone().requires_grad_(), embeds.flip(0).clone().requires_grad_()
        loss = streamed_contrastive_loss(images, texts, loss_type=loss_type, temperature=temperature, chunk_size=4)
        torch.testing.assert_close(
            loss, contrastive_loss(images, texts, loss_type=loss_type, temperature=temperature), rtol=1e-5, atol=1e-5
        )
        loss.backward()
        assert images.grad.isfinite().all() and texts.grad.isfinite().all()


def test_stream_is_float32_under_bf16_autocast():
    images, texts = (F.normalize(torch.randn(64, 32), dim=1) for _ in "it")
    outside = streamed_contrastive_loss(images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = streamed_contrastive_loss(images, texts)
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)


def test_no_tensor_of_the_size_of_the_matrix_is_made():
    class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                LargestTensor.elements = max(LargestTensor.elements, result.numel())
            return result

    pairs, dim, chunk = 512, 8, 16
    for loss_type in OBJECTIVES:
        images, texts = (F.normalize(torch.randn(pairs, dim), dim=1).requires_grad_() for _ in "it")
        LargestTensor.elements = 0
        with LargestTensor():
            streamed_contrastive_loss(images, texts, loss_type=loss_type, chunk_size=chunk).backward()
        assert LargestTensor.elements == chunk * pairs, loss_type
