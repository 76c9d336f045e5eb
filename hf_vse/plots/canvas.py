"""What all pictures share: colours, an empty figure, plain axes, and a PNG file that is not too large.

Figures are made without pyplot: no global state, no window, so that a training process can draw too.
"""

from collections.abc import Sequence
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
QUIET = "#8A8A8A"

DPI = 120
MAX_BYTES = 300_000  # so that a model card with several of them still loads quickly


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that draws to memory."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "hf_vse[plots]"') from error
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy(axes: "Axes", title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(below, fontsize=10)
    axes.tick_params(labelsize=9, length=0)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#BBBBBB")


def take_literally(texts: Sequence[Any]) -> None:
    """Shows texts as they are: a dollar sign in a name or caption would start a formula."""
    for text in texts:
        text.set_parse_math(False)


def save(figure: "Figure", path: str | Path) -> Path:
    """Writes the PNG, and its folder; a file too large is saved again with fewer colours, then with fewer pixels."""
    path = Path(path).expanduser()
    if path.suffix.lower() != ".png":
        raise ValueError(f"path={str(path)!r} must end in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
    with Image.open(path) as written:
        full = written.convert("RGB")
    for scale in (1.0, 0.75, 0.5):
        if path.stat().st_size <= MAX_BYTES:
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
