"""Pictures where people would rather look than read: training curves, recall bars, and what a sentence retrieves.

Every function writes one PNG file and returns its path. Figures are made without pyplot: no global state, no window,
so that a training process can draw too. Needs the extra `plots`.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RECALLS = {"i2t_r1": "R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "R@1", "t2i_r5": "R@5", "t2i_r10": "R@10"}
DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}

# The colour-blind-safe palette of Okabe and Ito.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_LOSS_COLOUR, _BEST_COLOUR, _RIGHT_COLOUR, _QUIET = PALETTE[0], PALETTE[5], PALETTE[2], "#8A8A8A"
_RECALL_COLOURS = {"R@1": PALETTE[0], "R@5": PALETTE[1], "R@10": PALETTE[2]}
_LINE_STYLES = {"i2t": "-", "t2i": "--"}

_DPI = 120
_MAX_BYTES = 300_000  # so that a model card with several of them still loads quickly
_THUMBNAIL = 192  # pixels: what a picture in a grid can show at _DPI


def plot_training_curves(log_history: Sequence[Mapping[str, float]], path: str | Path) -> Path:
    """The loss over the steps and, where the run was evaluated, the recalls with the best evaluation marked.

    Args:
        log_history: `TrainerState.log_history`; entries have "step" and "epoch", and "loss" or "eval_...".
        path: the PNG file to write.

    Raises:
        ValueError: if nothing was logged that could be drawn.
    """
    losses = [entry for entry in log_history if "loss" in entry]
    evaluations = [entry for entry in log_history if any(f"eval_{name}" in entry for name in RECALLS)]
    panels = [draw for draw, entries in ((_draw_loss, losses), (_draw_recalls, evaluations)) if entries]
    if not panels:
        raise ValueError(
            f"log_history has {len(log_history)} entries, none with 'loss' or 'eval_i2t_r1': "
            "give trainer.state.log_history of a run that has logged"
        )
    figure = _figure(5.4 * len(panels), 3.8)
    for draw, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(axes, log_history)
    return _save(figure, path)


def _draw_loss(axes: "Axes", log_history: Sequence[Mapping[str, float]]) -> None:
    for key, label, colour, marker in (
        ("loss", "training", _LOSS_COLOUR, ""),
        ("eval_loss", "validation", _BEST_COLOUR, "o"),
    ):
        entries = [entry for entry in log_history if key in entry]
        if entries:
            steps, values = _positions(entries, "step"), [entry[key] for entry in entries]
            alone = "o" if len(entries) == 1 else marker
            axes.plot(steps, values, color=colour, label=label, marker=alone, markersize=4, linewidth=1.6)
    _tidy(axes, "Loss", "step")
    axes.margins(x=0.02)
    if len(axes.lines) > 1:
        axes.legend(frameon=False, fontsize=9)


def _draw_recalls(axes: "Axes", log_history: Sequence[Mapping[str, float]]) -> None:
    evaluations = [entry for entry in log_history if any(f"eval_{name}" in entry for name in RECALLS)]
    unit = "epoch" if all("epoch" in entry for entry in evaluations) else "step"
    for name, label in RECALLS.items():
        entries = [entry for entry in evaluations if f"eval_{name}" in entry]
        direction = name.split("_")[0]
        axes.plot(
            _positions(entries, unit),
            [entry[f"eval_{name}"] for entry in entries],
            color=_RECALL_COLOURS[label],
            linestyle=_LINE_STYLES[direction],
            marker="o",
            markersize=3,
            linewidth=1.6,
            label=f"{label} {DIRECTIONS[direction]}",
        )
    sums = [entry.get("eval_rsum", sum(entry.get(f"eval_{name}", 0.0) for name in RECALLS)) for entry in evaluations]
    best = max(range(len(sums)), key=sums.__getitem__)
    where = _positions(evaluations, unit)[best]
    axes.axvline(where, color=_BEST_COLOUR, linewidth=1.2, linestyle=":", zorder=0)
    _tidy(axes, f"Validation recall, best rsum {sums[best]:.1f} at {unit} {where:g}", unit)
    axes.set_ylabel("%", fontsize=10)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _positions(entries: Sequence[Mapping[str, float]], unit: str) -> list[float]:
    """Where the entries lie on the horizontal axis; numbered from one where the log does not say."""
    return [round(entry.get(unit, number), 2) for number, entry in enumerate(entries, start=1)]


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
    figure = _figure(max(7.0, 3.0 + 1.8 * len(results)), 3.8)
    axes = figure.subplots()
    centres = [place + (0.5 if name.startswith("t2i") else 0.0) for place, name in enumerate(RECALLS)]
    width = 0.8 / len(results)
    for number, (model, values) in enumerate(results.items()):
        places = [centre + (number + 0.5) * width - 0.4 for centre in centres]
        heights = [values[name] for name in RECALLS]
        bars = axes.bar(places, heights, 0.92 * width, color=PALETTE[number % len(PALETTE)], label=model)
        axes.bar_label(bars, fmt="%.1f", fontsize=9 if len(results) < 4 else 7, padding=2)
    for name, centre in zip(RECALLS, centres, strict=True):
        if chance and name in chance:
            axes.hlines(chance[name], centre - 0.44, centre + 0.44, color="black", linewidth=1.2, label="chance")
    _tidy(axes, "", "")
    axes.set_xticks(centres, RECALLS.values())
    for direction, middle in zip(DIRECTIONS.values(), (centres[1], centres[4]), strict=True):
        below = dict(xycoords=("data", "axes fraction"), textcoords="offset points", ha="center", va="top")
        axes.annotate(direction, (middle, 0), (0, -22), **below, fontsize=11)
    axes.set_ylabel("recall, %", fontsize=10)
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    if len(results) > 1 or chance:
        handles = [*axes.containers, *axes.collections[:1]]  # one line stands for all
        above = dict(ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        _take_literally(axes.legend(handles=handles, frameon=False, fontsize=9, **above).get_texts())
    else:
        _take_literally([axes.set_title(next(iter(results)), loc="left", fontsize=11)])
    return _save(figure, path)


def plot_grid(runs: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """The runs of an experiment grid: one panel for each head and treatment of same-image captions, a row for each
    objective, a point for each run and a bar for their mean.

    Args:
        runs: entries with "cell", a name like `nce-mlp-masked-cold`, and "metrics" with "rsum".
        path: the PNG file to write.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("runs is empty: give the runs of hf_vse.training.grid.run_grid")
    parts = [(*run["cell"].split("-"), run["metrics"]["rsum"]) for run in runs]
    panels = list(dict.fromkeys((head, treatment) for _, head, treatment, _, _ in parts))
    rows = list(dict.fromkeys((loss, start) for loss, _, _, start, _ in parts))[::-1]
    figure = _figure(2.2 + 2.5 * len(panels), 1.0 + 0.34 * len(rows))
    for axes, panel in zip(
        figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0], panels, strict=True
    ):
        for place, row in enumerate(rows):
            values = [
                rsum
                for loss, head, treatment, start, rsum in parts
                if ((loss, start), (head, treatment)) == (row, panel)
            ]
            colour = PALETTE[row[1] == "warm"]
            axes.barh(place, sum(values) / max(1, len(values)), 0.72, color=colour, alpha=0.35)
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=3.5)
        _tidy(axes, ", ".join(panel), "rsum")
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
        axes.set_yticks(range(len(rows)), [f"{loss}{' after nce' if start == 'warm' else ''}" for loss, start in rows])
    return _save(figure, path)


