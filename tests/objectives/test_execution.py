"""Which way is taken, and that every way there is gives the same."""

import logging

import pytest
import torch

from hf_vse.model.losses_vse import OBJECTIVES, Objective
from hf_vse.objectives.execution import Execution, announce, choose_execution, execute_loss
from tests.objectives.batches import FRAMES, Batch, assert_same, squared

CPU = torch.device("cpu")


@pytest.mark.parametrize("negatives", ["gather", "local", None])
@pytest.mark.parametrize("way", ["auto", "dense", "chunked", "streamed"])
def test_every_way_gives_the_same(way, negatives):
    batch = Batch(13, ids=True)
    for loss_type, frame in (*((name, {}) for name in OBJECTIVES), *FRAMES):
        execution, options = Execution(way, negatives, chunk_size=4), {"loss_type": loss_type, **frame}
        found = batch.loss_and_gradients(execute_loss, execution=execution, **options)
        assert_same(found, batch.reference(**options))


def test_choice_depends_on_batch_and_objective(monkeypatch):
    monkeypatch.setattr("hf_vse.objectives.execution.why_not_fused", lambda device: "there is none")
    assert choose_execution(Execution(), "nce", 128, CPU) == ("dense", "the batch is small")
    assert choose_execution(Execution(), "nce", 8192, CPU) == ("streamed", "not fused: there is none")
    monkeypatch.setitem(OBJECTIVES, "own", Objective(squared))
    assert choose_execution(Execution(), "own", 8192, CPU)[0] == "chunked"
    for asked, loss_type, message in (
        (Execution("streamed"), "own", "'own' has no stream; use loss execution chunked or dense"),
        (Execution("dense", "ring"), "nce", "'dense' needs all candidates at once; use streamed or fused for a ring"),
        (Execution("fused"), "nce", "'fused' is not possible: there is none; use auto or streamed"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_execution(asked, loss_type, 128, CPU)


def test_choice_is_told_once(caplog):
    announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="hf_vse"):
        for _ in range(3):
            Batch(5).loss_and_gradients(execute_loss)
    assert [record.message for record in caplog.records] == ["loss execution: dense (the batch is small)"]
