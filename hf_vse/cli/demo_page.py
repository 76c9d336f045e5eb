"""The demo page with any model that `load_encoder` opens: a process of its own, which `hf-vse demo` starts.

The published Space opens a model with AutoModel and AutoProcessor alone. Here the same page is handed an `Encoder`, so
it serves every kind of model, prepared as in all other commands. It runs in the folder of the page, whose modules it
imports.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import app  # first: it sets what torch and gradio read when they are imported
import gradio as gr
import numpy as np
import PIL.Image
import torch
from encoder import in_one_thread, words_unknown_to
from handlers import Handlers
from page import Page
from settings import SettingsError

from hf_vse.cli.demo_links import Judging, add_judging, links_page
from hf_vse.cli.demo_things import add_things_tab, labelled_gallery, open_things
from hf_vse.data.features import read_array
from hf_vse.embed.load import load_encoder
from hf_vse.embed.relevance import Relevance, relevance, why_no_cells
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.errors import one_line_errors
from hf_vse.search.locations import open_store
from hf_vse.search.model import open_model

HOW_TO_LOAD = """from hf_vse import load_encoder

encoder = load_encoder("{name}")
encoder.query("a dog runs on the beach") @ encoder.query(image="photo.jpg").T  # cosine similarity"""


class LocalModel:
    """What the page asks of a model, see `PublishedModel`, answered by an `Encoder`.

    Args:
        name: what `load_encoder` takes.
        variable: the setting that it comes from, for errors.
        gallery: location of a gallery that the model must have made.
        vectors: file with the vectors of the photographs of the page, see `keep_vectors` in `demo.py`.
        options: of `load_encoder`.
    """

    how_to_load = HOW_TO_LOAD

    def __init__(
        self,
        name: str,
        variable: str = "VSE_MODEL",
        gallery: str | None = None,
        vectors: str | None = None,
        **options: Any,
    ):
        self.name = name
        self.vectors = None if vectors is None else read_array(vectors, check=False)
        if gallery is None:
            self.encoder = load_encoder(name, **options)
        else:
            self.encoder = open_model(open_store(gallery), name, **options)
        if not self.encoder.reads_images:
            raise SettingsError(f"{variable}={name!r} takes precomputed features; give a model that takes photographs")
        if self.encoder.digest is None:
            raise SettingsError(f"{variable}={name!r} has no digest to keep its vectors by; give its class one")
        self.has_temperature = self.encoder.temperature is not None
        self._thread = ThreadPoolExecutor(1, "model")

    @in_one_thread
    def with_encoder(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of the encoder answers, in the thread of the model."""
        return function(self.encoder, *arguments)

    @property
    def shows_where(self) -> bool:
        return why_no_cells(getattr(self.encoder, "model", None)) is None

    @in_one_thread
    def relevance(self, image: PIL.Image.Image, sentence: str) -> Relevance:
        return relevance(self.encoder, image, sentence)

    def digest(self) -> str:
        return str(self.encoder.digest)

    def facts(self) -> dict[str, Any]:
        known = self.encoder.facts()
        family = known.get("family", self.encoder.kind)
        return {
            "image_tower": known.get("image_tower", family),
            "text_tower": known.get("text_tower", family),
            "parameters": known.get("parameters"),
            "loss": known.get("loss_type"),
            "temperature": self.encoder.temperature,
        }

    @in_one_thread
    def encode_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        return encode_texts(self.encoder, list(sentences)).numpy()

    @in_one_thread
    def encode_images(self, images: Sequence[PIL.Image.Image]) -> np.ndarray:
        return encode_images(self.encoder, [{"image": image} for image in images]).embeds.numpy()

    def encode_rows(self, rows: Sequence[int], images: Sequence[PIL.Image.Image]) -> np.ndarray:
        """Those of the gallery; what it does not have is encoded."""
        if self.vectors is None:
            return self.encode_images(images)
        found = self.vectors[list(rows)].astype(np.float32)
        unknown = np.flatnonzero(np.isnan(found).any(axis=1)).tolist()
        if unknown:
            found[unknown] = self.encode_images([images[place] for place in unknown])
        return found

    def judge_labels(self, image: PIL.Image.Image, prompts: Sequence[str]) -> np.ndarray:
        cosines = self.encode_sentences(prompts) @ self.encode_images([image])[0]
        return torch.from_numpy(cosines / self.encoder.temperature).softmax(0).numpy()

    @in_one_thread
    def unknown_words(self, sentence: str) -> list[str]:
        reader = getattr(self.encoder, "processor", None) or getattr(self.encoder, "reader", None)
        return [] if reader is None else words_unknown_to(reader.tokenizer, sentence)


def add_places(on: Handlers, page: Page, things: dict[str, Any] | None = None, links: str | None = None) -> None:
    """Adds what the published Space does not have.

    Args:
        things: arguments of `open_things`, and `asked`: otherwise only a gallery with labels has a place for them.
        links: a file that `hf-vse link` has written.
    """
    if things is not None:
        asked, gallery = things.pop("asked"), things.pop("gallery")
        if asked or labelled_gallery(gallery):
            model: Any = on.main.encoder  # a `LocalModel`
            add_things_tab(on, page, model.with_encoder(partial(open_things, gallery=gallery, **things)))
    if links is not None:
        with gr.Tab("Judge links"):
            add_judging(page, Judging.of(links))


def show_page(model: dict[str, Any] | None, places: dict[str, Any]) -> None:
    """Serves the page.

    Args:
        model: options of `LocalModel`; None for a page of links alone.
        places: see `add_places`.
    """
    if model is not None:
        load: Any = partial(LocalModel, **model)  # which answers as a `PublishedModel` does
        return app.main(load, partial(add_places, **places))
    judging = Judging.of(places["links"])
    title = os.environ.get("VSE_TITLE") or "Which records are the same?"
    app.show(lambda: links_page(judging, title), judging.local_paths(places["links"]))


if __name__ == "__main__":
    logging.getLogger("hf_vse").setLevel(logging.INFO)
    with one_line_errors():
        show_page(**json.loads(sys.argv[1]))