def plot_retrieval_grid(
    queries: Sequence[str],
    images: Sequence[Sequence[Image.Image]],
    correct: Sequence[Sequence[bool]],
    path: str | Path,
    scores: Sequence[Sequence[float]] | None = None,
) -> Path:
    """For every sentence a row: the sentence, then the pictures found for it, the right ones in a green frame.

    Args:
        queries: the sentences.
        images: for every sentence the pictures in the order in which they were found.
        correct: for every picture whether it belongs to the sentence.
        path: the PNG file to write.
        scores: for every picture its similarity, written below it.

    Raises:
        ValueError: if there is no sentence or no picture, or the lengths differ.
    """
    _check_grid(queries, images, correct, scores)
    columns = max(len(row) for row in images)
    figure = _figure(2.5 + 1.3 * columns, 1.55 * len(queries))
    grid = figure.subplots(len(queries), columns + 1, squeeze=False, width_ratios=[2.0, *[1.0] * columns])
    for axes in grid.flat:
        axes.set_axis_off()
    for row, query in enumerate(queries):
        sentence = textwrap.fill(query, 27, max_lines=6, placeholder=" ...")
        text = grid[row, 0].text(0.0, 0.5, sentence, va="center", fontsize=10, transform=grid[row, 0].transAxes)
        _take_literally([text])
        for rank, (image, right) in enumerate(zip(images[row], correct[row], strict=True)):
            _draw_found(grid[row, rank + 1], image, right, None if scores is None else scores[row][rank])
    return _save(figure, path)


