"""Gradio components that keep images out of the file system, and the theme of the page.

Images are sent to the browser inside the answer, as data URLs. So no image of the gallery or of a visitor has a URL
that someone else could open.
"""

import base64
import functools
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from gradio.components.gallery import GalleryData, GalleryImage
from gradio.data_classes import FileData, ImageData, ListFiles
from limits import RefusedError, read_image
from photographs import thumbnail
from relevance import Relevance
from uploads import read_upload, uploaded

TRY_AGAIN = "Please try again"


def friendly(function: Callable) -> Callable:
    """Shows errors that a visitor can fix as one line on the page, instead of a traceback in the log."""

    @functools.wraps(function)
    def answer(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except RefusedError as refused:
            raise gr.Error(str(refused), title=TRY_AGAIN, print_exception=False) from None

    return answer


def data_address(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def photo_input(**options) -> gr.Image:
    """An input that gives functions a checked image (PIL, RGB, upright) or None; shows an image or JPEG."""
    return _adapted(gr.Image(**options), preprocess=friendly(_image_of), postprocess=_shown_image)


def files_input(**options) -> gr.File:
    """An input that gives functions the paths of uploaded files; open them with `uploads.read_upload`."""
    return _adapted(gr.File(**options), preprocess=friendly(_paths_of))


def thumbnails(**options) -> gr.Gallery:
    """A gallery that shows pairs of JPEG bytes and caption."""
    return _adapted(gr.Gallery(**options), postprocess=_shown_tiles)


def _adapted(component: gr.components.Component, **methods) -> Any:
    """Replaces methods of a component. (For a subclass, Gradio would write a file next to its source.)"""
    for name, method in methods.items():
        setattr(component, name, method)
    return component


def _image_of(payload: ImageData | None) -> PIL.Image.Image | None:
    if payload is None:
        return None
    return read_image(_bytes_of(payload))


def _shown_image(value: PIL.Image.Image | bytes | None) -> ImageData | None:
    if value is None:
        return None
    return _as_address(value if isinstance(value, bytes) else thumbnail(value))


def _shown_tiles(value: Sequence[tuple[bytes, str | None]] | None) -> GalleryData:
    return GalleryData(root=[GalleryImage(image=_as_address(jpeg), caption=caption) for jpeg, caption in value or []])


def _as_address(jpeg: bytes) -> ImageData:
    return ImageData(path=None, url=data_address(jpeg), mime_type="image/jpeg", orig_name="photograph.jpg")


def _paths_of(payload: ListFiles | FileData | None) -> list[Path]:
    files = [] if payload is None else payload.root if isinstance(payload, ListFiles) else [payload]
    return [uploaded(file.path) for file in files]


def _bytes_of(payload: ImageData) -> bytes:
    if payload.url and payload.url.startswith("data:"):
        try:
            return base64.b64decode(payload.url.partition(",")[2], validate=True)
        except ValueError:
            return b""
    return read_upload(payload.path)


def lit_photograph(number: int, image: PIL.Image.Image, found: Relevance) -> str:
    """HTML of a photograph in which light falls on what speaks for a sentence, with its numbers."""
    cells = f"{found.cells.min():.2f} to {found.cells.max():.2f}"
    return (
        f'<figure class="lit"><img src="{data_address(thumbnail(image))}" alt="photograph {number}, lit">'
        f"<figcaption>Photograph {number}: similarity {found.score:.2f}; of its cells alone {cells}, the best in a "
        "frame. Light goes from the lowest to the highest. What the model does not see is dark.</figcaption></figure>"
    )


def sentence_list(found: Sequence[tuple[float, str]]) -> str:
    """HTML list of sentences with bars for their scores."""
    lines = "".join(
        f'<li><span class="bar" style="width:{100 * max(0.0, min(1.0, score)):.0f}%"></span>'
        f'<span class="words">{html.escape(text)}</span><span class="score">{score:.2f}</span></li>'
        for score, text in found
    )
    return f'<ol class="sentences">{lines}</ol>' if lines else ""


FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
MONO_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """A theme with system fonts, so that the page makes no external requests."""
    plain = {"background_fill": "transparent", "text_color": "*body_text_color", "text_weight": "600", "padding": "0"}
    look = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONO_FONTS)
    options = {f"block_title_{name}": value for name, value in plain.items()}
    options |= {f"block_title_{name}_dark": plain[name] for name in ("background_fill", "text_color")}
    return look.set(
        **options,
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        input_border_width="1px",
        input_border_width_dark="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        block_label_text_color="*body_text_color",
        block_label_text_color_dark="*body_text_color",
        block_label_background_fill="*background_fill_secondary",
        block_label_background_fill_dark="*background_fill_secondary",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_600",
        button_primary_background_fill_dark="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )


CSS = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
# Gradio applies CSS only inside the frame that this rule changes.
HEAD = "<style>@media (max-width: 640px) { .main.fillable.app { padding: 0.75rem 0.75rem 2rem !important; } }</style>"
