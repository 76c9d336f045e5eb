"""A run and its folder: what it takes, what it continues from, what it never writes."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_vse.files import read_json, write_json
from hf_vse.training import run
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.checkpoints import check_checkpoint, last_checkpoint
from hf_vse.training.claim import check_claim, claim
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe
from tests.training.tiny_runs import same_outcome, tiny_recipe, write_features

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
ONE_STAGE = {"stages": [{"name": "base"}]}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_features(tmp_path_factory.mktemp("data") / "features")


@pytest.fixture(scope="module")
def done(data, tmp_path_factory) -> Path:
    """A finished run, made with a token."""
    output = tmp_path_factory.mktemp("done") / "run"
    recipe = tiny_recipe(data, output, **ONE_STAGE)
    recipe.values["hub_token"] = TOKEN
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "check_together", lambda *given: None)  # a token without push_to_hub is refused
        run_recipe(recipe)
    return output


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_the_token_of_the_hub_is_in_no_file(done):
    files = [path for path in done.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files) and (done / "recipe.yaml") in files
    for path in files:
        packed = zipfile.ZipFile(path) if zipfile.is_zipfile(path) else None
        contents = [packed.read(name) for name in packed.namelist()] if packed else [path.read_bytes()]
        assert not any(TOKEN.encode() in content for content in contents), path


def test_the_token_is_there_for_pushing(tmp_path):
    assert VSETrainingArguments(output_dir=str(tmp_path), hub_token=TOKEN).hub_token == TOKEN


def test_a_folder_with_files_of_a_person_is_refused(data, tmp_path):
    recipe = tiny_recipe(data, tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".hidden").write_text("")
    (tmp_path / "mine" / "run.log").write_text("what the shell wrote")
    check_claim(recipe)
    (tmp_path / "mine" / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match="holds files that are not from a run .*give an empty or new folder as --output_dir"
    ):
        check_claim(recipe)
    (tmp_path / "mine" / "recipe.yaml").write_text("dataset: scenes\n")
    with pytest.raises(ValueError, match="recipe.yaml was not written by a run"):
        run_recipe(recipe)
    assert (tmp_path / "mine" / "recipe.yaml").read_text() == "dataset: scenes\n"


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"\x80\x81", b"a: b: c", b""])
def test_a_run_whose_recipe_is_damaged_is_refused(content, data, tmp_path):
    recipe = tiny_recipe(data, tmp_path / "run")
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="recipe.yaml"):
        check_claim(recipe)


def test_a_run_that_was_claimed_and_killed_is_taken_up(data, tmp_path):
    claim(tiny_recipe(data, tmp_path / "run"))
    check_claim(tiny_recipe(data, tmp_path / "run"))
    with pytest.raises(ValueError, match="was not written by a run"):  # no stages, and another recipe
        check_claim(tiny_recipe(data, tmp_path / "run", seed=3))
    (tmp_path / "run" / "stages").mkdir()
    with pytest.raises(ValueError, match="holds a run with a different seed "):
        check_claim(tiny_recipe(data, tmp_path / "run", seed=3))


def test_a_run_of_older_versions_with_a_token_is_taken_up(data, tmp_path):
    recipe = tiny_recipe(data, tmp_path / "run")
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml() + f"hub_token: {TOKEN}\n")
    check_claim(recipe)


def test_numbers_outlive_pictures_and_card(data, tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise RuntimeError("no font\nto draw with")

    monkeypatch.setattr("hf_vse.training.result.draw_pictures", fail)
    monkeypatch.setattr("hf_vse.training.result.leave_card", fail)
    result = run_recipe(tiny_recipe(data, tmp_path / "run", **ONE_STAGE))
    assert read_json(tmp_path / "run" / "metrics.json")["metrics"] == result["metrics"]
    assert "no pictures: no font to draw with" in caplog.text and "no card: no font" in caplog.text


def test_a_disk_too_small_is_told_before_training(data, tmp_path, monkeypatch):
    asked = []

    def check(field, path, needed=0):
        asked.append(needed)
        if needed:
            raise OSError("too small")
        return path

    monkeypatch.setattr(run, "check_output_folder", check)
    with pytest.raises(OSError, match="too small"):
        run_recipe(tiny_recipe(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    model = torch.nn.Linear(999, 1)
    args = VSETrainingArguments(output_dir=str(tmp_path), save_total_limit=2)
    assert run.bytes_needed(model, args) == (3 * 3 + 2) * 4000 + 5 * 2**20


def test_a_disk_that_fills_up_is_one_line(data, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 8512 vs 8406")

    recipe = tiny_recipe(data, tmp_path / "run", **ONE_STAGE)
    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", fail)
        with pytest.raises(RuntimeError, match="unexpected pos"):  # with room on the disk it is something else
            run_recipe(recipe)
        broken.setattr(run, "FULL", float("inf"))
        with pytest.raises(OSError, match="the disk of .* is full .*make room and repeat the command"):
            run_recipe(recipe)


def unfinished(done: Path, target: Path) -> Path:
    """The run, as if it had been killed after its last checkpoint; returns the folder of its stage."""
    copied(done, target)
    stage = target / "stages" / "base"
    (stage / "stage.json").unlink()
    (stage / "model.safetensors").unlink()
    (target / "metrics.json").unlink()
    return stage


class RunsCode:
    """What it would do when it is unpickled leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt", "scheduler.pt", "other.bin"])
