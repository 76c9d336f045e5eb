"""Two processes on halves of a batch equal one process on the whole, uneven halves included."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from hf_vse.model.losses_vse import OBJECTIVES, contrastive_loss
from hf_vse.objectives.gather import gather_rows, gathered_contrastive_loss

IMAGE_IDS = torch.tensor([0, 1, 0, 2, 3, 3, 4, 5, 1])


def encoder_and_batch():
    """One weight matrix for each side, so that gradients of a shared parameter can be compared."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, 6, 4, generator=generator).requires_grad_()
    inputs = torch.randn(2, len(IMAGE_IDS), 6, generator=generator)
    return weights, inputs


def embed(weights, inputs):
    return [F.normalize(inputs[side] @ weights[side], dim=1) for side in (0, 1)]


def check_two_processes(rank: int, meeting_point: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    assert dist.get_world_size() == 2
    for split in (4, 7):
        check_split(rank, split)
    dist.destroy_process_group()


def check_split(rank: int, split: int) -> None:
    local = slice(0, split) if rank == 0 else slice(split, None)
    for loss_type in OBJECTIVES:
        for ids in (None, IMAGE_IDS):
            options = {"loss_type": loss_type, "temperature": 0.2, "margin": 0.3, "logit_bias": -1.0}
            weights, inputs = encoder_and_batch()
            whole = contrastive_loss(*embed(weights, inputs), image_ids=ids, **options)
            (expected,) = torch.autograd.grad(whole, weights)
            assert expected.abs().max() > 0

            weights, inputs = encoder_and_batch()
            part = gathered_contrastive_loss(
                *embed(weights, inputs[:, local]), image_ids=None if ids is None else ids[local], **options
            )
            (gradient,) = torch.autograd.grad(part, weights)
            for tensor in (gradient, loss := part.detach().clone()):
                dist.all_reduce(tensor)
            torch.testing.assert_close(loss / 2, whole.detach())
            torch.testing.assert_close(gradient / 2, expected, rtol=1e-4, atol=1e-5)


def test_two_processes_equal_one_loss_and_gradient(tmp_path):
    mp.spawn(check_two_processes, args=(str(tmp_path / "meeting"),), nprocs=2)


def test_single_process_is_the_dense_reference():
    for loss_type in OBJECTIVES:
        weights, inputs = encoder_and_batch()
        images, texts = embed(weights, inputs)
        options = {"loss_type": loss_type, "temperature": 0.2, "logit_bias": -1.0, "image_ids": IMAGE_IDS}
        torch.testing.assert_close(
            gathered_contrastive_loss(images, texts, **options), contrastive_loss(images, texts, **options)
        )
    assert gather_rows(images) is images
