"""Find photographs by sentence and sentences by photograph, in a browser.

    VSE_MODEL=org/name VSE_DATASET=org/photographs python app.py

The model is loaded only with AutoModel and AutoProcessor. See README.md for the variables and the API.
"""

import html
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn

# Set both before gradio is imported. Its event log is for a monitor that this page does not use.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_ANALYTICS_MAX_EVENTS": "64"}
# Waiting model threads sleep instead of spinning; on few cores they would block the server and each other. Set this
# before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import gradio as gr  # noqa: E402
from about import PAPER, describe, facts_table, how_to_load, public_name, recalls_table  # noqa: E402
from api import add_api  # noqa: E402
from components import CSS, HEAD, files_input, photo_input, theme, thumbnails  # noqa: E402
from encoder import PublishedModel  # noqa: E402
from gallery import open_galleries  # noqa: E402
from guard import Guard  # noqa: E402
from handlers import SAMPLES, SHARED_QUEUE, Handlers  # noqa: E402
from limits import MAX_CHARACTERS, MAX_FILE_BYTES, MAX_PICTURES, MAX_RESULTS  # noqa: E402
from page import MAX_SESSIONS, Page  # noqa: E402
from photographs import Source  # noqa: E402
from search import TEMPLATES, Search  # noqa: E402
from settings import Settings, SettingsError  # noqa: E402

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal", **SHARED_QUEUE}


def sentence_box(label: str, placeholder: str, button: str = "Search") -> gr.Textbox:
    return gr.Textbox(label=label, placeholder=placeholder, max_length=MAX_CHARACTERS, lines=1, submit_btn=button)


def tiles(columns: int = 4, **options) -> gr.Gallery:
    options = {"label": "Photographs", "object_fit": "contain", "elem_classes": "photos"} | options
    return thumbnails(columns=columns, interactive=False, show_label=False, buttons=[], **options)


def offer_examples(on: Handlers, sentence: gr.Textbox, count: int, then: dict[str, Any]) -> None:
    """Captions of the gallery as one-click examples."""
    samples = [[each] for each in on.main.example_sentences(count)]
    examples = gr.Dataset(label="Examples", components=[gr.Textbox(visible=False)], samples=samples)
    taken = examples.click(lambda example: example[0] if example else None, examples, sentence, **PRIVATE)
    taken.then(**then)


def offer_photographs(
    on: Handlers, page: gr.Blocks, with_samples: bool = True
) -> tuple[gr.Image, Callable[[dict], None]]:
    """An image input and a strip of samples; call the returned function to set the search that follows."""
    photograph = photo_input(
        label="Photograph",
        sources=["upload", "clipboard"],
        height=260,
        buttons=[],
        show_label=False,
        elem_classes="photo",
    )
    if with_samples:
        gr.Markdown("…or choose one of these", elem_classes="hint")
        strip = tiles(SAMPLES, label="Samples", allow_preview=False, elem_classes="strip")

    def then(search: dict) -> None:
        dropped = photograph.upload(on.receive, photograph, photograph, **PRIVATE)
        dropped.failure(lambda: None, None, photograph, api_visibility="private")
        dropped.success(**search)
        if with_samples:
            page.load(on.samples, None, strip, **PRIVATE)
            strip.select(on.take_sample, None, photograph, **PRIVATE).success(**search)

    return photograph, then


def find_tab(on: Handlers, page: gr.Blocks) -> None:
    sentence = sentence_box("What should the photograph show?", "Describe it in a sentence")
    examples = gr.Column()
    note = gr.Markdown("Some photographs of the gallery. Type a sentence, or choose an example.", elem_classes="note")
    gallery = tiles()
    count = gr.Slider(1, MAX_RESULTS, 12, step=1, label="Number of photographs")
    if on.main.encoder.shows_where:
        with gr.Accordion("Why this photograph?", open=False):
            number = gr.Slider(1, MAX_RESULTS, 1, step=1, label="Which one, in the order found; or click on it above")
            show, lit = gr.Button("Show what speaks for the sentence", size="sm"), gr.HTML()
        gallery.select(on.choose, None, number, **PRIVATE)
        show.click(on.why, [sentence, count, number], lit, **PRIVATE)
    search: dict[str, Any] = {"fn": on.find, "inputs": [sentence, count], "outputs": [gallery, note]} | PRIVATE
    gr.on([sentence.submit, count.release], **search)
    with examples:
        offer_examples(on, sentence, 4, search)
    page.load(on.welcome, None, gallery, **PRIVATE)


