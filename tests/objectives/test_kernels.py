"""The Triton kernels equal plain torch; without a GPU in Triton's interpreter."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.objectives.kernels.tiles import TritonTiles
from hf_vse.objectives.streamed import streamed_contrastive_loss
from tests.objectives.batches import Batch, assert_same

BLOCKS = (16, 32, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_kernels_equal_dense_loss_and_gradient(loss_type, ids, dtype):
    for pairs, dim, chunk_size in ((45, 20, 33), (16, 16, None)):
        batch = Batch(pairs, ids, dtype=dtype, dim=dim)
        found = batch.loss_and_gradients(
            streamed_contrastive_loss, loss_type=loss_type, chunk_size=chunk_size, tiles=TritonTiles(BLOCKS)
        )
        assert_same(found, batch.reference(loss_type=loss_type), dtype)
