"""The plots of the page, as SVG that stands inside it.

Every function takes the records of one or several models, by name, and gives a figure; a model has the same colour
throughout the page.
"""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_vse.plots.canvas import PALETTE, QUIET, new_figure, take_literally, tidy
from hf_vse.plots.retrieval import draw_recall_bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Records = Mapping[str, Record]
FEW = 10  # queries of a bin: the share of right ones among fewer says nothing
_POSITIVE, _HARDEST, _RANDOM = PALETTE[2], PALETTE[5], QUIET


def to_svg(figure: "Figure") -> str:
    """The figure as an SVG element, with text as text; equal figures give equal bytes."""
    from matplotlib import rc_context

    text = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "hf_vse"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = re.sub(r"<metadata>.*?</metadata>", "", body[body.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img"', body, count=1)


def recall_figure(records: Records) -> "Figure":
    """Recalls with their intervals; chance as a line."""
    figure = new_figure(9.0, 3.4)
    axes = figure.subplots()
    metrics, intervals = ({name: each[entry] for name, each in records.items()} for entry in ("metrics", "intervals"))
    draw_recall_bars(axes, metrics, next(iter(records.values()))["chance"], intervals)
    axes.set_ylabel("% (black line: chance)", fontsize=9)
    axes.set_ylim(0, 110)
    name_models(axes, records)
    return figure


def name_models(axes: "Axes", records: Records) -> None:
    if len(records) > 1:
        legend = axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
        take_literally(legend.get_texts())


def similarity_figure(records: Records) -> "Figure":
    """For each model how similar captions are to their image, to the best other image, and to a random one."""
    figure = new_figure(9.0, 2.1 * len(records))
    panels = figure.subplots(len(records), 1, squeeze=False)[:, 0]
    for axes, (model, record) in zip(panels, records.items(), strict=True):
        found = record["diagnostics"]["similarities"]
        edges, texts = found["edges"], found["t2i"]
        for values, label, colour in (
            (found["random_negatives"], "random images", _RANDOM),
            (texts["hardest_negatives"], "best wrong image", _HARDEST),
            (texts["positives"], "own image", _POSITIVE),
        ):
            total = sum(values["counts"])
            shares = [100 * count / total for count in values["counts"]]
            axes.stairs(
                shares, edges, fill=True, color=colour, alpha=0.45, label=f"{label} (mean {values['mean']:.2f})"
            )
        tidy(
            axes,
            "" if len(records) == 1 else model,
            "cosine similarity of a caption to an image" if axes is panels[-1] else "",
        )
        axes.set_ylabel("% of captions", fontsize=9)
        axes.legend(frameon=False, fontsize=8)
    low, high = occupied([record["diagnostics"]["similarities"] for record in records.values()])
    for axes in panels:
        axes.set_xlim(low, high)
    return figure


def occupied(found: Sequence[Record]) -> tuple[float, float]:
    """The range of similarities that occur."""
    shown = [
        each
        for of in found
        for each in (of["random_negatives"], of["t2i"]["hardest_negatives"], of["t2i"]["positives"])
    ]
    filled = np.flatnonzero(np.sum([each["counts"] for each in shown], axis=0))
    return found[0]["edges"][filled[0]], found[0]["edges"][filled[-1] + 1]


def breakdown_figure(records: Records) -> "Figure":
    """Text-to-image R@1 by the length of the caption and by its rarest word."""
    figure = new_figure(9.0, 2.8)
    panels = figure.subplots(1, 2)
    counted = next(iter(records.values()))["diagnostics"]["breakdown"]["frequency_in"]
    where = "the training captions" if counted == "train_captions" else "these captions"
    for axes, kind, below in zip(
        panels, ("length", "rarest_word"), ("length of the caption", f"its rarest word in {where}"), strict=True
    ):
        for number, (model, record) in enumerate(records.items()):
            bins = record["diagnostics"]["breakdown"][kind]
            labels = [each["bin"].removesuffix(" words").removesuffix(" occurrences") for each in bins]
            colour = PALETTE[number % len(PALETTE)]
            axes.plot(range(len(bins)), [each["r1"] for each in bins], "o-", color=colour, label=model, markersize=4)
            axes.set_xticks(range(len(bins)), labels, fontsize=8)
        tidy(axes, "", f"{below} ({'words' if kind == 'length' else 'occurrences'})")
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("text to image R@1, %", fontsize=9)
    name_models(panels[0], records)
    return figure


def calibration_figure(records: Records) -> "Figure":
    """How often the first image is the right one, by the confidence of the model, in bins of at least ten."""
    figure = new_figure(4.2, 3.4)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=QUIET, linewidth=1, linestyle=":")
    for number, (model, record) in enumerate(records.items()):
        bins = [each for each in record["diagnostics"]["calibration"]["fitted"]["bins"] if each["queries"] >= FEW]
        axes.plot(
            [each["confidence"] for each in bins],
            [each["accuracy"] for each in bins],
            "o-",
            color=PALETTE[number % len(PALETTE)],
            label=model,
            markersize=4,
        )
    tidy(axes, "", "confidence, %")
    axes.set_ylabel("R@1, %", fontsize=9)
    name_models(axes, records)
    return figure


def composition_figure(records: Records) -> "Figure":
    """Accuracy on each kind of foil with its interval; chance as a line."""
    kinds = list(next(iter(records.values()))["composition"]["kinds"])
    figure = new_figure(9.0, 0.9 + (0.16 + 0.16 * len(records)) * len(kinds))
    axes = figure.subplots()
    height = 0.8 / len(records)
    for number, (model, record) in enumerate(records.items()):
        found = [record["composition"]["kinds"][kind] for kind in kinds]
        places = [place + (number + 0.5) * height - 0.4 for place in range(len(kinds))]
        values = [each["accuracy"] for each in found]
        errors = [
            [max(0, each["accuracy"] - each["interval"][0]) for each in found],
            [max(0, each["interval"][1] - each["accuracy"]) for each in found],
        ]
        axes.barh(places, values, 0.92 * height, color=PALETTE[number % len(PALETTE)], label=model)
        axes.errorbar(values, places, xerr=errors, fmt="none", ecolor="#333333", elinewidth=1, capsize=2)
        for place, each in zip(places, found, strict=True):
            axes.annotate(f"{each['accuracy']:.0f}", (each["interval"][1], place), (3, 0), fontsize=8, va="center",
                          textcoords="offset points")  # fmt: skip
            axes.vlines(each["chance"], place - height / 2, place + height / 2, color="black", linewidth=1.2)
    tidy(axes, "", "% of foils told from the true caption (black line: chance)")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.set_xlim(0, 106)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    name_models(axes, records)
    return figure
