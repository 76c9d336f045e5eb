"""What `hf-vse evaluate` has computed is not lost, whatever becomes of the places it writes to."""

import json
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hf_vse.cli.evaluate import write_outputs
from hf_vse.cli.main import main
from hf_vse.files import write_json
from hf_vse.report import page
from hf_vse.report.page import check_report, is_report
from tests.cli.test_cli import only
from tests.faults.killing import points_to_try, run


@pytest.fixture
def vectors(tmp_path):
    """A file of embeddings, which is judged in no time."""
    texts = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    path = tmp_path / "vectors.safetensors"
    given = {"image_embeds": texts[::2].clone(), "text_embeds": texts, "text_to_image": torch.arange(12) // 2}
    save_file(given, path)
    return path


def asked(vectors, tmp_path, *options: object) -> list[str]:
    words = ["evaluate", vectors, "--output", tmp_path / "numbers.json", *options, "--quiet"]
    return list(map(str, words))


def break_render(monkeypatch, error: Exception) -> None:
    def render(*_):
        raise error

    monkeypatch.setattr(page, "render_page", render)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("a fault of ours")])
def test_a_report_that_fails_leaves_the_numbers_and_prints_the_table(error, vectors, tmp_path, capsys, monkeypatch):
    break_render(monkeypatch, error)
    assert main(asked(vectors, tmp_path, "--report", tmp_path / "page")) == 1
    said = capsys.readouterr()
    assert "rsum" in said.out and str(tmp_path / "numbers.json") in said.out
    assert "error: the report could not be written" in said.err
    assert only(json.loads((tmp_path / "numbers.json").read_text()))["metrics"]["t2i_r10"] > 0
    assert not (tmp_path / "page").exists()


def test_numbers_that_cannot_be_written_are_printed(vectors, tmp_path, capsys, monkeypatch):
    def full(path, record):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("hf_vse.cli.evaluate.write_json", full)
    assert main(asked(vectors, tmp_path, "--report", tmp_path / "page", "--json")) == 1
    said = capsys.readouterr()
    assert only(json.loads(said.out))["metrics"]["rsum"] > 0
    assert "error: the numbers could not be written" in said.err and "free some disk space" in said.err
    assert is_report(tmp_path / "page") and not (tmp_path / "numbers.json").exists()


def test_what_was_written_may_be_written_anew(vectors, tmp_path, capsys):
    for _ in range(2):
        assert main(asked(vectors, tmp_path, "--report", tmp_path / "page")) == 0, capsys.readouterr().err
    (tmp_path / "page" / "index.html").write_text("mine")
    with pytest.raises(ValueError, match="holds other files and no report"):
        check_report(tmp_path / "page")
    assert main(asked(vectors, tmp_path, "--report", tmp_path / "page")) == 1
    assert (tmp_path / "page" / "index.html").read_text() == "mine"


def test_a_missing_package_is_noticed_before_the_work(vectors, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None if name == "jinja2" else object())
    assert main(asked(vectors, tmp_path, "--report", tmp_path / "page")) == 1
    assert "a report needs jinja2: pip install" in capsys.readouterr().err
    assert not (tmp_path / "numbers.json").exists()


def test_numbers_are_the_old_or_the_new_ones_wherever_the_writer_dies(tmp_path):
    work = tmp_path / "work"
    write_json(work / "numbers.json", {"metrics": "old"})
    new = {"metrics": ["new"] * 100}

    def action():
        write_outputs(SimpleNamespace(document=new), work / "numbers.json", None)

    found = []
    for at in points_to_try(action, work):
        write_json(work / "numbers.json", {"metrics": "old"})
        assert run(action, work, at) == -signal.SIGKILL
        found.append(json.loads((work / "numbers.json").read_text()))
        assert run(action, work) == 0 and json.loads((work / "numbers.json").read_text()) == new
    assert {"metrics": "old"} in found and all(each in ({"metrics": "old"}, new) for each in found)
