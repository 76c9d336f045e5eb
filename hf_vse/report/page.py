"""Writes the page: `index.html`, which needs no network and no other file, and `report.json`, the numbers behind it.

from hf_vse.report.page import write_report
write_report("report", judgements, dataset)
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_vse.data.schema import IMAGE
from hf_vse.embed.encoder import Encoder
from hf_vse.evaluation.judge import Judgement
from hf_vse.evaluation.tables import equal_captions_matter, short_names
from hf_vse.files import check_output_folder, write_text
from hf_vse.plots.canvas import DIRECTIONS
from hf_vse.report import examples, figures
from hf_vse.report.thumbnails import Thumbnails

PAGE_FILE, RECORD_FILE = "index.html", "report.json"
NEEDED = ("jinja2", "matplotlib")
RECORD_ELEMENT = b'<script type="application/json" id="record">'  # what tells our pages from others
METRICS = {
    "medr": "median rank", "meanr": "mean rank", "mrr": "MRR", "map_at_r": "mAP@R", "r_precision": "R-precision",
    "ndcg_10": "nDCG@10", "rsum": "rsum", "positives_per_query": "positives each",
}  # fmt: skip


def write_report(
    folder: str | Path,
    judgements: Sequence[Judgement],
    evaluation: Mapping[str, Any],
    images: Dataset | None = None,
    encoders: Sequence[Encoder | None] = (),
) -> Path:
    """Writes the page of one model or of several on one split.

    Args:
        judgements: with diagnostics, see `judge`.
        evaluation: of these models, see `hf_vse.evaluation.record`; written beside the page and inside it.
        images: the split with its column `image`; without it the page shows no photographs.
        encoders: of the judgements, to show where they look; None for one that is not at hand.

    Returns:
        The file of the page.

    Raises:
        OSError, ValueError, ImportError: see `check_report`.
    """
    if not judgements:
        raise ValueError("judgements is empty: judge at least one model")
    folder = check_report(folder)
    known = {name: each for name, each in zip(named(judgements), encoders, strict=False) if each is not None}
    page = render_page(named(judgements), evaluation, images, known)
    write_text(folder / RECORD_FILE, json.dumps(evaluation, indent=1, ensure_ascii=False))
    write_text(folder / PAGE_FILE, page)
    return folder / PAGE_FILE


def check_report(folder: str | Path) -> Path:
    """The folder, if a page can be written there; call it before the work.

    Raises:
        OSError: it is a file, or lies on a disk that is full or read-only.
        ValueError: it holds what is not a report.
        ImportError: the extra `report` is not installed.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f'a report needs {" and ".join(missing)}: pip install "hf_vse[report]"')
    folder = check_output_folder("report", folder)
    if folder.is_dir() and any(folder.iterdir()) and not is_report(folder):
        raise ValueError(f"report {folder} holds other files and no report: give a new or an empty folder")
    return folder


def is_report(folder: Path) -> bool:
    """Whether the folder holds a report."""
    page = folder / PAGE_FILE
    if not page.is_file() or not (folder / RECORD_FILE).is_file():
        return False
    return RECORD_ELEMENT in page.read_bytes()


def named(judgements: Sequence[Judgement]) -> dict[str, Judgement]:
    names = short_names(judgement.record["model"] for judgement in judgements)
    return dict(zip(names.values(), judgements, strict=True))


def render_page(
    judgements: Mapping[str, Judgement],
    evaluation: Mapping[str, Any],
    images: Dataset | None,
    encoders: Mapping[str, Encoder],
) -> str:
    from jinja2 import Environment

    source = files("hf_vse.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    style = files("hf_vse.report").joinpath("page.css").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    records = {name: judgement.record for name, judgement in judgements.items()}
    return template.render(
        style=style,
        records=records,
        first=next(iter(records.values())),
        whole=evaluation,
        # Nothing in it can end the script element in which it stands.
        data=json.dumps(evaluation, ensure_ascii=False).replace("<", "\\u003c"),
        figures=drawn(records),
        seen=seen(judgements, images, encoders),
        label=metric_label,
        metric_rows=metric_rows,
        with_equal_captions={name: each for name, each in records.items() if equal_captions_matter(each)},
        names={judgement.record["model"]: name for name, judgement in judgements.items()},
    )


def metric_label(name: str) -> str:
    """The words for a metric: `t2i_hit_r5` is "text to image hit R@5"."""
    for prefix, words in DIRECTIONS.items():
        if name.startswith(f"{prefix}_"):
            return f"{words} {metric_label(name.removeprefix(f'{prefix}_'))}"
    return METRICS.get(name) or re.sub(r"\br(\d+)$", r"R@\1", name.replace("_", " "))


def metric_rows(
    records: Mapping[str, Mapping[str, Any]], section: str, key: str | None = None
) -> list[dict[str, Any]]:
    """Rows of a table, one for each model and direction; metrics of no direction (rsum) are in the first row."""
    rows = []
    for model, record in records.items():
        found = record.get(section, {})
        metrics = (found.get(key, {}) if key else found).get("metrics", {})
        for prefix, direction in DIRECTIONS.items():
            numbers = {name[len(prefix) + 1 :]: value for name, value in metrics.items() if name.startswith(prefix)}
            if prefix == "i2t":
                numbers |= {name: value for name, value in metrics.items() if name[:3] not in DIRECTIONS}
            rows += [{"model": model, "direction": direction, "numbers": numbers}] if numbers else []
    return rows


def drawn(records: Mapping[str, Any]) -> dict[str, str]:
    """The SVG of each plot for which every record has numbers."""
    plots: dict[str, tuple[str, Callable]] = {
        "recall": ("intervals", figures.recall_figure),
        "similarity": ("diagnostics", figures.similarity_figure),
        "breakdown": ("diagnostics", figures.breakdown_figure),
        "calibration": ("diagnostics", figures.calibration_figure),
        "composition": ("composition", figures.composition_figure),
    }
    return {
        name: figures.to_svg(draw(records))
        for name, (needed, draw) in plots.items()
        if all(needed in record and (name != "breakdown" or name in record[needed]) for record in records.values())
    }


def seen(
    judgements: Mapping[str, Judgement], images: Dataset | None, encoders: Mapping[str, Encoder]
) -> dict[str, Any]:
    """The parts of the page that show photographs beside sentences."""
    captions = all(judgement.texts.captions for judgement in judgements.values())
    if images is None or IMAGE not in images.column_names or not captions:
        return {}
    thumbnails = Thumbnails(images)
    shown: dict[str, Any] = {
        "sentences": examples.sentence_examples(judgements, thumbnails),
        "images": examples.image_examples(judgements, thumbnails),
        "lit": examples.lit_examples(judgements, encoders, images),
    }
    diagnosed = {name: each for name, each in judgements.items() if "diagnostics" in each.record}
    shown["failures"] = {name: examples.failures(each, thumbnails) for name, each in diagnosed.items()}
    shown["expected"] = {name: examples.expected_occurrences(each) for name, each in diagnosed.items()}
    shown["hubs"] = {name: examples.hubs(each, thumbnails) for name, each in diagnosed.items()}
    return shown
