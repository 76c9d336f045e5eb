"""The same searches as API endpoints with JSON answers, see README.md."""

from typing import Any

import gradio as gr
import PIL.Image
from about import describe
from components import data_address, friendly, photo_input
from handlers import SHARED_QUEUE
from limits import MAX_RESULTS, RefusedError, read_sentence
from search import Search


class Api:
    """One method per endpoint; photographs are identified by their number in the gallery."""

    def __init__(self, searches: list[Search]):
        self.searches = searches
        self.main = searches[0]

    @friendly
    def search_by_text(self, sentence: str, count: float) -> list[dict[str, Any]]:
        """Photographs for a sentence, best first: [{"photograph": 17, "score": 0.61, "captions": [...]}]"""
        return self.main.as_json(self.main.photographs(self.main.sentence(sentence), count))

    @friendly
    def search_by_image(self, photograph: PIL.Image.Image | None, count: float) -> list[dict[str, Any]]:
        """Sentences for a photograph, best first: [{"sentence": "...", "score": 0.61}]"""
        found = self.main.sentences(self.main.photograph(photograph), count)
        return [{"sentence": text, "score": round(score, 4)} for score, text in found]

    @friendly
    def similar(self, photograph: PIL.Image.Image | None, count: float) -> list[dict[str, Any]]:
        """Photographs similar to a photograph, best first."""
        return self.main.as_json(self.main.photographs(self.main.photograph(photograph), count))

    @friendly
    def combined(
        self, sentence: str, photograph: PIL.Image.Image | None, weight: float, count: float
    ) -> list[dict[str, Any]]:
        """Photographs for the weighted sum of sentence (weight) and photograph (1 - weight), best first."""
        return self.main.as_json(self.main.photographs(self.main.both(sentence, photograph, weight), count))

    @friendly
    def zero_shot(self, photograph: PIL.Image.Image | None, labels: str, template: str) -> dict[str, float]:
        """Probability of each comma-separated label; {} in the template stands for the label."""
        if not self.main.encoder.has_temperature:
            raise RefusedError("This model has no temperature, so its scores are no probabilities of labels.")
        return self.main.labels(photograph, labels, template)

    @friendly
    def compare(self, sentence: str, count: float) -> dict[str, list[dict[str, Any]]]:
        """Photographs for a sentence, by both models: {"model": [...], "compared_with": [...]}"""
        if len(self.searches) == 1:
            raise RefusedError("There is no second model here: start the demo with VSE_COMPARE.")
        names = ("model", "compared_with")
        text = read_sentence(sentence)
        return {
            name: search.as_json(search.photographs(search.sentence(text), count))
            for name, search in zip(names, self.searches, strict=True)
        }

    @friendly
    def thumbnail(self, photograph: float) -> dict[str, str]:
        """A photograph of the gallery as the data URL of a small JPEG: {"image": "data:image/jpeg;base64,..."}"""
        if not isinstance(photograph, int | float) or not 0 <= photograph < len(self.main.album):
            raise RefusedError(f"The gallery has photographs 0 to {len(self.main.album) - 1}; give one of them.")
        return {"image": data_address(self.main.album.thumbnails[int(photograph)])}

    def about(self) -> dict[str, Any]:
        """Model, gallery and published recalls."""
        return describe(self.main.gallery)


def add_api(searches: list[Search]) -> None:
    """Adds the endpoints to the page that is being built; they are invisible on it."""
    api = Api(searches)
    with gr.Group(visible=False):
        sentence = gr.Textbox(label="sentence")
        photograph = photo_input(label="photograph")
        weight = gr.Slider(0, 1, 0.5, label="weight of the sentence")
        count = gr.Slider(1, MAX_RESULTS, 10, step=1, label="number of results")
        labels = gr.Textbox(label="labels, with commas between them")
        template = gr.Textbox("{}", label="template")
        number = gr.Number(0, precision=0, label="number of the photograph")
        answer = gr.JSON(label="answer")
        for endpoint, inputs in (
            (api.search_by_text, [sentence, count]),
            (api.search_by_image, [photograph, count]),
            (api.similar, [photograph, count]),
            (api.combined, [sentence, photograph, weight, count]),
            (api.zero_shot, [photograph, labels, template]),
            (api.compare, [sentence, count]),
            (api.thumbnail, [number]),
            (api.about, []),
        ):
            gr.Button().click(endpoint, inputs, answer, api_name=endpoint.__name__, **SHARED_QUEUE)
