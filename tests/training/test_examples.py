"""The scripts in `scripts/examples/` run from the root of the repository, here on a few scenes and in this process."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.stem: path for path in (ROOT / "scripts" / "examples").glob("*.py")}
FEW = {r'"num_train": \d+': '"num_train": 16', r'"num_eval": \d+': '"num_eval": 12', r"^SCENES = \d+": "SCENES = 40"}
SMALLER = {
    "hidden_sizes: [32, 64, 128]": "hidden_sizes: [8, 8, 8]",
    "resize: 64\ncrop: 64": "resize: 32\ncrop: 32",
    "num_train_epochs: 4": "num_train_epochs: 2\ndiagnostics_steps: 0",
    "train_batch_size: 32": "train_batch_size: 16",
}
# In this order: one judges what another has trained.
SAYS = {
    "own_photographs": "hf-vse demo runs/examples/own_photographs/gallery",
    "compare_objectives": r"nce +[\d. ]+\nhardnce +[\d. ]+\nsiglip",
    "judge_two_models": r"rsum: [+-][\d.]+, 95 % from .*p = [01]\.\d{3}",
    "search_with_any_model": r"0\.\d\d  .*red.*\n0\.\d\d  .*\n0\.\d\d  ",
    "write_an_objective": r"focal\.py:focal@[0-9a-f]{12} [\d.]+$",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The folder to run in, with a network that is smaller still."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "scripts" / "examples").mkdir(parents=True)
    recipe = (ROOT / "scripts" / "examples" / "small.yaml").read_text(encoding="utf-8")
    for large, small in SMALLER.items():
        assert large in recipe
        recipe = recipe.replace(large, small)
    (folder / "scripts" / "examples" / "small.yaml").write_text(recipe, encoding="utf-8")
    return folder


def test_every_example_is_run():
    assert EXAMPLES.keys() == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name, place, monkeypatch, capsys):
    text = EXAMPLES[name].read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    for large, few in FEW.items():
        text = re.sub(large, few, text, flags=re.MULTILINE)
    monkeypatch.chdir(place)
    Path(f"{name}.py").write_text(text, encoding="utf-8")
    runpy.run_path(f"{name}.py", run_name="__main__")
    assert re.search(SAYS[name], capsys.readouterr().out.strip(), flags=re.DOTALL)
