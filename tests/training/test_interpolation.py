"""Weights between start and end: the arithmetic, the choice of alpha, and a run that keeps what it knew."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.files import read_json
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.interpolation import ALPHAS, choose_alpha, interpolate
from hf_vse.training.recipe import build_recipe
from hf_vse.training.result import run_summary
from hf_vse.training.run import run_recipe
from tests.processes import in_processes
from tests.training.tiny_runs import same_outcome, tiny_values, write_features


def states(dtype=torch.float32) -> list[dict[str, torch.Tensor]]:
    """Two states of a small network with a temperature; their batch normalisations have seen other batches."""
    found = []
    for seed, steps in ((0, 2), (1, 3)):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        network.register_parameter("logit_scale", torch.nn.Parameter(torch.tensor([2.0 + seed])))
        for _ in range(steps):
            network(torch.randn(5, 3))
        found.append(
            {name: each.to(dtype) if each.is_floating_point() else each for name, each in network.state_dict().items()}
        )
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_interpolated_weights_are_the_weighted_sum(dtype):
    start, tuned = states(dtype)
    for alpha in ALPHAS:
        for name, tensor in interpolate(start, tuned, alpha).items():
            assert tensor.dtype == tuned[name].dtype, name
            if name.endswith("num_batches_tracked"):
                assert tensor.item() == 3
                continue
            expected = (1 - alpha) * start[name].double() + alpha * tuned[name].double()
            torch.testing.assert_close(tensor, expected.to(dtype))
    scale = interpolate(start, tuned, 0.5)["logit_scale"]
    assert scale.float().exp().item() == pytest.approx(np.sqrt(np.exp(2) * np.exp(3)), rel=1e-2)  # geometric mean


def test_ends_are_equal_to_the_bit_and_copies():
    start, tuned = states()
    for alpha, expected in ((0, start), (1, tuned)):
        for name, tensor in interpolate(start, tuned, alpha).items():
            if tensor.is_floating_point():
                assert torch.equal(tensor, expected[name]) and tensor.data_ptr() != expected[name].data_ptr()


def test_states_of_two_models_are_refused():
    start, tuned = states()
    with pytest.raises(ValueError, match=r"alpha=1.1 must be from 0 \(the start\) to 1"):
        interpolate(start, tuned, 1.1)
    with pytest.raises(ValueError, match="1 weights are on one side only, the first is 'extra'"):
        interpolate(start, tuned | {"extra": torch.ones(1)}, 0.5)
    with pytest.raises(ValueError, match=r"0.weight has the shapes \(4, 3\) and \(3, 4\)"):
        interpolate(start, tuned | {"0.weight": torch.ones(3, 4)}, 0.5)


def curve(validation, control) -> list[dict]:
    return [
        {"alpha": alpha, "validation": {"mean_recall": float(v)}, "control": {"mean_recall": float(c)}}
        for alpha, v, c in zip(ALPHAS, validation, control, strict=False)
    ]


def test_chosen_alpha_gains_most_within_the_permitted_loss():
    rng = np.random.default_rng(0)
    for _ in range(50):
        validation, control = rng.integers(40, 60, (2, 11)).astype(float)
        for permitted in (0.0, 1.0, 5.0, 100.0):
            best = 0
            for place in range(11):
                if control[place] >= control[0] - permitted and validation[place] > validation[best]:
                    best = place
            assert choose_alpha(curve(validation, control), permitted) == ALPHAS[best]
    assert choose_alpha(curve([50, 60, 70], [80, 79, 78.9]), 1.0) == 0.1  # just at the limit
    assert choose_alpha(curve([50, 40, 30], [80, 81, 82]), 1.0) == 0.0  # nothing gains
    assert choose_alpha(curve([50, 60, 60], [80, 80, 80]), 0.0) == 0.1  # of equals the nearest to the start


LARGER = {"projection_dim": 16, "loss_type": "clip", "learning_rate": 0.02, "logging_steps": 50}
TEXT = {"text_config": {"word_dim": 8, "hidden_size": 16}}


def write_pairs(folder: Path, seed: int) -> Path:
    """Other images than those of another seed with the same captions: to learn one is to forget the other."""
    write_features(folder, train=20)
    features = np.random.default_rng(seed).normal(size=(20, 6)).astype(np.float32)
    np.save(folder / "train_ims.npy", features)
    np.save(folder / "dev_ims.npy", features)
    shutil.copy(folder / "train_caps.txt", folder / "dev_caps.txt")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two data sets, and a model that was trained on the first."""
    folder = tmp_path_factory.mktemp("data")
    known = write_pairs(folder / "known", 0)
    write_pairs(folder / "new", 1)
    steps = TEXT | {"max_steps": 100, "eval_steps": 100, "save_steps": 100}
    run_recipe(build_recipe(tiny_values(known, folder / "first", stages=[{"name": "base"}], **LARGER | steps)))
    return folder


