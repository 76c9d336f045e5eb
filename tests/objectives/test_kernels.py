"""The Triton kernels equal plain torch, without a GPU in Triton's interpreter; and they compile for GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers.utils.import_utils import enable_tf32

pytest.importorskip("triton")

from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.objectives.execution import Execution, choose_execution, execute_loss
from hf_vse.objectives.kernels import why_not_fused
from hf_vse.objectives.kernels.tiles import TritonTiles, tf32_allowed
from hf_vse.objectives.streamed import streamed_contrastive_loss
from tests.objectives.batches import FRAMES, Batch, assert_same

BLOCKS = (16, 32, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ids", [0, 1, 2])
@pytest.mark.parametrize(("loss_type", "frame"), [*((name, {}) for name in OBJECTIVES), *FRAMES[:4]])
def test_kernels_equal_dense_loss_and_gradient(loss_type, frame, ids, dtype):
    for pairs, dim, chunk_size in ((45, 20, 33), (16, 16, None)):
        batch, options = Batch(pairs, ids, dtype=dtype, dim=dim), {"loss_type": loss_type, **frame}
        found = batch.loss_and_gradients(
            streamed_contrastive_loss, chunk_size=chunk_size, tiles=TritonTiles(BLOCKS), **options
        )
        assert_same(found, batch.reference(**options), dtype)


@pytest.fixture
def precisions():
    """The settings of float32 products, put back afterwards."""
    places = torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "none"  # what any test said of matrices alone wins over what is said of all
    yield
    torch.set_float32_matmul_precision("highest")
    for place, precision in zip(places, before, strict=True):
        place.fp32_precision = precision


@pytest.mark.parametrize("allowed", [True, False])
def test_kernels_run_and_know_the_precision_that_transformers_sets(allowed, precisions):
    enable_tf32.__wrapped__(allowed)  # what --tf32 and --torch_compile call; it remembers its calls
    assert tf32_allowed() == allowed
    batch = Batch(35)
    assert_same(batch.loss_and_gradients(execute_loss, execution=Execution("fused")), batch.reference())


@pytest.mark.parametrize(("precision", "allowed"), [("highest", False), ("high", True), ("medium", True)])
def test_kernels_know_the_precision_that_torch_was_told_otherwise(precision, allowed, precisions):
    torch.set_float32_matmul_precision(precision)
    assert tf32_allowed() == allowed


def test_fused_execution_is_taken_where_the_kernels_run(monkeypatch):
    batch, device = Batch(35, dtype=torch.bfloat16), torch.device("cpu")
    found = batch.loss_and_gradients(execute_loss, execution=Execution("fused"))
    assert_same(found, batch.reference(), torch.bfloat16)
    assert why_not_fused(device) is None
    assert choose_execution(Execution(), "nce", 10_000, device) == ("fused", "the kernels run here")
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    why_not_fused.cache_clear()
    name, reason = choose_execution(Execution(), "nce", 10_000, device)
    assert name == "streamed" and reason == "not fused: the embeddings are on cpu and the kernels need a GPU"
    with pytest.raises(ValueError, match="'fused' is not possible: the embeddings are on cpu.*use auto or streamed"):
        choose_execution(Execution("fused"), "nce", 10_000, device)
    why_not_fused.cache_clear()


@pytest.mark.parametrize("setting", [{"negatives_kept": 3}, {"false_negative_gap": 0.1}])
def test_setting_without_a_kernel_is_streamed(setting):
    device, (name,) = torch.device("cpu"), setting
    assert choose_execution(Execution(), "nce", 10_000, device, setting)[1] == f"not fused: {name} has no kernel"
    assert choose_execution(Execution(), "siglip", 10_000, device, setting)[0] == "fused", "siglip does not use it"
    with pytest.raises(ValueError, match=f"{name} has no kernel; use auto or streamed"):
        execute_loss(torch.eye(4), torch.eye(4), execution=Execution("fused"), **setting)


def test_kernels_compile_for_ampere_and_hopper():
    """Without a GPU, down to machine code; in a process in which Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {(line[0], line[1], line[2]) for line in lines} == {
        (kernel, name, target)
        for name in ("logsumexp", "hardest", "hinge_sum", "softplus_sum")
        for kernel in (("reduce",) if name == "hardest" else ("reduce", "weights"))
        for target in ("sm_80", "sm_90")
    }
    assert all(int(line[3]) > 0 for line in lines), "no tensor cores are used"
