"""The front page: which runs stand together, and their means against numpy."""

import json
import re

import numpy as np
import pytest

from hf_vse.cli.main import main
from hf_vse.evaluation.record import evaluation_of, plain_record
from hf_vse.report.results import METRICS, write_results

ENVIRONMENT = {"versions": {}, "device": "cpu", "threads": 1, "commit": "abc", "processes": 1}
HOSTILE = "a</script><script>document.title = 'hacked'</script>$x$"


def leave_run(folder, values, fingerprint="one", **recipe):
    """The `metrics.json` of a run with these six recalls."""
    folder.mkdir(parents=True)
    metrics = dict(zip(METRICS, [*values, sum(values)], strict=True))
    record = plain_record(metrics, dict.fromkeys(METRICS[:6], 0.1), images=7, captions=9, split="test", source="mine",
                          facts={"loss_type": recipe.get("loss_type")}, fingerprint=fingerprint)  # fmt: skip
    whole = evaluation_of({"test": record}, ENVIRONMENT) | {"stages": [], "recipe": recipe}
    (folder / "metrics.json").write_text(json.dumps(whole))


@pytest.fixture
def runs(tmp_path):
    values = np.random.default_rng(0).uniform(10, 90, (4, 6)).round(2)
    for seed in range(3):
        place = tmp_path / f"runs/nce-{seed}"
        leave_run(place, values[seed].tolist(), loss_type="nce", seed=seed, output_dir=str(seed))
    leave_run(tmp_path / f"runs/{HOSTILE.replace('/', '')}", [99.0] * 6, loss_type="hardnce")
    leave_run(tmp_path / "runs/other", values[3].tolist(), fingerprint="two", loss_type="nce")
    leave_run(tmp_path / "runs/other/seeds/0", values[3].tolist(), fingerprint="two", loss_type="nce", seed=0)
    return tmp_path / "runs", values


def test_seeds_are_one_row_and_other_data_another_table(runs, tmp_path):
    folder, values = runs
    page, tables = write_results(tmp_path / "page", [folder, folder / "nce-0/metrics.json"])
    first, second = tables.values()
    assert [len(result.runs) for result in first] == [1, 3] and [len(result.runs) for result in second] == [1]
    assert first[1].name == "nce"
    for place, metric in enumerate(METRICS[:6]):
        assert first[1].mean(metric) == pytest.approx(values[:3, place].mean())
        assert first[1].spread(metric) == pytest.approx(values[:3, place].std(ddof=1))
    text = page.read_text()
    mean, spread = values[:3].sum(1).mean(), values[:3].sum(1).std(ddof=1)
    assert f"{mean:.1f}<small>± {spread:.1f}</small>" in text and "loss_type: hardnce" in text
    assert "output_dir:" not in text and text.count("<svg") == 2
    record = json.loads((tmp_path / "page/report.json").read_text())
    assert json.loads(re.search(r'id="record">(.*?)</script>', text)[1]) == record
    again, _ = write_results(tmp_path / "page", [folder])  # over the first page
    assert again.read_text() == text


def test_names_are_text(runs, tmp_path):
    page, _ = write_results(tmp_path / "page", [runs[0]])
    assert page.read_text().count("<script") == 1 and "$x$" in page.read_text()


def test_pages_of_runs_are_linked(runs, tmp_path):
    (runs[0] / "other/report").mkdir()
    (runs[0] / "other/report/index.html").write_text("a page")
    page, _ = write_results(tmp_path / "deep/page", [runs[0]])
    address = re.search(r'<a href="([^"#]*index.html)"', page.read_text())[1]
    assert (page.parent / address).resolve() == (runs[0] / "other/report/index.html").resolve()


def test_command_tells_the_best_and_refuses_what_is_no_result(runs, tmp_path, capsys):
    assert main(["report", str(runs[0]), "--output", str(tmp_path / "page"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["page"] == str(tmp_path / "page/index.html")
    (tmp_path / "empty").mkdir()
    for path, said in (("empty", "has no metrics.json of a run"), ("missing.json", "missing.json")):
        assert main(["report", str(tmp_path / path), "--output", str(tmp_path / "page2")]) == 1
        assert said in capsys.readouterr().err
    assert main(["report", str(runs[0]), "--output", str(runs[0])]) == 1
    assert "holds other files and no report" in capsys.readouterr().err