def plot_contact_sheet(
    title: str, images: Sequence[Image.Image], labels: Sequence[str], path: str | Path, columns: int = 5
) -> Path:
    """The pictures found for one query, best first, in rows of `columns`, with a line below each.

    Raises:
        ValueError: if there is no picture, or not one label for each.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"there are {len(images)} images and {len(labels)} labels: give one label for each image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = _figure(2.0 * columns, 0.5 + 2.2 * rows)
    _take_literally([figure.suptitle(textwrap.fill(title, 24 * columns), x=0.02, ha="left", fontsize=12)])
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, label in zip(grid.flat, images, labels, strict=False):
        _draw_found(axes, image, right=False, score=None)
        _take_literally([axes.set_xlabel(textwrap.shorten(label, 30, placeholder="..."), fontsize=8, color=_QUIET)])
    return _save(figure, path)


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


def _draw_found(axes: "Axes", image: Image.Image, right: bool, score: float | None) -> None:
    small = image.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    axes.imshow(small, interpolation="lanczos" if min(small.size) >= 32 else "nearest")
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=_RIGHT_COLOUR if right else "#C8C8C8", linewidth=4.0 if right else 1.0)
    if score is not None:  # the tick says it too, for those who see no green
        weight, colour = ("bold", _RIGHT_COLOUR) if right else ("normal", _QUIET)
        axes.set_xlabel(f"{score:.2f}{' ✓' if right else ''}", fontsize=9, color=colour, weight=weight, labelpad=4)


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that draws to memory."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "hf_vse[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: "Axes", title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(below, fontsize=10)
    axes.tick_params(labelsize=9, length=0)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")


def _take_literally(texts: Sequence[Any]) -> None:
    """Names and captions may hold a dollar sign, which would begin a formula."""
    for text in texts:
        text.set_parse_math(False)


def _save(figure: "Figure", path: str | Path) -> Path:
    """Writes the PNG, and its folder; a file too large is saved again with fewer colours, then with fewer pixels."""
    path = Path(path).expanduser()
    if path.suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r} must end in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=_DPI)
    with Image.open(path) as written:
        full = written.convert("RGB")
    for scale in (1.0, 0.75, 0.5):
        if path.stat().st_size <= _MAX_BYTES:
            break
        smaller = full.resize((round(full.width * scale), round(full.height * scale)), Image.Resampling.LANCZOS)
        _with_few_colours(smaller).save(path, format="PNG")
    return path


def _with_few_colours(image: Image.Image) -> Image.Image:
    """256 colours, dithered. Pillow's default method would turn small things, whose colours are rare, grey."""
    palette = image.quantize(256, method=Image.Quantize.FASTOCTREE)
    values = palette.getpalette("RGB") or []
    brightest = max(range(0, len(values), 3), key=lambda start: sum(values[start : start + 3]))
    values[brightest : brightest + 3] = 255, 255, 255  # the paper stays white
    palette.putpalette(values)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
