"""A run whose objective is a function in a file: trained, recorded, continued, and used without the file."""

import shutil

import pytest
import torch

from hf_vse.data.sources import load_pairs
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.files import read_json
from hf_vse.hub.push import leave_card
from hf_vse.model.losses_vse import OBJECTIVES
from hf_vse.training.run import run_recipe
from hf_vse.training.trainer import VSETrainer
from tests.faults.killing import slow
from tests.objectives.test_own import EXAMPLE, same_table_afterwards
from tests.training.test_trainer import arguments
from tests.training.tiny_runs import same_outcome, tiny_recipe, write_features

__all__ = ["same_table_afterwards"]  # a fixture of every test here


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The example in a folder of the user's, who gives its path from where the command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "mine" / "dcl.py")
    write_features(tmp_path / "data")
    return tmp_path / "mine" / "dcl.py"


def recipe(folder, **changed):
    stages = [{"name": "base", "loss_type": "mine/dcl.py:dcl"}, {"name": "heads", "projection_type": "mlp"}]
    return tiny_recipe(folder / "data", folder / "run", **{"stages": stages, "temperature": 0.2} | changed)


def test_a_run_is_recorded_continued_and_used_without_the_file(file, tmp_path):
    result = run_recipe(recipe(tmp_path))
    name = result["loss_type"]
    assert name.startswith("dcl.py:dcl@") and [stage["loss_type"] for stage in result["stages"]] == [name, name]
    config = read_json(tmp_path / "run" / "config.json")
    assert config["loss_type"] == name and "mine" not in str(config)
    assert f"loss_type: mine/{name}" in (tmp_path / "run" / "recipe.yaml").read_text()
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"`{name}` (a function in a file that is not part of the model). Decoupled" in card
    assert "log( sum_{j is negative} e^{s_j/t} ) - p/t" in card and "t the temperature (0.2)" in card

    shutil.copytree(tmp_path / "run", tmp_path / "before")
    run_recipe(recipe(tmp_path))  # nothing is trained again
    assert same_outcome(tmp_path / "run", tmp_path / "before")
    file.write_text(file.read_text() + "# another version\n")
    with pytest.raises(ValueError, match=r"run holds a run with a different stages .*give another --output_dir"):
        run_recipe(recipe(tmp_path))
    with pytest.raises(ValueError, match=r"mine/dcl.py has changed, its digest is now \w{12}: restore the file"):
        recipe(tmp_path, stages=[{"name": "base", "loss_type": f"mine/{name}"}])

    file.unlink()
    del OBJECTIVES[name]
    with pytest.raises(FileNotFoundError, match="the file mine/dcl.py does not exist: give its path"):
        recipe(tmp_path)
    leave_card(tmp_path / "run")
    assert (tmp_path / "run" / "README.md").read_text() == card
    encoder, data = load_encoder(str(tmp_path / "run"), device="cpu"), load_pairs("precomp", data_dir="data")
    found = evaluate_retrieval(encoder.model, encoder.processor, data["validation"])
    assert found["rsum"] == pytest.approx(result["metrics"]["validation"]["metrics"]["rsum"])
    words, features = encoder.processor(text=["a dog", "two cats"]), torch.randn(2, 6)
    with pytest.raises(ValueError, match=f"'{name}' is a function in a file, which is not part of the model"):
        encoder.model(**words, image_features=features, return_loss=True)
    with pytest.raises(ValueError, match="name it yourself, by --loss_type path/to/file.py:function or by"):
        VSETrainer(encoder.model, arguments(tmp_path), data["train"], processing_class=encoder.processor)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss_execution": "streamed"}, r"'dcl.py:dcl@\w+' has no stream; use loss execution chunked or dense"),
        ({"negatives": "ring"}, "has no stream; use loss execution chunked or dense and negatives gather"),
        ({"margin": 0.3}, "margin does nothing: only hardnce, "),
        ({"loss_type": "mine/dcl.py:dlc"}, "mine/dcl.py has no function 'dlc'; its functions are: dcl"),
        ({"loss_type": "mine/dcl.py"}, "loss_type 'mine/dcl.py' is unknown"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(changed, message, file, tmp_path):
    given = {"loss_type": "mine/dcl.py:dcl", "stages": [{"name": "base"}]} | changed
    with pytest.raises(ValueError, match=message):
        run_recipe(recipe(tmp_path, **given))
    assert not (tmp_path / "run").exists()


@slow
def test_gradient_cache_and_warmup_train_with_it(file, tmp_path):
    options = {"loss_type": "mine/dcl.py:dcl", "stages": [{"name": "base"}]}
    whole = run_recipe(recipe(tmp_path, **options))
    shutil.move(tmp_path / "run", tmp_path / "whole")
    cached = run_recipe(recipe(tmp_path, **options, grad_cache_batch_size=3))
    one, other = (each["metrics"]["validation"]["metrics"]["rsum"] for each in (whole, cached))
    assert one == pytest.approx(other, abs=1e-6)
    shutil.rmtree(tmp_path / "run")
    assert run_recipe(recipe(tmp_path, **options, hard_negative_warmup_epochs=0.5))["loss_type"] == whole["loss_type"]