def photograph_tab(on: Handlers, page: gr.Blocks) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            photograph, when_given = offer_photographs(on, page)
            with gr.Accordion("Add a sentence", open=False):
                sentence = sentence_box("…and it should also show", "a yellow star")
                weight = gr.Slider(0, 1, 0.5, step=0.05, label="Weight of the sentence")
            count = gr.Slider(1, MAX_RESULTS, 8, step=1, label="Number of results")
        with gr.Column(scale=2, min_width=300):
            gr.Markdown("### Sentences for the photograph")
            sentences = gr.HTML('<p class="hint">Drop a photograph, or choose one from the gallery.</p>')
            gr.Markdown("### Similar photographs")
            gallery = tiles()
    search: dict[str, Any] = {
        "fn": on.find_by_photograph,
        "inputs": [photograph, sentence, weight, count],
        "outputs": [sentences, gallery],
    } | PRIVATE
    gr.on([sentence.submit, count.release, weight.release], **search)
    when_given(search)


def pictures_tab(on: Handlers, page: gr.Blocks) -> None:
    gr.Markdown(
        f"Add up to {MAX_PICTURES} pictures of your own. They are included in your searches, nobody else can see "
        "them, and they are deleted when you leave or reload this page."
    )
    files = files_input(label="Your pictures", file_count="multiple", file_types=["image"], height=150)
    note = gr.Markdown("No pictures yet.", elem_classes="note")
    sentence = sentence_box("Sort your pictures by a sentence", "What should come first?", "Sort")
    own = tiles()
    remove = gr.Button("Remove all my pictures", size="sm")
    files.upload(on.add_pictures, files, [files, own, note], **PRIVATE)
    sentence.submit(on.find_own, sentence, own, **PRIVATE)
    remove.click(on.remove_own, None, [own, note], **PRIVATE)
    page.unload(on.leave)


def labels_tab(on: Handlers, page: gr.Blocks) -> None:
    with gr.Row():
        with gr.Column(min_width=280):
            photograph, when_given = offer_photographs(on, page)
        with gr.Column(min_width=300):
            labels = gr.Textbox(
                ", ".join(on.main.frequent_words(8)),
                label="Labels, separated by commas",
                max_lines=4,
                submit_btn="Judge",
            )
            template = gr.Dropdown(
                list(TEMPLATES), value=TEMPLATES[1], label="Template, {} is the label", allow_custom_value=True
            )
            answer = gr.Label(label="Which label fits best", show_label=False, num_top_classes=10)
    judge: dict[str, Any] = {"fn": on.label, "inputs": [photograph, labels, template], "outputs": answer} | PRIVATE
    labels.submit(**judge)
    when_given(judge)


def compare_tab(on: Handlers) -> None:
    sentence = sentence_box("One sentence, two models", "Describe a photograph in a sentence", "Compare")
    examples = gr.Column()
    outputs = []
    with gr.Row():
        for search in on.searches:
            with gr.Column(min_width=300):
                gr.Markdown(f"### {html.escape(public_name(search.encoder.name))}")
                note = gr.Markdown(elem_classes="note")
                outputs += [tiles(3), note]
    count = gr.Slider(1, MAX_RESULTS, 9, step=1, label="Number of photographs")
    compare: dict[str, Any] = {"fn": on.find_by_both_models, "inputs": [sentence, count], "outputs": outputs} | PRIVATE
    gr.on([sentence.submit, count.release], **compare)
    with examples:
        offer_examples(on, sentence, 4, compare)