@pytest.mark.parametrize("as_zip", [True, False])
def test_a_checkpoint_that_would_run_code_is_not_read(name, as_zip, done, tmp_path, data):
    stage = unfinished(done, tmp_path / "run")
    checkpoint, trace = stage / "checkpoint-4", tmp_path / "trace"
    torch.save(RunsCode(trace), checkpoint / name, _use_new_zipfile_serialization=as_zip)
    if as_zip:
        with pytest.raises(
            ValueError, match=f"{name} was not written by this program: loading it would run .*mkdir.* remove"
        ):
            last_checkpoint(stage)
    else:  # not what transformers writes: damaged, whatever is in it
        assert last_checkpoint(stage) == str(stage / "checkpoint-2")
    assert not trace.exists()


def spoil(path: Path, content: bytes | None) -> None:
    """Cuts a file in half, or writes something else."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)


DAMAGED = {
    "state cut": ("trainer_state.json", None),
    "state is a list": ("trainer_state.json", b"[]"),
    "state of another step": ("trainer_state.json", b'{"global_step": 2}'),
    "state with a foreign key": ("trainer_state.json", b'{"global_step": 4, "code": "rm"}'),
    "state deep": ("trainer_state.json", b"[" * 100_000),
    "weights cut": ("model.safetensors", None),
    "weights empty": ("model.safetensors", b""),
    "optimizer cut": ("optimizer.pt", None),
    "random state garbage": ("rng_state.pth", b"garbage"),
    "scheduler empty": ("scheduler.pt", b""),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_checkpoint_is_passed_over(damage, done, tmp_path, caplog):
    stage = unfinished(done, tmp_path / "run")
    name, content = DAMAGED[damage]
    spoil(stage / "checkpoint-4" / name, content)
    assert last_checkpoint(stage) == str(stage / "checkpoint-2")
    assert "checkpoint-4 is damaged" in caplog.text and "trying the previous one" in caplog.text
    spoil(stage / "checkpoint-2" / name, content if "state" not in damage else b"{}")
    assert last_checkpoint(stage) is None
    assert "is complete: the stage starts again" in caplog.text


def test_a_run_goes_on_from_the_checkpoint_before_and_ends_the_same(done, tmp_path, data):
    stage = unfinished(done, tmp_path / "run")
    spoil(stage / "checkpoint-4" / "optimizer.pt", None)
    write_json(stage / "checkpoint-2" / "trainer_state.json", best_elsewhere(stage / "checkpoint-2"))
    recipe = tiny_recipe(data, tmp_path / "run", **ONE_STAGE)
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    run_recipe(recipe)
    assert same_outcome(tmp_path / "run", done)


def best_elsewhere(checkpoint: Path) -> dict:
    """The state of a run that was made in a folder that is gone."""
    state = read_json(checkpoint / "trainer_state.json", dict)
    assert state["best_model_checkpoint"]
    return state | {"best_model_checkpoint": f"/gone/{Path(state['best_model_checkpoint']).name}"}


def test_a_moved_run_finds_its_best_checkpoint(done, tmp_path):
    stage = unfinished(done, tmp_path / "run")
    checkpoint = stage / "checkpoint-4"
    write_json(checkpoint / "trainer_state.json", best_elsewhere(checkpoint))
    check_checkpoint(checkpoint)
    best = Path(read_json(checkpoint / "trainer_state.json")["best_model_checkpoint"])
    assert best.parent == stage and best.is_dir()


def test_a_damaged_stage_says_how_to_go_on(done, tmp_path, data):
    copied(done, tmp_path / "run")
    recipe = tiny_recipe(data, tmp_path / "run", **ONE_STAGE)
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.to_yaml())
    spoil(tmp_path / "run" / "stages" / "base" / "model.safetensors", None)
    with pytest.raises(ValueError, match="model of a stage cannot be used .*base.*remove .*stage.json"):
        run_recipe(recipe)
    (tmp_path / "run" / "stages" / "base" / "stage.json").unlink()
    run_recipe(recipe)
    assert same_outcome(tmp_path / "run", done)


def test_fresh_heads_do_not_depend_on_what_was_trained_before(data, tmp_path):
    run_recipe(tiny_recipe(data, tmp_path / "whole"))
    copied(tmp_path / "whole", tmp_path / "half")
    for name in ("recipe.yaml", "metrics.json", "stages/heads/stage.json"):
        (tmp_path / "half" / name).unlink()
    for checkpoint in (tmp_path / "half" / "stages" / "heads").glob("checkpoint-*/trainer_state.json"):
        checkpoint.unlink()
    recipe = tiny_recipe(data, tmp_path / "half")
    claim(recipe)
    torch.manual_seed(77)  # whatever went before in this process
    run_recipe(recipe)
    assert same_outcome(tmp_path / "half", tmp_path / "whole")


def test_stages_start_from_seeds_of_their_own(data, tmp_path):
    recipe = tiny_recipe(data, tmp_path / "run", seed=5)
    seeds = [run.Stage(recipe, place).seed for place in (0, 1)]
    assert seeds[0] == 5 and seeds[1] != 5
    assert seeds == [run.Stage(tiny_recipe(data, tmp_path / "other", seed=5), place).seed for place in (0, 1)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"report_to": "zz"}, "report_to .*'zz'.* is not supported"),
        ({"report_to": "clearml"}, "report_to: clearml is not installed"),
        ({"per_device_train_batch_size": 1}, "a batch of one pair has no negatives"),
        ({"lr_scheduler_type": "zz"}, "lr_scheduler_type 'zz' is unknown; one of linear"),
        ({"log_level": "warnin"}, "log_level 'warnin' is unknown; did you mean 'warning'"),
        ({"optim": "adamw"}, "optim 'adamw' is unknown; did you mean"),
        ({"stages": [{"name": "a"}, {"name": "b", "hub_strategy": "end"}]}, "hub_strategy does nothing"),
        ({"stages": [{"name": "a"}, {"name": "b", "optim": "zz"}]}, "stage 'b': optim 'zz' is unknown"),
        (
            {"stages": [{"name": "a"}, {"name": "b", "projection_type": "zz"}]},
            "stage 'b': projection_type must be one of",
        ),
        ({"stages": [{"name": "a"}, {"name": "b", "bf16": True, "fp16": True}]}, "training arguments: .*fp16"),
        (
            {"stages": [{"name": "a"}, {"name": "b", "loss_type": "hardnec"}]},
            "stage 'b': loss_type 'hardnec' is unknown",
        ),
        ({"stages": [{"name": "a"}, {"name": "b", "loss_type": "nce", "hard_negative_warmup_epochs": 1}]}, "is for"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_at_the_start(changed, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_recipe(tiny_recipe(data, tmp_path / "run", **changed))
    assert not (tmp_path / "run").exists()


def test_weights_of_a_stage_are_read_from_safetensors_alone(tmp_path):
    folder = tmp_path / "stages" / "a" / "checkpoint-2"
    folder.mkdir(parents=True)
    write_json(folder / "trainer_state.json", {"global_step": 2})
    torch.save({}, folder / "pytorch_model.bin")
    assert last_checkpoint(folder.parent) is None
    save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    assert last_checkpoint(folder.parent) == str(folder)


def test_a_recipe_without_stages_has_one(tmp_path):
    assert build_recipe({"dataset": "scenes"}).stages == ({"name": "train"},)
