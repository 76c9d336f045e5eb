"""Pairs of equal caption are no negatives of each other in any execution, forward and backward.

Several processes: `test_gather.py`.
"""

import pytest
import torch

from hf_vse.model.losses_vse import OBJECTIVES, contrastive_loss
from hf_vse.objectives.execution import Execution, execute_loss
from tests.objectives.batches import OPTIONS
from tests.objectives.equal_captions import check_gradient_by_similarity, embeddings, gradient_by_similarity, reference

EXECUTIONS = {
    "dense": Execution("dense"),
    "chunked": Execution("chunked", chunk_size=4),
    "streamed": Execution("streamed", chunk_size=7),
    "fused": Execution("fused", chunk_size=20),
}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_equal_captions_have_no_gradient_by_their_similarity(loss_type, execution):
    if execution == "fused":
        pytest.importorskip("triton")
    value, found = gradient_by_similarity(execute_loss, loss_type=loss_type, execution=EXECUTIONS[execution])
    torch.testing.assert_close(value.double(), reference(loss_type)[0], rtol=1e-5, atol=1e-6)
    check_gradient_by_similarity(loss_type, found)


def test_ids_of_several_kinds_are_those_of_each():
    images, texts = embeddings()
    one, other, third = torch.randint(0, 9, (3, len(images)))
    together = contrastive_loss(images, texts, text_ids=torch.stack([one, other], dim=1), image_ids=third, **OPTIONS)
    ids = torch.stack([third, other, one], dim=1)
    torch.testing.assert_close(together, contrastive_loss(images, texts, image_ids=ids, **OPTIONS))
    assert together < contrastive_loss(images, texts, image_ids=one, text_ids=third, **OPTIONS)
