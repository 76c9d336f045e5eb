"""A contact sheet of links of records."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from hf_vse.plots.canvas import QUIET, new_figure, save, take_literally
from hf_vse.plots.retrieval import draw_found

Shown = tuple[Image.Image | None, str]  # a photograph, if there is one, and what is written below it


def plot_links(
    title: str,
    rows: Sequence[tuple[Shown, Shown | None, Shown | None]],
    path: str | Path,
    heads: Sequence[str] = ("record", "linked to", "runner-up"),
    without: str = "no match",
) -> Path:
    """For every record a row: itself, what it is linked to in a green frame, and the runner-up.

    Args:
        rows: for each record itself, its link and its runner-up, None where it has none.
        path: the PNG file to write.
        heads: of the three columns; without: what stands in the second where there is no link.

    Raises:
        ValueError: there is no row.
    """
    if not rows:
        raise ValueError("rows is empty: give at least one record")
    figure = new_figure(8.0, 0.6 + 2.1 * len(rows))
    take_literally([figure.suptitle(textwrap.fill(title, 90), x=0.02, ha="left", fontsize=12)])
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes, head in zip(grid[0], heads, strict=True):
        axes.set_title(head, fontsize=10, color=QUIET)
    for axes_of_row, row in zip(grid, rows, strict=True):
        for place, (axes, shown) in enumerate(zip(axes_of_row, row, strict=True)):
            image, text = shown or (None, without if place == 1 else "none")
            if image is None:
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_color("#C8C8C8")
                axes.text(
                    0.5, 0.5, "no photograph" if shown else "", ha="center", va="center", color=QUIET, fontsize=9
                )
            else:
                draw_found(axes, image, right=place == 1, score=None)
            label = textwrap.fill(text, 42, max_lines=3, placeholder=" ...")
            take_literally([axes.set_xlabel(label, fontsize=7, color=QUIET)])
    return save(figure, path)
