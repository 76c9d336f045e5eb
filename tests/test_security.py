"""What `.github/SECURITY.md` promises of the whole package; single promises have their tests beside their code."""

import ast
import builtins
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_vse
from hf_vse.cli.main import main
from tests.conftest import save_photographs

ROOT = Path(hf_vse.__file__).parents[1]
POLICY = ROOT / ".github" / "SECURITY.md"
SOURCES = sorted(path for folder in ("hf_vse", "scripts", "spaces_demo") for path in (ROOT / folder).rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "os.execv", "os.execve", "os.spawnv", "torch.load",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "numpy.load", "runpy.run_path", "tempfile.mktemp",
    "torch.hub.load", "torch.jit.load",
}  # fmt: skip
FORBIDDEN_OPTIONS = {"shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True}
# Where it is done on purpose: an adapter or a row loss that a person names, the model that a Space shows, a loss to
# compare with.
RUNS_CODE = {
    "scripts/benchmarks/loss_step.py": "exec_module",
    "hf_vse/embed/load.py": "exec_module",
    "hf_vse/objectives/own.py": "exec",
    "spaces_demo/encoder.py": "trust_remote_code",
}


def call_name(node: ast.Call) -> str:
    """`a.b.c` of what is called, as far as it is a plain name."""
    parts, place = [], node.func
    while isinstance(place, ast.Attribute):
        parts.append(place.attr)
        place = place.value
    return ".".join(reversed([*parts, place.id])) if isinstance(place, ast.Name) else f"?.{'.'.join(reversed(parts))}"


def suspicious(path: Path) -> Iterator[str]:
    """What in a file could run the code of others."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (f"import {each.name}" for each in node.names if each.name.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLERS:
            yield f"import {node.module}"
        if not isinstance(node, ast.Call):
            continue
        name = call_name(node)
        options = {each.arg: each.value.value for each in node.keywords if isinstance(each.value, ast.Constant)}
        if name in FORBIDDEN_CALLS or name.endswith(".exec_module"):
            yield name
        for option, value in FORBIDDEN_OPTIONS.items():
            if options.get(option) is value:
                yield f"{option}={value}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_code_runs_the_code_of_others(path):
    allowed = RUNS_CODE.get(path.relative_to(ROOT).as_posix())
    assert [each for each in suspicious(path) if allowed is None or allowed not in each] == []


def test_what_is_looked_for_is_found(tmp_path):
    lines = ["import pickle", "from joblib import load", "x = eval('1')", "torch.load(p)", "yaml.load(s)"]
    lines += ["run(c, shell=True)", "np.load(p, allow_pickle=True)", "f(weights_only=False)"]
    lines += ["spec.loader.exec_module(m)", "AutoModel.from_pretrained(n, trust_remote_code=True)"]
    (tmp_path / "bad.py").write_text("\n".join(lines))
    assert len(list(suspicious(tmp_path / "bad.py"))) == len(lines)
    for path in RUNS_CODE:
        assert list(suspicious(ROOT / path)), f"{path} runs no code any more: take it off the list"


class Evil:
    """Pickled, it makes a file when it is read."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    return save_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    def ask(*words):
        raise AssertionError(f"a person was asked: {words}")

    monkeypatch.setattr(builtins, "input", ask)


def commands(model: Path, photographs: Path, folder: Path) -> dict[str, list[str]]:
    """Every command that loads a model."""
    data = ["--dataset", "imagefolder", "--data_dir", photographs, "--split", "train"]
    found = {
        "index": ["index", photographs, folder / "gallery", "--model", model],
        "evaluate": ["evaluate", model, *data, "--output", folder / "numbers.json"],
        "features": ["features", *data[:4], "--model", model, "--output", folder / "features.npy"],
        "push": ["push", model, "org/name"],
    }
    return {name: [*map(str, words), "--quiet"] for name, words in found.items()}


@pytest.mark.parametrize("command", ["index", "evaluate", "features", "push", "search"])
@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_never_read(command, weights, model, photographs, tmp_path, capsys):
    """Neither under their own name nor under that of safetensors."""
    gallery = tmp_path / "gallery"
    if command == "search":
        assert main(commands(model, photographs, tmp_path)["index"]) == 0
    (model / "model.safetensors").unlink()
    (model / weights).write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
    words = commands(model, photographs, tmp_path) | {"search": ["search", str(gallery), "a red circle", "--quiet"]}
    capsys.readouterr()
    assert main(words[command]) == 1
    said = capsys.readouterr().err
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1, said
    assert not (tmp_path / "marker").exists()
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker")))  # the trap is one
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("command", ["index", "evaluate", "features", "push"])
def test_code_of_a_model_is_not_run_and_nobody_is_asked_whether(command, model, photographs, tmp_path, capsys):
    """The installed code is, where it knows the model; otherwise it is refused."""
    marker = tmp_path / "marker"
    trap = f"import os\nos.mkdir({str(marker)!r})\n"
    for path in model.glob("*.py"):
        path.write_text(path.read_text() + trap)
    (model / "evil.py").write_text(f"{trap}class Evil:\n    pass\n")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        values = json.loads((model / name).read_text())
        evil = dict.fromkeys(("AutoTokenizer", "AutoImageProcessor"), "evil.Evil")
        values["auto_map"] = values.get("auto_map", {}) | evil
        (model / name).write_text(json.dumps(values))
    assert main(commands(model, photographs, tmp_path)[command]) in (0, 1)
    assert "[y/N]" not in "".join(capsys.readouterr())
    assert not marker.exists()


def test_what_the_policy_names_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", POLICY.read_text(encoding="utf-8"))
    assert len(named) > 15
    for path, name in named:
        assert re.search(rf"^(def {name}\(|{name} = )", (ROOT / path).read_text(encoding="utf-8"), re.M), (path, name)


def test_the_policy_invents_no_address():
    text = POLICY.read_text(encoding="utf-8")
    assert "@" not in text and "Report a vulnerability" in text
