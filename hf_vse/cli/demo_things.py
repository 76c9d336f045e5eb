"""The place in the page of `hf-vse demo` that tells which thing of a gallery a photograph shows, as `hf-vse identify`.

It imports modules of the page, so only the process of `demo_page` imports it.
"""

import html
import logging
from typing import Any

import gradio as gr
import numpy as np
import PIL.Image
from app import PRIVATE, offer_photographs
from components import data_address, friendly
from handlers import Handlers
from page import Page
from photographs import thumbnail

from hf_vse.cli.demo import cache
from hf_vse.cli.identify import METRICS, UNKNOWN, identified_lines
from hf_vse.embed.encoder import Encoder
from hf_vse.evaluation.evaluator import kept_vectors
from hf_vse.link.identify import (
    Chosen,
    Things,
    choose_threshold,
    embed_things,
    has_labels,
    identify,
    known_photographs,
    labels_of,
)
from hf_vse.link.records import read_records

logger = logging.getLogger(__name__)

VIEWS = 8  # reference photographs that are shown of the best thing
VIEWS_OF_RUNNER_UP = 4
NAMED = 6  # things
START = "Drop a photograph to see which of the things it shows, or that it is unknown."


class Recognition:
    """What `hf-vse identify` answers, for a person.

    Args:
        things: see `embed_things`.
        chosen: the threshold, and where it comes from.
    """

    def __init__(self, things: Things, chosen: Chosen):
        self.things = things
        self.chosen = chosen

    def answer(self, query: np.ndarray) -> str:
        """HTML of what a photograph shows, given its unit vector (dim,)."""
        found = identify(self.things, query[None], self.chosen.threshold)
        (line,) = identified_lines(["the photograph"], self.things, found)
        thing, runner_up = int(found.things[0]), int(found.runners_up[0])
        parts = [verdict(line, self.chosen.threshold), self.about_threshold()]
        if thing < 0:
            parts.append(self.references("The nearest is not near enough: {}", runner_up, query, VIEWS))
        else:
            parts.append(self.references("References of {}", thing, query, VIEWS))
            if runner_up >= 0:
                parts.append(self.references("The runner-up: {}", runner_up, query, VIEWS_OF_RUNNER_UP))
        return "".join(parts)

    def references(self, heading: str, thing: int, query: np.ndarray, count: int) -> str:
        """HTML of the photographs of a thing, the nearest first, each with its score and its name."""
        views = self.things.views
        rows = np.flatnonzero((self.things.owner == thing) & self.things.photographs)
        scores = views.vectors_of_all[rows] @ query
        figures = ""
        for place in np.argsort(-scores, kind="stable")[:count]:
            row = int(rows[place])
            name, image = html.escape(views.names[row]), views.image(row)
            if image is not None:
                shown = f'<img src="{data_address(thumbnail(image))}" alt="{name}">'
                figures += f"<figure>{shown}<figcaption><b>{scores[place]:.2f}</b> {name}</figcaption></figure>"
        title = heading.format(html.escape(self.things.labels[thing]))
        return f'<h3>{title}</h3><div class="references">{figures}</div>'

    def about_things(self) -> str:
        """HTML: what can be recognised."""
        labels = self.things.labels
        names = html.escape(", ".join(labels[:NAMED])) + (", …" if len(labels) > NAMED else "")
        return f'<p class="hint"><b>{len(labels):,} things</b>, {len(self.things.views):,} views: {names}</p>'

    def about_threshold(self) -> str:
        """HTML: the threshold, where it comes from, and how good it is."""
        said = f"<b>Threshold {self.chosen.threshold:.3f}</b> (the line): {html.escape(self.chosen.how)}."
        if self.chosen.judged is not None:
            values = ", ".join(f"{title} {self.chosen.judged[name]:.3f}" for name, title in METRICS.items())
            said += f" Judged on {self.chosen.judged_on:,} known photographs: {values}."
        return f'<p class="hint">{said}</p>'


def verdict(line: dict[str, Any], threshold: float) -> str:
    """HTML of what `hf-vse identify` writes of a photograph: the answer, bars as long as the scores, the threshold."""
    known = line["label"] is not None
    bars = "".join(
        f'<li><span class="bar" style="width:{percent(score)}"></span>'
        f'<span class="score">{score:.3f}</span><span class="words">{html.escape(name)}</span></li>'
        for name, score in ((line["label"], line["score"]), (line["runner_up"], line["runner_up_score"]))
        if name is not None
    )
    return (
        f'<p class="verdict{"" if known else " unknown"}">{html.escape(line["label"] if known else UNKNOWN)}</p>'
        f'<ol class="sentences threshold" style="--threshold:{percent(threshold)}">{bars}</ol>'
    )


def percent(score: float) -> str:
    return f"{100 * max(0.0, min(1.0, score)):.1f}%"


def open_things(
    encoder: Encoder,
    gallery: str,
    *,
    label: str | None,
    label_is_text: bool,
    image_weight: float,
    labelled: str | None,
    threshold: float | None,
    false_accept_rate: float | None,
) -> Recognition:
    """The things of a gallery and their threshold; arguments as of `hf-vse identify`."""
    records = read_records(gallery)
    photographs = None if labelled is None else read_records(labelled)
    for each in filter(None, (records, photographs)):
        labels_of(each, label)  # what is wrong is said before anything is encoded
    options = {"stores": kept_vectors(encoder, cache() / "vectors")}
    things = embed_things(records, encoder, image_weight, label=label, label_is_text=label_is_text, **options)
    known = None if photographs is None else known_photographs(things, photographs, encoder, label, **options)
    chosen = choose_threshold(things, known, threshold=threshold, false_accept_rate=false_accept_rate)
    return Recognition(things, chosen)


def labelled_gallery(gallery: str) -> bool:
    """Whether a gallery says what its photographs show; where it says so of some alone, that is logged."""
    try:
        return has_labels(read_records(gallery))
    except ValueError as error:
        logger.warning("there is no place to recognise things: %s", error)
        return False


def add_things_tab(on: Handlers, page: Page, recognition: Recognition) -> None:
    """Adds the tab to the page that is being built."""
    with gr.Tab("Recognise"), gr.Row():
        with gr.Column(scale=1, min_width=280):
            photograph, when_given = offer_photographs(on, page, with_samples=False)
            gr.HTML(recognition.about_things())
        with gr.Column(scale=2, min_width=300):
            answer = gr.HTML(f'<p class="hint">{START}</p>{recognition.about_threshold()}')

    @friendly
    def recognise(image: PIL.Image.Image | None) -> str:
        return recognition.answer(on.main.photograph(image))

    when_given({"fn": recognise, "inputs": photograph, "outputs": answer} | PRIVATE)
