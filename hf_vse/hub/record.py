"""The record of a run, next to its model: what may be published of it, and whether it belongs to the weights."""

import csv
import filecmp
import logging
from pathlib import Path
from typing import Any

from hf_vse.hub.model_files import json_in, text_in, weight_files
from hf_vse.hub.private import without_paths

logger = logging.getLogger(__name__)

METRICS, RECIPE, EMISSIONS = "metrics.json", "recipe.yaml", "emissions.csv"


def read_record(directory: Path) -> dict[str, Any]:
    """What a run left in its directory, fit to be published: `metrics.json`, and what codecarbon measured.

    Raises:
        ValueError: a file is a link, or holds something else.
    """
    record = without_paths(json_in(directory, METRICS))
    if "stages" not in record:  # the record of an evaluation, or of something else
        return {}
    grams = emissions_in(directory)
    if grams is not None:
        known = {"emissions": round(grams, 3), "source": "codecarbon", "training_type": "training"}
        where = record.get("environment")
        device = where.get("device") if isinstance(where, dict) else None
        record["co2_eq_emissions"] = known | ({"hardware_used": device} if device else {})
    return record


def emissions_in(directory: Path) -> float | None:
    """Grams of CO2 equivalents that codecarbon wrote down; None if it did not."""
    text = text_in(directory, EMISSIONS)
    if text is None:
        return None
    rows = csv.DictReader(text.splitlines())
    try:
        if "emissions" not in (rows.fieldnames or ()):
            raise ValueError("no column emissions")
        return sum(1000 * float(row["emissions"]) for row in rows)
    except (TypeError, ValueError, csv.Error) as error:
        what = f"{directory / EMISSIONS} is not what codecarbon writes"
        raise ValueError(f"{what} ({error!s:.60}): remove it") from error


def run_of(saved: Path, origin: str) -> Path | None:
    """The directory of the run that made the weights in `saved`.

    Args:
        saved: the model as `save_pretrained` wrote it.
        origin: where the model was loaded from.

    Returns:
        None where no run is known, or the weights have changed since.
    """
    run = Path(origin) if origin else None
    if run is None or not run.is_dir() or not (run / METRICS).is_file():
        return None
    weights = weight_files(saved)
    if all((run / each.name).is_file() and filecmp.cmp(each, run / each.name, shallow=False) for each in weights):
        return run
    logger.warning("the weights are not those of %s any more: its metrics and pictures are not published", run)
    return None