def tuning(data: Path, output: Path, **changed) -> dict:
    control = {"control_dataset": "precomp", "control_options": {"data_dir": str(data / "known")}}
    steps = {"max_steps": 60, "eval_steps": 60, "save_steps": 60}
    given = LARGER | steps | control | {"init_from": str(data / "first"), "stages": [{"name": "tune"}]} | changed
    values = tiny_values(data / "new", output, **given)
    return {key: value for key, value in values.items() if key not in ("text_config", "min_word_count")}


@pytest.fixture(scope="module")
def done(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("done") / "run"
    run_recipe(build_recipe(tuning(data, output, permitted_loss=5.0)))
    return output


def test_run_ends_between_start_and_end(data, done):
    result = read_json(done / "metrics.json")
    found = result["interpolation"]
    assert found["control"]["source"] == "precomp" and found["control"]["split"] == "validation"
    assert [point["alpha"] for point in found["points"]] == list(ALPHAS)
    assert 0 < found["alpha"] < 1, "neither end: else the test says little"
    start, tuned, chosen = (
        load_file(folder / "model.safetensors") for folder in (data / "first", done / "stages/tune", done)
    )
    expected = interpolate(start, tuned, found["alpha"])
    assert expected.keys() == chosen.keys() and all(torch.equal(expected[name], chosen[name]) for name in chosen)
    assert not torch.equal(start["logit_scale"], tuned["logit_scale"])

    splits = {name: build_recipe(tuning(data, done)).data.load()["validation"] for name in ("validation",)}
    splits["control"] = build_recipe(tuning(data, done)).control.load_split()
    processor = VSEProcessor.from_pretrained(done)
    for alpha, folder in ((0.0, data / "first"), (1.0, done / "stages" / "tune"), (found["alpha"], done)):
        model = VSEModel.from_pretrained(folder)
        (point,) = (point for point in found["points"] if point["alpha"] == alpha)
        for name, split in splits.items():
            metrics = evaluate_retrieval(model, processor, split, progress=False)
            assert point[name] == metrics | {"mean_recall": metrics["rsum"] / 6}
    of_control = {point["alpha"]: point["control"]["mean_recall"] for point in found["points"]}
    assert of_control[found["alpha"]] >= of_control[0.0] - 5 > of_control[1.0]
    assert (done / "interpolation.png").stat().st_size > 5000
    told = run_summary(done, result)
    assert f"(WiSE-FT): alpha {found['alpha']:g}; mean of R@1" in told
    assert f"{of_control[found['alpha']]:.1f} chosen (at most 5 may be lost)" in told


def test_same_command_again_gives_the_same(data, done, tmp_path):
    shutil.copytree(done, tmp_path / "again")
    (tmp_path / "again" / "metrics.json").unlink()
    recipe = build_recipe(tuning(data, tmp_path / "again", permitted_loss=5.0))
    (tmp_path / "again" / "recipe.yaml").write_text(recipe.to_yaml())
    run_recipe(recipe)
    assert same_outcome(tmp_path / "again", done)


def test_frozen_tower_is_read_from_its_cache_with_the_same_result(data, tmp_path, monkeypatch):
    found = {}
    for cached in (True, False):
        changed = {"freeze_text_tower": True, "cache_frozen": cached, "max_steps": 4, "eval_steps": 4, "save_steps": 4}
        result = run_recipe(build_recipe(tuning(data, tmp_path / str(cached), **changed)))
        found[cached] = [(p["validation"]["rsum"], p["control"]["rsum"]) for p in result["interpolation"]["points"]]
    assert found[True] == found[False]
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 1  # the captions are the same in all splits


def tune(rank: int, data: str, output: str) -> None:
    """One of two processes."""
    steps = {"max_steps": 4, "eval_steps": 4, "save_steps": 4, "per_device_train_batch_size": 4}
    run_recipe(build_recipe(tuning(Path(data), Path(output), permitted_loss=5.0, **steps)))


def test_two_processes_choose_together(data, tmp_path):
    output = tmp_path / "run"
    in_processes(2, tune, str(data), str(output))
    result = read_json(output / "metrics.json")
    found, start = result["interpolation"], result["start"]["metrics"]["validation"]["metrics"]
    assert result["environment"]["processes"] == 2 and found["points"][0]["validation"]["rsum"] == start["rsum"]
    chosen = next(point for point in found["points"] if point["alpha"] == found["alpha"])
    assert chosen["validation"]["rsum"] == result["metrics"]["validation"]["metrics"]["rsum"]
    ends = (load_file(folder / "model.safetensors") for folder in (data / "first", output / "stages" / "tune"))
    expected, written = interpolate(*ends, found["alpha"]), load_file(output / "model.safetensors")
    assert all(torch.equal(expected[name], written[name]) for name in written)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"init_from": None}, "control_dataset does nothing: there is no start to interpolate with: give init_from"),
        ({"control_dataset": None}, "control_options does nothing: there is no control set: give control_dataset"),
        ({"control_options": {"dificulty": "easy"}}, "unknown key 'dificulty'; did you mean 'difficulty'?"),
        ({"control_options": {"num_train": "many"}}, "control_options: num_train must be int"),
        ({"control_options": {"streaming": True}}, "control_options has the unknown key 'streaming'"),
        ({"control_options": {"split": 3}}, "control_options.split is the name of a split, got 3"),
        ({"permitted_loss": -1}, "permitted_loss is a number from 0 to 100, got -1"),
        ({"stages": [{"name": "a"}, {"name": "b", "permitted_loss": 2.0}]}, "permitted_loss does nothing in a stage"),
        (
            {"stages": [{"name": "a"}, {"name": "b", "projection_type": "mlp"}]},
            "stage 'b': projection_type gives other weights than the start has",
        ),
    ],
)
def test_control_set_without_effect_is_refused(changed, message, tmp_path):
    values = tuning(tmp_path, tmp_path / "run", **changed)
    with pytest.raises(ValueError, match=message):
        build_recipe({key: value for key, value in values.items() if value is not None})


def test_control_set_that_cannot_be_read_stops_the_run_at_once(data, tmp_path):
    wrong = {"control_options": {"data_dir": str(data / "known"), "split": "tset"}}
    with pytest.raises(ValueError, match=r"control_dataset \(its split: control_options.split\): .* no split 'tset'"):
        run_recipe(build_recipe(tuning(data, tmp_path / "run", **wrong)))
    with pytest.raises(ValueError, match="control_dataset has images, but the data of training have features"):
        run_recipe(
            build_recipe(tuning(data, tmp_path / "run", control_dataset="scenes", control_options={"num_eval": 9}))
        )
    assert not (tmp_path / "run").exists()


def test_options_of_the_control_set_can_be_given_in_parts(tmp_path):
    values = tuning(tmp_path, tmp_path / "run", control_options={"data_dir": "known"})
    recipe = build_recipe(values, {"control_options.split": "test"})
    assert (recipe.control.split, recipe.control.options) == ("test", {"data_dir": "known"})
