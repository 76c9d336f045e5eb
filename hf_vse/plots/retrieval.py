"""Pictures of retrieval: recalls side by side, and what a query finds."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hf_vse.plots.canvas import DIRECTIONS, PALETTE, QUIET, RECALLS, new_figure, save, take_literally, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT_COLOUR = PALETTE[2]
THUMBNAIL = 192  # pixels: of an image in a grid


def plot_recall_bars(
    results: Mapping[str, Mapping[str, float]], path: str | Path, chance: Mapping[str, float] | None = None
) -> Path:
    """Recalls of one or several models side by side.

    Args:
        results: for the name of each model its recalls in percent, by the keys of `RECALLS`; others are ignored.
        path: the PNG file to write.
        chance: the recalls of guessing, drawn as a line across each group.

    Raises:
        ValueError: if there is no model, or a recall is missing.
    """
    if not results:
        raise ValueError("results is empty: give at least one model with its recalls")
    for model, values in results.items():
        if missing := [name for name in RECALLS if name not in values]:
            raise ValueError(f"results[{model!r}] lacks {', '.join(missing)}: give the output of retrieval_metrics")
    figure = new_figure(max(7.0, 3.0 + 1.8 * len(results)), 3.8)
    axes = figure.subplots()
    draw_recall_bars(axes, results, chance or {})
    for line in axes.collections:
        line.set_label("chance")
    axes.set_ylabel("recall, %", fontsize=10)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    if len(results) > 1 or chance:
        handles = [*axes.containers, *axes.collections[:1]]  # one line stands for all
        above: dict[str, Any] = dict(ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        take_literally(axes.legend(handles=handles, frameon=False, fontsize=9, **above).get_texts())
    else:
        take_literally([axes.set_title(next(iter(results)), loc="left", fontsize=11)])
    return save(figure, path)


def draw_recall_bars(
    axes: "Axes",
    results: Mapping[str, Mapping[str, float]],
    chance: Mapping[str, float],
    intervals: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> None:
    """A group of bars for each recall, in it one for each model with its interval; chance as a line."""
    centres = [place + (0.5 if name.startswith("t2i") else 0.0) for place, name in enumerate(RECALLS)]
    width = 0.8 / len(results)
    for number, (model, values) in enumerate(results.items()):
        places = [centre + (number + 0.5) * width - 0.4 for centre in centres]
        heights = [values[name] for name in RECALLS]
        tops: Sequence[float] = heights
        axes.bar(places, heights, 0.92 * width, color=PALETTE[number % len(PALETTE)], label=model)
        if intervals is not None:
            below, tops = zip(*(intervals[model][name] for name in RECALLS), strict=True)
            errors = np.maximum(0, [np.subtract(heights, below), np.subtract(tops, heights)])
            axes.errorbar(places, heights, errors, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
        for place, height, top in zip(places, heights, tops, strict=True):
            axes.annotate(f"{height:.1f}", (place, top), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    for name, centre in zip(RECALLS, centres, strict=True):
        if name in chance:
            axes.hlines(chance[name], centre - 0.44, centre + 0.44, color="black", linewidth=1.2)
    tidy(axes, "", "")
    axes.set_xticks(centres, [f"{label}\n{DIRECTIONS[name[:3]]}" for name, label in RECALLS.items()])


def plot_retrieval_grid(
    queries: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    correct: Sequence[Sequence[bool]],
    path: str | Path,
    scores: Sequence[Sequence[float]] | None = None,
) -> Path:
    """For every sentence a row: the sentence, then the images found for it, the right ones in a green frame.

    Args:
        queries: the sentences.
        images: for every sentence the images in the order in which they were found.
        correct: for every image whether it belongs to the sentence.
        path: the PNG file to write.
        scores: for every image its similarity, written below it.

    Raises:
        ValueError: if there is no sentence or no image, or the lengths differ.
    """
    _check_grid(queries, images, correct, scores)
    columns = max(len(row) for row in images)
    figure = new_figure(2.5 + 1.3 * columns, 1.55 * len(queries))
    grid = figure.subplots(len(queries), columns + 1, squeeze=False, width_ratios=[2.0, *[1.0] * columns])
    for axes in grid.flat:
        axes.set_axis_off()
    for row, query in enumerate(queries):
        sentence = textwrap.fill(query, 27, max_lines=6, placeholder=" ...")
        text = grid[row, 0].text(0.0, 0.5, sentence, va="center", fontsize=10, transform=grid[row, 0].transAxes)
        take_literally([text])
        for rank, (image, right) in enumerate(zip(images[row], correct[row], strict=True)):
            draw_found(grid[row, rank + 1], image, right, None if scores is None else scores[row][rank])
    return save(figure, path)


def plot_contact_sheet(
    title: str, images: Sequence[Image.Image], labels: Sequence[str], path: str | Path, columns: int = 5
) -> Path:
    """The images found for one query, best first, in rows of `columns`, with a line below each.

    Raises:
        ValueError: if there is no image, or not one label for each.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"there are {len(images)} images and {len(labels)} labels: give one label for each image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(2.0 * columns, 0.5 + 2.2 * rows)
    take_literally([figure.suptitle(textwrap.fill(title, 24 * columns), x=0.02, ha="left", fontsize=12)])
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, label in zip(grid.flat, images, labels, strict=False):
        draw_found(axes, image, right=False, score=None)
        take_literally([axes.set_xlabel(textwrap.shorten(label, 30, placeholder="..."), fontsize=8, color=QUIET)])
    return save(figure, path)


def _check_grid(queries: Sequence[str], images: Sequence, correct: Sequence, scores: Sequence | None) -> None:
    if not queries or not any(images):
        raise ValueError(f"queries has {len(queries)} sentences and images nothing to show: give at least one of each")
    for name, values in (("images", images), ("correct", correct), ("scores", scores)):
        if values is None:
            continue
        if len(values) != len(queries):
            raise ValueError(f"{name} has {len(values)} rows for {len(queries)} queries: give one row for each query")
        for row, (of_query, found) in enumerate(zip(values, images, strict=True)):
            if len(of_query) != len(found):
                raise ValueError(
                    f"{name}[{row}] has {len(of_query)} entries for {len(found)} images: give one for each"
                )


def draw_found(axes: "Axes", image: Image.Image, right: bool, score: float | None) -> None:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    axes.imshow(small, interpolation="lanczos" if min(small.size) >= 32 else "nearest")
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=RIGHT_COLOUR if right else "#C8C8C8", linewidth=4.0 if right else 1.0)
    if score is not None:  # the tick says it too, for those who see no green
        weight, colour = ("bold", RIGHT_COLOUR) if right else ("normal", QUIET)
        axes.set_xlabel(f"{score:.2f}{' ✓' if right else ''}", fontsize=9, color=colour, weight=weight, labelpad=4)