def about_tab(on: Handlers) -> None:
    for search in on.searches:
        facts = describe(search.gallery)
        gr.HTML(f"<h3>{html.escape(facts['model'])}</h3>{facts_table(facts)}{recalls_table(facts)}")
    gr.Markdown(
        "R@K: percentage of queries with a correct answer among the first K. rsum: the sum of all six.\n\n"
        f"### Load it in Python\n\n{how_to_load(on.main.encoder)}\n\n"
        f"The objectives are those of [Contrastive Learning of Visual-Semantic Embeddings]({PAPER}). Scores are "
        "cosine similarities. No search stores what you type or add."
    )


def build(
    settings: Settings,
    load: Callable[..., PublishedModel] = PublishedModel,
    add_tabs: Callable[[Handlers, Page], None] = lambda on, page: None,
) -> Page:
    """Builds the page, with model and gallery loaded.

    Args:
        load: loads a model, given its name and the variable that holds the name.
        add_tabs: adds tabs before the last one.

    Raises:
        SettingsError: a model or the data set cannot be loaded.
    """
    encoders = [load(settings.model)]
    if settings.compare is not None:
        encoders.append(load(settings.compare, "VSE_COMPARE"))
    galleries = open_galleries(Source(settings), encoders, settings.cache_dir)
    searches = [Search(gallery) for gallery in galleries]
    on = Handlers(searches)
    album = searches[0].album
    with Page(title=settings.title, analytics_enabled=False) as page:
        gr.HTML(
            f'<div class="head"><h1>{html.escape(settings.title)}</h1><p>{len(album):,} photographs and '
            f"{len(album.sentences):,} sentences, searched with "
            f"<b>{html.escape(public_name(settings.model))}</b></p></div>",
        )
        with gr.Tab("Find photographs"):
            find_tab(on, page)
        with gr.Tab("Find sentences"):
            photograph_tab(on, page)
        with gr.Tab("My pictures"):
            pictures_tab(on, page)
        if on.main.encoder.has_temperature:
            with gr.Tab("Labels"):
                labels_tab(on, page)
        if len(searches) > 1:
            with gr.Tab("Compare"):
                compare_tab(on)
        add_tabs(on, page)
        with gr.Tab("About"):
            about_tab(on)
        add_api(searches)
    return page.queue_for_strangers()


def end_at_once(uploads: str) -> NoReturn:
    """Ends the demo with exit code 0: deletes uploads, does not wait for requests or threads.

    Raises no exception, because running code could swallow it.
    """
    for _ in range(10):  # running requests may still add a file
        shutil.rmtree(uploads, ignore_errors=True)
        if not os.path.exists(uploads):
            break
    os._exit(0)


def show(make_page: Callable[[], Page], blocked_paths: list[str]) -> None:
    """Makes a page and serves it until a signal ends it.

    Args:
        blocked_paths: files and folders of this machine that it must never serve.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="vse_demo_") as uploads:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: end_at_once(uploads))
        os.environ["GRADIO_TEMP_DIR"] = uploads  # used only by this page, deleted with it
        page = make_page()
        page.launch(
            theme=theme(),
            css=CSS,
            head=HEAD,
            max_file_size=MAX_FILE_BYTES,
            blocked_paths=blocked_paths,
            state_session_capacity=MAX_SESSIONS,
            app_kwargs={"middleware": [(Guard, (), {"admits": page.admits})], "lifespan": page.tidied},
            footer_links=["api"],
            run_history=False,
            ssr_mode=False,
            share=False,
            _frontend=False,  # otherwise gradio requests its own page and exits if that takes more than 3 seconds
        )


def main(
    load: Callable[..., PublishedModel] = PublishedModel,
    add_tabs: Callable[[Handlers, Page], None] = lambda on, page: None,
) -> None:
    try:
        settings = Settings.from_environment(os.environ)
        show(lambda: build(settings, load, add_tabs), settings.local_paths)
    except SettingsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
