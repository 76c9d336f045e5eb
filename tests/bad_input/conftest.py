"""Good things to begin with, and a folder of its own for each case."""

import shutil

import pytest

from hf_vse.cli.main import main
from tests.bad_input.table import Parts


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
