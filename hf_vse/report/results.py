"""The front page of many runs: one table and one chart for each test set, the seeds of a recipe in one row.

from hf_vse.report.results import write_results
write_results("results", ["runs"])
"""

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_vse.evaluation.record import read_evaluation
from hf_vse.evaluation.tables import short_names
from hf_vse.files import write_text
from hf_vse.plots.canvas import RECALLS
from hf_vse.plots.runs import runs_figure
from hf_vse.report.figures import to_svg
from hf_vse.report.page import PAGE_FILE, RECORD_FILE, check_report

METRICS = (*RECALLS, "rsum")
RUN_FILE = "metrics.json"  # what a run leaves in its folder
# Keys of a recipe that differ between seeds, or say where files lie.
NO_RESULT = {"seed", "output_dir", "data_dir", "frozen_cache_dir", "image_tower_weights"}


@dataclass(frozen=True)
class Run:
    """One record of one file."""

    name: str
    file: Path
    record: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    commit: str | None = None

    @property
    def test_set(self) -> tuple[str, str]:
        """What runs must share to stand in one table: the title of the split, and the digest of its ids."""
        record = self.record
        title = record.get("title") or f"{record.get('dataset', '')} {record.get('split', '')}".strip()
        return title or "unnamed data", record.get("fingerprint") or str(self.file)

    @property
    def settings(self) -> dict[str, Any]:
        return {key: value for key, value in self.recipe.items() if key not in NO_RESULT}


@dataclass(frozen=True)
class Repeats:
    """The runs that differ in nothing but the seed."""

    name: str
    runs: Sequence[Run]

    def values(self, metric: str) -> list[float]:
        return [run.record["metrics"][metric] for run in self.runs]

    def mean(self, metric: str) -> float:
        return statistics.fmean(self.values(metric))

    def spread(self, metric: str) -> float | None:
        """The standard deviation over the runs, None of one."""
        return statistics.stdev(self.values(metric)) if len(self.runs) > 1 else None


def write_results(folder: str | Path, paths: Iterable[str | Path]) -> tuple[Path, dict[str, list[Repeats]]]:
    """Writes the page of all evaluations in `paths`.

    Args:
        folder: gets `index.html`, which needs no other file and no network, and `report.json`, the numbers behind it.
        paths: files of evaluations (what `hf-vse evaluate` or a run wrote), and folders, which are searched for the
            `metrics.json` of runs.

    Returns:
        The file of the page, and by test set the results, best rsum first.

    Raises:
        OSError, ValueError: a path holds no evaluation; see also `check_report`.
        ImportError: the extra `report` is not installed.
    """
    folder = check_report(folder)
    tables = results_by_test_set(read_runs(paths, folder))
    record = numbers(tables)
    page = render_results(tables, record, folder)
    write_text(folder / RECORD_FILE, json.dumps(record, indent=1, ensure_ascii=False))
    write_text(folder / PAGE_FILE, page)
    return folder / PAGE_FILE, tables


def read_runs(paths: Iterable[str | Path], folder: Path) -> list[Run]:
    """The records of all files, each file once, and none of the page's own `folder`."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: give the folder of runs, or files of hf-vse evaluate")
        inside = [each for each in sorted(path.rglob(RUN_FILE)) if not is_part(each)] if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} has no {RUN_FILE} of a run: give a folder of runs, or files of hf-vse evaluate")
        found |= dict.fromkeys(each.resolve() for each in inside)
    kept = [path for path in found if not path.is_relative_to(folder.resolve())]
    return [run for path in kept for run in runs_of(path)]


def is_part(path: Path) -> bool:
    """Whether this is one seed of a run with `joined_seeds`, which stands for all of them."""
    return path.parents[1].name == "seeds" and (path.parents[2] / RUN_FILE).is_file()


def runs_of(path: Path) -> list[Run]:
    evaluation = read_evaluation(path)
    records, recipe = evaluation["metrics"], evaluation.get("recipe", {})
    commit = evaluation.get("environment", {}).get("commit")
    own = path.parent.name if path.name == RUN_FILE else path.stem
    shown = {name: own for name in records} if "stages" in evaluation else short_names(records)
    return [Run(shown[name], path, record, recipe, commit) for name, record in records.items()]


def results_by_test_set(runs: Sequence[Run]) -> dict[str, list[Repeats]]:
    """Title of the test set -> its results; a second test set of one title bears its digest too."""
    sets: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        sets.setdefault(run.test_set, []).append(run)
    titles = [title for title, _ in sets]
    return {
        title if titles.count(title) == 1 else f"{title} ({digest[-12:]})": results_of(group)
        for (title, digest), group in sorted(sets.items())
    }


def results_of(runs: Sequence[Run]) -> list[Repeats]:
    """The runs of one recipe together; a run without a recipe alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = json.dumps(run.settings, sort_keys=True, default=str)
        groups.setdefault(settings if run.recipe else f"{run.file} {run.name}", []).append(run)
    results = [Repeats(common_name([run.name for run in group]), group) for group in groups.values()]
    return sorted(results, key=lambda result: -result.mean("rsum"))


def common_name(names: Sequence[str]) -> str:
    """`nce-0`, `nce-1` -> `nce`; the first name where they have nothing in common."""
    if len(set(names)) == 1:
        return names[0]
    return os.path.commonprefix(list(names)).rstrip("-_. ") or names[0]


def differences(results: Sequence[Repeats]) -> list[dict[str, Any]]:
    """For each result the settings in which it differs from another result of the table; None where it has none."""
    settings = [result.runs[0].settings for result in results]
    keys = sorted({key for each in settings for key in each})
    told = [key for key in keys if len({json.dumps(each.get(key), default=str) for each in settings if each}) > 1]
    return [{key: each[key] for key in told if key in each} for each in settings]


def numbers(tables: Mapping[str, Sequence[Repeats]]) -> dict[str, Any]:
    """The page as JSON."""
    return {
        "format": 1,
        "results": {
            title: [
                {
                    "name": result.name,
                    "runs": [run.name for run in result.runs],
                    "metrics": {metric: result.values(metric) for metric in METRICS},
                    "settings": differing,
                }
                for result, differing in zip(results, differences(results), strict=True)
            ]
            for title, results in tables.items()
        },
    }


def pages_near(result: Repeats, folder: Path) -> list[tuple[str, str]]:
    """(name, address) of the runs' own pages, where they have one near the front page."""
    pages = [(run.name, run.file.parent / "report" / PAGE_FILE) for run in result.runs]
    there = {name: page for name, page in pages if page.is_file()}
    return [(name, os.path.relpath(page, folder.resolve())) for name, page in there.items()]


def render_results(tables: Mapping[str, Sequence[Repeats]], record: Mapping[str, Any], folder: Path) -> str:
    from jinja2 import Environment

    room = files("hf_vse.report")
    source, style = (room.joinpath(name).read_text(encoding="utf-8") for name in ("results.html.j2", "page.css"))
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(
        style=style,
        tables=tables,
        numbers=record["results"],
        pages_near=lambda result: pages_near(result, folder),
        charts={
            title: to_svg(runs_figure({result.name: result.values("rsum") for result in named_apart(results)}))
            for title, results in tables.items()
        },
        data=json.dumps(record, ensure_ascii=False).replace("<", "\\u003c"),
    )


def named_apart(results: Sequence[Repeats]) -> list[Repeats]:
    """The same with different names."""
    names = [result.name for result in results]
    return [
        result if names.count(result.name) == 1 else Repeats(f"{result.name} ({place})", result.runs)
        for place, result in enumerate(results, start=1)
    ]
