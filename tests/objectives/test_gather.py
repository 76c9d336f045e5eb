"""Processes on parts of a batch equal one process on the whole, uneven parts included."""

from collections.abc import Sequence
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist

from hf_vse.model.losses_vse import OBJECTIVES, Objective, contrastive_loss
from hf_vse.objectives.gather import gather_rows, gathered_contrastive_loss
from hf_vse.objectives.streamed import has_stream, streamed_contrastive_loss
from tests.faults.killing import slow
from tests.objectives.batches import FRAMES, Batch, assert_same, squared
from tests.objectives.equal_captions import EQUAL_PAIRS, check_gradient_by_similarity, gradient_by_similarity
from tests.processes import in_processes

PAIRS = 11
SPLITS = {2: ([0, 5, 11], [0, 9, 11]), 3: ([0, 4, 5, 11],)}
NEGATIVES = {2: "gather", 3: "ring"}  # of the fused way
ONE_OF_EACH_KERNEL = ("nce", "hinge_sum", "hinge_max", "siglip")
CAPTIONED = (  # ids: 0, of images by their place; 2, of images and captions
    ("nce", "each", 2, {"hardness": 0.5}),
    ("clip", "any", 0, {"false_negative_gap": 0.1}),
    ("hinge_sum", "each", 2, {}),
    ("hinge_max", "each", 0, {}),
    ("siglip", "any", 2, {}),
    ("nce", "centre", 2, {}),
)
WAYS = (
    (gathered_contrastive_loss, {}),
    (gathered_contrastive_loss, {"chunk_size": 2}),
    (streamed_contrastive_loss, {"chunk_size": 2}),
    (streamed_contrastive_loss, {"negatives": "ring", "chunk_size": 2}),
)


def fused_ways(world: int) -> list:
    """Where Triton is installed. Its interpreter takes its time: two processes gather, three form a ring."""
    if find_spec("triton") is None:
        return []
    from hf_vse.objectives.kernels.tiles import TritonTiles

    return [(streamed_contrastive_loss, {"tiles": TritonTiles((16, 16, 16)), "negatives": NEGATIVES[world]})]


def check_processes(rank: int, world: int) -> None:
    assert dist.get_world_size() == world
    OBJECTIVES["squared"] = Objective(squared)  # of this process, which ends here
    for bounds in SPLITS[world]:
        for loss_type in OBJECTIVES:
            for ids in (0, 2):
                for dtype in (torch.float32, torch.bfloat16):
                    check_split(slice(bounds[rank], bounds[rank + 1]), WAYS, loss_type, ids, dtype)
        for loss_type, frame in FRAMES:
            check_split(slice(bounds[rank], bounds[rank + 1]), WAYS, loss_type, 2, torch.float32, **frame)
    loss_type, frame = FRAMES[2]
    check_split(slice(bounds[rank], bounds[rank + 1]), fused_ways(world), loss_type, 2, torch.float32, **frame)
    for loss_type in ONE_OF_EACH_KERNEL:
        check_split(slice(bounds[rank], bounds[rank + 1]), fused_ways(world), loss_type, 2, torch.float32)
    check_captions(slice(bounds[rank], bounds[rank + 1]))
    check_own_negatives(rank, world)
    check_equal_captions(rank, world)


def check_captions(local: slice) -> None:
    """Three captions of every image."""
    for loss_type, positives, ids, frame in CAPTIONED:
        check_split(local, WAYS, loss_type, ids, torch.float32, captions=3, positives=positives, **frame)


def check_split(
    local: slice, ways: Sequence, loss_type: str, ids: int, dtype: torch.dtype, captions: int = 1, **frame: float | str
) -> None:
    batch = Batch(PAIRS, ids, dtype=dtype, captions=captions)
    expected = batch.reference(loss_type=loss_type, **frame)
    for loss, options in ways:
        if loss is streamed_contrastive_loss and not has_stream(loss_type):
            continue
        found = batch.loss_and_gradients(loss, local, loss_type=loss_type, **options, **frame)
        together = torch.cat([tensor.flatten() for tensor in found])
        dist.all_reduce(together)
        parts = (together / dist.get_world_size()).split([tensor.numel() for tensor in found])
        found = [part.view_as(tensor) for part, tensor in zip(parts, found, strict=True)]
        if dtype == torch.float32:
            assert_same(found, expected)
            continue
        for one, other in zip(found, expected, strict=True):  # bfloat16 rounds the gradient by every embedding
            torch.testing.assert_close(one, other, rtol=0, atol=0.01 * other.abs().max().item())


def check_own_negatives(rank: int, world: int) -> None:
    batch = Batch(world * 4)
    local = slice(4 * rank, 4 * rank + 4)
    expected = batch.loss_and_gradients(contrastive_loss, local)
    assert_same(batch.loss_and_gradients(streamed_contrastive_loss, local, negatives="local"), expected)
    assert_same(batch.loss_and_gradients(gathered_contrastive_loss, local, negatives="local"), expected)


def check_equal_captions(rank: int, world: int) -> None:
    """The rows of this process of the gradient by every similarity; `world` times them, which an average undoes."""
    bounds = torch.linspace(0, EQUAL_PAIRS, world + 1).long().tolist()
    local = slice(bounds[rank], bounds[rank + 1])
    for loss_type in ONE_OF_EACH_KERNEL:
        for loss, options in [*WAYS, *fused_ways(world)]:
            found = gradient_by_similarity(loss, local, loss_type=loss_type, **options)[1]
            check_gradient_by_similarity(loss_type, found / world, local)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=slow)])
def test_processes_equal_one_loss_and_gradient(world):
    in_processes(world, check_processes, world)


def test_single_process_is_the_dense_reference():
    for loss_type in OBJECTIVES:
        batch = Batch(PAIRS, ids=True)
        assert_same(
            batch.loss_and_gradients(gathered_contrastive_loss, loss_type=loss_type),
            batch.reference(loss_type=loss_type),
        )
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
