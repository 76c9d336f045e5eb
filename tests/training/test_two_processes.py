"""Two processes train as one on the same global batch: gathered, around the ring, cached, with a sharded model."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vse.cli.main import main
from tests.conftest import make_pairs
from tests.embed.test_transformers_models import CASES, save
from tests.processes import in_processes
from tests.test_architecture import PAYLOAD
from tests.training.commands import train_arguments, write_data
from tests.training.dual_encoders import start, trainer_of
from tests.training.fsdp_on_cpu import Sharded, shard_from_here_on
from tests.training.test_trainer import losses
from tests.training.tiny_runs import captions_with_foils

STEPS = 20


@dataclass
class Way:
    """How two processes train an objective."""

    loss_type: str
    sharded: bool = False
    options: dict = field(default_factory=dict)


CACHED = {"grad_cache_batch_size": 5}
AVERAGED = {"freeze_text_tower": True, "ema_decay": 0.9, "extra_negatives": "same_modality"}
REMEMBERED = {"freeze_text_tower": True, "queue_size": 100, "soft_targets": "captions"}
WAYS = {
    "gathered": Way("siglip"),
    "cached around the ring": Way("siglip", options=CACHED | {"negatives": "ring", "loss_chunk_size": 5}),
    "sharded model": Way("siglip", sharded=True, options={"eval_on_start": "true"}),
    "sharded model, cached": Way("siglip", sharded=True, options=CACHED | {"loss_execution": "dense"}),
    "hardest negatives, foils": Way("hinge_max", options={"extra_negatives": "foils"}),
    "frozen text tower, averaged weights, same modality": Way("nce", options=AVERAGED),
    "queue, soft targets": Way("clip", options=REMEMBERED),
}
# 240 pairs of 48 images in batches of 24: the last batch of an epoch is whole, so that both runs see the same pairs
# and no kernels: where they are interpreted a step takes a second, and tests/objectives compare them
OF_ALL = {"max_grad_norm": 1.0, "projection_type": "residual", "loss_execution": "streamed"}


def arguments(folder: Path, name: str, batch: int, way: Way, **options) -> list[str]:
    """Of a run in `folder / name`."""
    options = OF_ALL | options | {"loss_type": way.loss_type, "per_device_train_batch_size": batch}
    return train_arguments(folder / "data", folder / name, frozen_cache_dir=cache_of(folder, name), **options)


def cache_of(folder: Path, name: str) -> Path:
    return folder / f"{name}-cache"


def train(rank: int, folder: str, sharded: bool) -> None:
    """One of two processes: trains the ways that are sharded or those that are not."""
    chosen = {name: way for name, way in WAYS.items() if way.sharded == sharded}
    if sharded:
        shard_from_here_on()
    for name, way in chosen.items():
        assert main(["train", *arguments(Path(folder), name, 12, way, **way.options)]) == 0
    assert Sharded.steps == ([STEPS] * len(chosen) if sharded else [])
    if sharded:
        train_whole(Path(folder), 4)


def train_whole(folder: Path, batch: int) -> None:
    """A dual encoder of transformers, whose losses and weights are left in `folder`."""
    data, options = make_pairs(8, captions=2), {"per_device_train_batch_size": batch, "max_grad_norm": 1.0}
    trainer = trainer_of(folder / f"whole-{batch}", *start(folder / "source"), data, **options)
    trainer.train()
    trainer.save_model()
    (folder / f"whole-{batch}" / "losses.json").write_text(json.dumps(losses(trainer)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """All runs: those of two processes, and of one process for each objective."""
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder / "data", captions_with_foils)
    for way in {way.loss_type: way for way in WAYS.values()}.values():
        alone = {name: value for name, value in way.options.items() if name in AVERAGED | REMEMBERED}
        assert main(["train", *arguments(folder, way.loss_type, 24, way, **alone, loss_execution="dense")]) == 0
    save(folder / "source", CASES["clip"], tokenizer)
    for sharded in (False, True):
        in_processes(2, train, str(folder), sharded)
    return folder


def logged_losses(output: Path) -> list[float]:
    log = json.loads((output / "stages" / "train" / "stage.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_train_as_one_on_the_same_global_batch(name, folder):
    one, two = folder / WAYS[name].loss_type, folder / name
    expected = logged_losses(one)
    assert len(expected) == STEPS
    if "queue_size" in WAYS[name].options:
        assert max(expected) > 1.05 * expected[0]  # it fills
    else:
        assert expected[-1] < 0.9 * expected[0]
    assert logged_losses(two) == pytest.approx(expected, rel=1e-3)
    found = load_file(two / "model.safetensors")
    for key, tensor in load_file(one / "model.safetensors").items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-2, atol=1e-3)
    metrics, of_one = (json.loads((output / "metrics.json").read_text()) for output in (two, one))
    assert metrics["environment"]["processes"] == 2
    rsum, rsum_of_one = (each["metrics"]["validation"]["metrics"]["rsum"] for each in (metrics, of_one))
    assert rsum == pytest.approx(rsum_of_one, abs=10)


def test_sharded_dual_encoder_trains_as_a_whole_one(folder):
    train_whole(folder, 8)
    found, expected = (json.loads((folder / f"whole-{batch}" / "losses.json").read_text()) for batch in (4, 8))
    assert len(set(expected)) == 4 and found == pytest.approx(expected, rel=1e-4)
    sharded, whole = (load_file(folder / f"whole-{batch}" / "model.safetensors") for batch in (4, 8))
    assert sharded.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", WAYS)
def test_frozen_tower_is_kept_once_and_only_if_frozen(name, folder):
    files = list(cache_of(folder, name).rglob("*.arrow"))  # training and validation captions
    assert len(files) == (2 if "freeze_text_tower" in WAYS[name].options else 0)


@pytest.mark.parametrize("name", WAYS)
def test_model_of_two_processes_can_be_loaded_anywhere(name, folder):
    """The model of a stage and its checkpoints name the class that stands in their files, sharded or not."""
    stage = folder / name / "stages" / "train"
    for model in (stage, *stage.glob("checkpoint-*")):
        config = json.loads((model / "config.json").read_text())
        assert config["architectures"] == ["VSEModel"]
        assert config["auto_map"]["AutoModel"] == "modeling_vse.VSEModel", model
        assert {path.name for path in PAYLOAD} <= {path.name for path in model.glob("*.py")}, model
