"""Pictures of training: the curves of a run, and the runs of an experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_vse.plots.canvas import DIRECTIONS, PALETTE, RECALLS, new_figure, save, take_literally, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 6  # times the range of the middle half of the means
LOSS_COLOUR, BEST_COLOUR = PALETTE[0], PALETTE[5]
RECALL_COLOURS = {"R@1": PALETTE[0], "R@5": PALETTE[1], "R@10": PALETTE[2]}
LINE_STYLES = {"i2t": "-", "t2i": "--"}


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
    figure = new_figure(5.4 * len(panels), 3.8)
    for draw, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(axes, log_history)
    return save(figure, path)


def _draw_loss(axes: "Axes", log_history: Sequence[Mapping[str, float]]) -> None:
    for key, label, colour, marker in (
        ("loss", "training", LOSS_COLOUR, ""),
        ("eval_loss", "validation", BEST_COLOUR, "o"),
    ):
        entries = [entry for entry in log_history if key in entry]
        if entries:
            steps, values = _positions(entries, "step"), [entry[key] for entry in entries]
            alone = "o" if len(entries) == 1 else marker
            axes.plot(steps, values, color=colour, label=label, marker=alone, markersize=4, linewidth=1.6)
    tidy(axes, "Loss", "step")
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
            color=RECALL_COLOURS[label],
            linestyle=LINE_STYLES[direction],
            marker="o",
            markersize=3,
            linewidth=1.6,
            label=f"{label} {DIRECTIONS[direction]}",
        )
    sums = [entry.get("eval_rsum", sum(entry.get(f"eval_{name}", 0.0) for name in RECALLS)) for entry in evaluations]
    best = max(range(len(sums)), key=sums.__getitem__)
    where = _positions(evaluations, unit)[best]
    axes.axvline(where, color=BEST_COLOUR, linewidth=1.2, linestyle=":", zorder=0)
    tidy(axes, f"Validation recall, best rsum {sums[best]:.1f} at {unit} {where:g}", unit)
    axes.set_ylabel("%", fontsize=10)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _positions(entries: Sequence[Mapping[str, float]], unit: str) -> list[float]:
    """Positions of the entries on the horizontal axis; numbered from 1 if the log does not tell."""
    return [round(entry.get(unit, number), 2) for number, entry in enumerate(entries, start=1)]


def plot_interpolation(
    points: Sequence[Mapping[str, Any]], alpha: float, permitted_loss: float, path: str | Path
) -> Path:
    """Mean recall on validation and on a control set over the share of tuned weights, with the chosen share marked.

    Args:
        points: entries with "alpha", and "validation" and "control", maps with "mean_recall" in percent; the first is
            the start, of which `permitted_loss` points may be lost on the control set.
        alpha: the chosen share.
        path: the PNG file to write.
    """
    figure = new_figure(5.6, 3.8)
    axes = figure.subplots()
    for name, colour in (("validation", PALETTE[0]), ("control", PALETTE[1])):
        values = [point[name]["mean_recall"] for point in points]
        axes.plot([point["alpha"] for point in points], values, "o-", color=colour, markersize=4, label=name)
    least = points[0]["control"]["mean_recall"] - permitted_loss
    axes.axhline(least, color=PALETTE[1], linewidth=1.2, linestyle="--", zorder=0, label="least on control")
    axes.axvline(alpha, color=BEST_COLOUR, linewidth=1.2, linestyle=":", zorder=0)
    tidy(axes, f"Weights between start and end, chosen alpha {alpha:g}", "alpha: 0 is the start, 1 the tuned weights")
    axes.set_ylabel("mean of R@1, R@5, R@10, %", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return save(figure, path)


def plot_grid(runs: Sequence[Mapping[str, Any]], path: str | Path, base: str | None = None) -> Path:
    """The runs of a grid: a row for each cell, a point for each run, and a bar for their mean.

    Args:
        runs: entries with "cell" and "metrics" with "rsum".
        path: the PNG file to write.
        base: the cell that others are compared with: a line marks its mean.

    Raises:
        ValueError: if there is no run.
    """
    if not runs:
        raise ValueError("runs is empty: give the runs of hf_vse.training.grid.run_grid")
    of_cell: dict[str, list[float]] = {}
    for run in runs:
        of_cell.setdefault(run["cell"], []).append(run["metrics"]["rsum"])
    return save(runs_figure(of_cell, base), path)


def runs_figure(rsums: Mapping[str, Sequence[float]], base: str | None = None) -> "Figure":
    """A row for each name: a point for each rsum, and a bar for their mean. `base` is the row to compare with.

    With a base the axis shows what is near it; what lies far below most others is written as a number.
    """
    figure = new_figure(6.4, 1.0 + 0.22 * len(rsums))
    axes = figure.subplots()
    for place, (cell, values) in enumerate(rsums.items()):
        colour = BEST_COLOUR if cell == base else PALETTE[0]
        axes.barh(place, sum(values) / len(values), 0.72, color=colour, alpha=0.35)
        axes.plot(values, [place] * len(values), "o", color=colour, markersize=3.5)
    if base is not None and base in rsums:
        axes.axvline(sum(rsums[base]) / len(rsums[base]), color=BEST_COLOUR, linewidth=1.2, linestyle=":")
        means = [sum(values) / len(values) for values in rsums.values()]
        first, third = np.quantile(means, (0.25, 0.75))
        far = [mean < first - FAR * (third - first) for mean in means]
        near = [values for values, is_far in zip(rsums.values(), far, strict=True) if not is_far]
        lowest, highest = (pick(map(pick, near)) for pick in (min, max))
        left = max(0, lowest - 0.5 * (highest - lowest) - 1)
        axes.set_xlim(left, highest + 0.1 * (highest - lowest) + 1)
        for place, mean in enumerate(means):
            if mean < left:
                axes.text(left, place, f" {mean:.0f}", va="center", fontsize=9, color=PALETTE[0])
    tidy(axes, "", "rsum")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_yticks(range(len(rsums)), list(rsums))
    take_literally(axes.get_yticklabels())
    return figure
