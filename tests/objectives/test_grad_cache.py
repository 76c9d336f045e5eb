"""Mini-batches with a cached gradient equal the whole batch, dropout, autocast and batch normalisation included."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from hf_vse.model.losses_vse import OBJECTIVES, contrastive_loss
from hf_vse.objectives.execution import Execution, execute_loss
from hf_vse.objectives.grad_cache import RandomState, cached_loss, mini_batches
from tests.objectives.batches import FRAMES
from tests.processes import in_processes


class Encoder(nn.Module):
    """Two small towers and a learned temperature."""

    def __init__(self, dropout: float = 0.0, norm: bool = False):
        super().__init__()
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.image = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), middle, nn.Dropout(dropout), nn.Linear(6, 4))
        self.text = nn.Linear(5, 4)
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, inputs):
        embeds = self.image(inputs["image"]), self.text(inputs["text"])
        return *(F.normalize(each.float(), dim=1) for each in embeds), self.temperature


def inputs(pairs: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(pairs, 5, generator=generator) for name in ("image", "text")}


def gradients(model) -> list[torch.Tensor]:
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    assert all(each.abs().max() > 0 for each in found)
    return found


def cached(model, parts, loss_type="clip", frame: dict[str, float] | None = None, **options) -> torch.Tensor:
    def loss(images, texts, temperature):
        return contrastive_loss(images, texts, temperature=temperature, loss_type=loss_type, **(frame or {}))

    value = cached_loss(model, model, parts, loss, torch.Tensor.backward, **options)
    value.backward()
    return value.detach()


@pytest.mark.parametrize(
    ("loss_type", "frame"), [*((each, {}) for each in OBJECTIVES if not each.startswith("hinge")), *FRAMES[:3]]
)
@pytest.mark.parametrize("size", [1, 4, 13])
def test_cached_gradient_is_that_of_the_whole_batch(loss_type, frame, size):
    model, batch = Encoder(), inputs(13)
    *embeds, temperature = model(batch)
    whole = contrastive_loss(*embeds, temperature=temperature, loss_type=loss_type, **frame)
    whole.backward()
    expected = gradients(model)
    found = cached(model, mini_batches(batch, size), loss_type, frame)
    torch.testing.assert_close(found, whole.detach())
    torch.testing.assert_close(gradients(model), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_dropout_and_autocast_are_replayed(autocast):
    """Reference: one graph over all mini-batches, drawn from the same random state."""
    model, batch = Encoder(dropout=0.5), inputs(11)
    parts = mini_batches(batch, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        torch.manual_seed(5)
        embedded = [model(part) for part in parts]
        images, texts = (torch.cat([each[place] for each in embedded]) for place in (0, 1))
        whole = contrastive_loss(images, texts, temperature=model.temperature, loss_type="clip")
        whole.backward()
        afterwards = torch.rand(1)
        expected = gradients(model)
        torch.manual_seed(5)
        found = cached(model, parts)
    torch.testing.assert_close(found, whole.detach())
    assert torch.equal(torch.rand(1), afterwards), "the generator goes on as if the batch had been embedded once"
    tolerance = {"rtol": 2e-2, "atol": 2e-3} if autocast else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(gradients(model), expected, **tolerance)
    torch.manual_seed(6)
    assert not torch.allclose(cached(model, parts), found), "dropout does nothing here"


def test_running_statistics_move_once():
    model, batch = Encoder(norm=True), inputs(12)
    parts = mini_batches(batch, 4)
    reference = Encoder(norm=True)
    for part in parts:
        reference(part)
    cached(model, parts)
    for name in ("running_mean", "running_var"):
        assert getattr(reference.image[2], name).abs().max() > 0
        torch.testing.assert_close(getattr(model.image[2], name), getattr(reference.image[2], name))


def test_only_the_last_mini_batch_exchanges_gradients():
    """Everything before it happens inside the context without synchronisation."""
    model, inside, backwards = Encoder(), [], []

    @contextmanager
    def unsynchronised():
        inside.append(True)
        yield
        inside.pop()

    model.register_forward_hook(lambda *_: backwards.append((torch.is_grad_enabled(), bool(inside))))
    cached(model, mini_batches(inputs(12), 4), unsynchronised=unsynchronised)
    assert backwards == [(False, True)] * 3 + [(True, True)] * 2 + [(True, False)]


def test_mini_batches_are_nearly_equal_and_complete():
    parts = mini_batches(inputs(10), 4)
    assert [len(part["image"]) for part in parts] == [4, 3, 3]
    assert torch.equal(torch.cat([part["text"] for part in parts]), inputs(10)["text"])


def test_random_state_is_restored_and_left_alone():
    state = RandomState({"image": torch.zeros(1)})
    first = torch.rand(3)
    here = torch.get_rng_state()
    with state.restored():
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), here)


def test_mini_batches_are_equally_many_on_all_processes(monkeypatch):
    for rows in ([8, 5], [8, 2], [3, 3], [7, 1]):
        monkeypatch.setattr("hf_vse.objectives.grad_cache.row_counts", lambda _, rows=rows: rows)
        for size in (1, 2, 3, 8):
            parts = [mini_batches(inputs(count), size) for count in rows]
            assert len({len(of_process) for of_process in parts}) == 1, (rows, size)
            for count, of_process in zip(rows, parts, strict=True):
                lengths = [len(part["image"]) for part in of_process]
                assert min(lengths) > 0 and sum(lengths) == count


def test_generator_of_an_apple_gpu_is_restored_and_left_alone(monkeypatch):
    """It has one generator, which takes no device."""
    state = [torch.tensor(1)]
    module = SimpleNamespace(get_rng_state=lambda: state[0], set_rng_state=lambda new: state.__setitem__(0, new))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    kept = RandomState({"image": SimpleNamespace(device=torch.device("mps:0"))})
    state[0] = torch.tensor(2)
    with kept.restored():
        assert state == [torch.tensor(1)]
        state[0] = torch.tensor(3)
    assert state == [torch.tensor(2)]


def test_generator_of_one_gpu_of_several_is_the_one_that_is_asked_for(monkeypatch):
    states = {0: 10, 1: 11}
    module = SimpleNamespace(
        get_rng_state=lambda device: torch.tensor(states[device.index]),
        set_rng_state=lambda new, device: states.__setitem__(device.index, int(new)),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    kept = RandomState({"image": SimpleNamespace(device=torch.device("cuda:1"))})
    states[1] = 5
    with kept.restored():
        assert states == {0: 10, 1: 11}
    assert states == {0: 10, 1: 5}


def check_data_parallel(rank: int) -> None:
    """13 pairs, 8 and 5 of them on two processes, in mini-batches of 3."""
    reference, batch = Encoder(norm=False), inputs(13)
    *embeds, temperature = reference(batch)
    objective = {"loss_type": "clip", "hardness": 0.5, "image_weight": 0.75}
    contrastive_loss(*embeds, temperature=temperature, **objective).backward()
    model = DistributedDataParallel(Encoder())
    exchanges = []

    def counting_hook(state, bucket):
        exchanges.append(bucket.index())
        return allreduce_hook(state, bucket)

    model.register_comm_hook(None, counting_hook)
    local = {name: tensor[:8] if rank == 0 else tensor[8:] for name, tensor in batch.items()}
    parts = mini_batches(local, 3)
    assert [len(part["image"]) for part in parts] == ([3, 3, 2] if rank == 0 else [2, 2, 1])

    def loss(images, texts, temperature):
        return execute_loss(images, texts, temperature=temperature, execution=Execution("streamed"), **objective)

    cached_loss(model, model, parts, loss, torch.Tensor.backward, model.no_sync).backward()
    assert len(exchanges) == len(set(exchanges)) == 1, "every bucket of gradients is exchanged once"
    torch.testing.assert_close(gradients(model), gradients(reference), rtol=1e-4, atol=1e-6)
    dist.barrier()  # here the exchange can drop the hook; it needs the GIL, which the end of the model would hold


def test_data_parallel_exchanges_gradients_once_for_the_whole_batch():
    in_processes(2, check_data_parallel)
