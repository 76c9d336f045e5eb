"""Every case of every `cases_*.py`; see `table.py`."""

import shutil
from importlib import import_module
from pathlib import Path

import pytest

from hf_vse.cli.main import main
from tests.bad_input.table import Case, Parts, check

FILES = sorted(Path(__file__).parent.glob("cases_*.py"))
CASES: list[Case] = [case for path in FILES for case in import_module(f"tests.bad_input.{path.stem}").CASES]


@pytest.fixture(scope="session")
def parts(tmp_path_factory, tiny_model, make_photographs) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    photographs = make_photographs(folder)
    gallery = folder / "gallery"
    assert main(["index", str(photographs), str(gallery), "--model", str(tiny_model), "--quiet"]) == 0
    return Parts(tiny_model, photographs, gallery)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_line(case, parts, tmp_path, capfd):
    check(case, parts, tmp_path / "here", capfd)


def test_every_case_has_a_name_of_its_own():
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
