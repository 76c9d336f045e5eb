"""Plots of a finished run: training curves, and retrieved images for some captions."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from hf_vse.data.groups import plain_column
from hf_vse.data.images import decode_image
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTIONS, GROUP_ID, IMAGE, flatten_captions
from hf_vse.evaluation.evaluator import PairEmbeddings
from hf_vse.plots import plot_interpolation, plot_retrieval_grid, plot_training_curves
from hf_vse.plots.retrieval import THUMBNAIL

logger = logging.getLogger(__name__)

QUERIES = 6
FOUND = 6


@contextmanager
def failure_as_warning(what: str) -> Iterator[None]:
    """Logs an error of the block as a warning: model and numbers are saved, so the run goes on without the rest."""
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s", what, " ".join(str(error).split()) or type(error).__name__)


def draw_pictures(
    output_dir: Path, stages: list[dict[str, Any]], splits: dict[str, Any], embedded: dict[str, PairEmbeddings]
) -> list[Path]:
    """Draws all plots and returns their files."""
    pictures = []
    for stage in stages:
        if any("loss" in entry for entry in stage["log"]):
            name = "training_curves.png" if len(stages) == 1 else f"training_curves_{stage['name']}.png"
            pictures.append(plot_training_curves(stage["log"], output_dir / name))
    split = "test" if "test" in embedded else "validation"
    if split in embedded and IMAGE in splits[split].column_names:
        pictures.append(draw_retrieval(splits[split], embedded[split], output_dir / "retrieval.png"))
    if "train" in splits:
        pictures += draw_groups(splits["train"], output_dir / "near_duplicates.png")
    return pictures


def draw_interpolation(output_dir: Path, found: dict[str, Any] | None) -> None:
    """Draws what `choose_weights` measured, if anything; without matplotlib, nothing."""
    if found is not None and find_spec("matplotlib") is not None:
        plot_interpolation(found["points"], found["alpha"], found["permitted_loss"], output_dir / "interpolation.png")


def draw_groups(train: Dataset | IterableDataset, path: Path) -> list[Path]:
    """Plots some images of the largest groups of the training split, a line each; nothing where there is none."""
    if isinstance(train, IterableDataset) or not {GROUP_ID, IMAGE} <= {*train.column_names}:
        return []
    rows: dict[int, list[int]] = {}
    for row, group in enumerate(plain_column(train, GROUP_ID)):
        if group is not None:
            rows.setdefault(group, []).append(row)
    largest = [group for group in sorted(rows.values(), key=len, reverse=True)[:QUERIES] if len(group) > 1]
    if not largest:
        return []
    files = undecoded_images(train)
    images = [[decode_image(files[row][IMAGE], needed=THUMBNAIL) for row in group[:FOUND]] for group in largest]
    titles = [f"{len(group)} near-duplicate or related images" for group in largest]
    return [plot_retrieval_grid(titles, images, [[False] * len(each) for each in images], path)]


def draw_retrieval(dataset: Dataset, pairs: PairEmbeddings, path: Path) -> Path:
    """Plots the best-scoring images for some evenly spaced captions of a split."""
    texts, _ = flatten_captions([dataset.with_format(None)[row][CAPTIONS] for row in pairs.image_rows.tolist()])
    queries = [place * len(texts) // QUERIES for place in range(QUERIES)]
    scores = pairs.text_embeds[queries] @ pairs.image_embeds.T
    best = scores.topk(min(FOUND, scores.shape[1]), dim=1)
    files = undecoded_images(dataset)
    return plot_retrieval_grid(
        queries=[texts[query] for query in queries],
        images=[
            [decode_image(files[row][IMAGE], needed=THUMBNAIL) for row in pairs.image_rows[found].tolist()]
            for found in best.indices
        ],
        correct=[
            (found == pairs.text_to_image[query]).tolist() for query, found in zip(queries, best.indices, strict=True)
        ],
        scores=best.values.tolist(),
        path=path,
    )
