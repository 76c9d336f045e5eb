"""What people who carry the project on rely on: files that CONTRIBUTING names, versions, the fast lane, releases."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import hf_vse

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / ".github/CONTRIBUTING.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FAST_LANE = (ROOT / "tests/fast_lane.txt").read_text(encoding="utf-8").split()


def test_files_and_targets_that_contributing_names_exist():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert (CONTRIBUTING.parent / link).exists(), link
    named = re.findall(r"`((?:hf_vse|tests|scripts|\.ci)/[\w./]*)`", text)
    named += re.findall(r"\b(?:hf_vse|tests|scripts)/[\w/]+\.\w+", text)
    for name in named:
        assert (ROOT / name).exists(), name
    assert len(set(named)) > 25
    targets = set(re.findall(r"`make\s([a-z-]+)", text))
    assert {"fast", "test", "test-timm"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.M), target


def test_names_that_contributing_gives_are_in_the_file_beside_them():
    text = CONTRIBUTING.read_text(encoding="utf-8")
    for file, name in (
        ("hf_vse/model/losses_vse.py", "OBJECTIVES"),
        ("hf_vse/model/losses_vse.py", "SETTINGS"),
        ("tests/model/test_losses.py", "naive_row"),
        ("hf_vse/embed/load.py", "LOADERS"),
        ("hf_vse/embed/load.py", "kind_of"),
        ("hf_vse/data/columns.py", "to_pairs"),
        ("hf_vse/data/sources.py", "SOURCES"),
        ("hf_vse/data/sources.py", "_OPTIONS"),
        ("hf_vse/evaluation/protocols.py", "PROTOCOLS"),
        ("hf_vse/evaluation/protocols.py", "protocol_results"),
        ("hf_vse/search/engine.py", "EngineStore"),
        ("hf_vse/search/locations.py", "open_store"),
        ("hf_vse/deprecation.py", "deprecated"),
    ):
        assert f"`{name}`" in text and f"`{file}`" in text
        assert re.search(rf"^(?:def |class )?{name}\b", (ROOT / file).read_text(), flags=re.M) or "tests/" in file
        assert name in (ROOT / file).read_text(), (file, name)


def test_the_version_is_in_one_place():
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hf_vse.__version__"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hf_vse.__version__


def test_the_fast_lane_is_a_list_of_files():
    assert sorted(set(FAST_LANE)) == FAST_LANE and all((ROOT / name).is_file() for name in FAST_LANE)
    left_out = ("tests/faults/", "tests/spaces_demo/", "tests/peers/", "tests/report/", "tests/test_timm.py")
    assert not [name for name in FAST_LANE if name.startswith(left_out)]


def lower_bounds() -> dict[str, str]:
    """name -> the oldest version, of all that the package and its extras need."""
    extras = PROJECT["project"]["optional-dependencies"]
    tools = set(extras["dev"]) | set(extras["docs"]) | set(extras["browser"])
    needed = [*PROJECT["project"]["dependencies"], *(each for extra in extras.values() for each in extra)]
    found = (re.match(r"([\w.-]+)(?:\[\w+\])?>=([\w.]+)", each) for each in needed if each not in tools)
    return {match[1]: match[2] for match in found if match}


def test_the_oldest_versions_are_the_lower_bounds():
    lines = (ROOT / ".ci/constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    oldest = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    bounds = lower_bounds()
    assert {name: oldest[name] for name in bounds} == bounds


def test_the_space_asks_for_the_same_versions():
    lines = (ROOT / "spaces_demo/requirements.txt").read_text(encoding="utf-8").split()
    asked = {match[1]: match[2] for line in lines if (match := re.match(r"([\w.-]+)>=([\w.]+)", line))}
    bounds = lower_bounds()
    assert "transformers" in asked and {name: bounds[name] for name in asked} == asked


def test_the_matrix_tries_oldest_and_newest():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["matrix"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"] and matrix["versions"] == ["newest"]
    assert matrix["include"] == [{"python": PROJECT["project"]["requires-python"].strip(">="), "versions": "oldest"}]
    assert jobs["matrix"]["steps"][-1]["run"].startswith("make matrix ")


def test_hooks_and_forms_are_valid():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [each["repo"] for each in hooks] == ["local"]  # nothing is fetched
    assert all(hook["language"] == "system" for hook in hooks[0]["hooks"])
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= content.keys(), form
        assert [field["type"] for field in content["body"]].count("textarea") >= 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("from hf_vse.files import no_such_name", "hf_vse.files has no no_such_name"),
        ("from hf_vse.nowhere import x", "there is no module hf_vse.nowhere"),
    ],
)
def test_imported_names_are_looked_for(tmp_path, line, said):
    program = (ROOT / ".ci/names.py").read_text(encoding="utf-8")
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/names.py").write_text(program)
    (tmp_path / "hf_vse").mkdir()
    (tmp_path / "hf_vse/files.py").write_text("def write(): ...\n")
    (tmp_path / "hf_vse/wrong.py").write_text(f"from hf_vse.files import write\n{line}\n")
    result = subprocess.run([sys.executable, tmp_path / ".ci/names.py"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr == f"hf_vse/wrong.py:2: {said}\n"


def test_records_name_no_folder_of_a_machine():
    found = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("scripts/benchmarks/results/*.json")}
    assert found and not [name for name, text in found.items() if re.search(r'[\s"](/tmp|/home|/root|/work)/', text)]
