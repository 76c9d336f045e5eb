"""One pass over tiles equals the dense loss, forward and backward, on one process."""

import pytest
import torch
import torch.nn.functional as F

from hf_vse.model.losses_vse import OBJECTIVES, Objective, contrastive_loss
from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.objectives.streamed import STREAMS, streamed_contrastive_loss
from tests.objectives.batches import FRAMES, OPTIONS, Batch, assert_same, squared

ALL = (*((name, {}) for name in OBJECTIVES), *FRAMES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ids", [0, 1, 2])
@pytest.mark.parametrize(("loss_type", "frame"), ALL)
def test_stream_equals_dense_loss_and_gradient(loss_type, frame, ids, dtype):
    for seed, chunk_size in ((0, 1), (1, 5), (2, 8), (3, None)):
        batch, options = Batch(19, ids, seed, dtype), {"loss_type": loss_type, **frame}
        found = batch.loss_and_gradients(streamed_contrastive_loss, chunk_size=chunk_size, **options)
        assert_same(found, batch.reference(**options), dtype)


@pytest.mark.parametrize("ids", [0, 1, 2])
@pytest.mark.parametrize(("loss_type", "frame"), ALL)
def test_chunks_equal_dense_loss_and_gradient(loss_type, frame, ids):
    for chunk_size in (1, 7, 19):
        batch, options = Batch(19, ids), {"loss_type": loss_type, **frame}
        found = batch.loss_and_gradients(gathered_contrastive_loss, chunk_size=chunk_size, **options)
        assert_same(found, batch.reference(**options))


def test_chunks_take_a_row_loss_of_ones_own(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "squared", Objective(squared))
    batch = Batch(11)
    found = batch.loss_and_gradients(gathered_contrastive_loss, loss_type="squared", chunk_size=4)
    assert_same(found, batch.reference(loss_type="squared"))
    with pytest.raises(ValueError, match="'squared' has no stream; use chunked execution"):
        batch.loss_and_gradients(streamed_contrastive_loss, loss_type="squared")


def test_every_objective_has_a_stream():
    assert set(STREAMS) == {objective.row_loss for objective in OBJECTIVES.values()}


@pytest.mark.parametrize(("loss_type", "frame"), ALL)
def test_pair_without_negatives_has_the_dense_loss_and_a_finite_gradient(loss_type, frame):
    images, texts = (F.normalize(torch.randn(3, 5), dim=1).requires_grad_() for _ in "it")
    options = {"loss_type": loss_type, "image_ids": torch.tensor([5, 5, 5])} | OPTIONS | frame
    loss = streamed_contrastive_loss(images, texts, **options)
    torch.testing.assert_close(loss, contrastive_loss(images, texts, **options))
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
