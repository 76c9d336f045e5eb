"""Event handlers of the page: one method per event."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import PIL.Image
from components import friendly, lit_photograph, sentence_list
from limits import MAX_PICTURES, RefusedError, read_image, read_sentence
from search import Hit, Search, how_many
from uploads import read_upload
from visitors import Picture, Visitors

logger = logging.getLogger("demo")

Tiles = list[tuple[bytes, str | None]]
SAMPLES = 6
MAX_CAPTIONS = 8  # per photograph
# Shared by all answers: the model handles one call at a time while the next image is decoded; more threads would only
# slow each other down.
SHARED_QUEUE: dict[str, Any] = {"concurrency_id": "answers", "concurrency_limit": 2}


class Handlers:
    """The event handlers of one page.

    Args:
        searches: the search of the model and, optionally, of a second model to compare with.
    """

    def __init__(self, searches: Sequence[Search]):
        self.searches = list(searches)
        self.main = self.searches[0]
        self.visitors = Visitors()

    def tiles(self, hits: Sequence[Hit], own: Sequence[Picture] = ()) -> Tiles:
        """Images with text: the score in the first line, then the captions, which are visible when enlarged."""
        found: Tiles = []
        for hit in hits:
            if hit.is_own:
                found.append((own[hit.row].thumbnail, f"{hit.score:.2f}\N{NO-BREAK SPACE}yours"))
                continue
            mark = "\N{NO-BREAK SPACE}✓" if hit.is_described else ""
            captions = "\n".join(self.main.album.captions[hit.row][:MAX_CAPTIONS])
            found.append((self.main.album.thumbnails[hit.row], f"{hit.score:.2f}{mark}\n{captions}"))
        return found

    def samples(self) -> Tiles:
        """Some sample photographs of the gallery."""
        return [(self.main.album.thumbnails[row], None) for row in self.main.spread_rows(SAMPLES)]

    def welcome(self) -> Tiles:
        """Photographs to show before the first search."""
        album = self.main.album
        return [(album.thumbnails[row], "\n".join(["", *album.captions[row]])) for row in self.main.spread_rows(12)]

    @friendly
    def find(self, sentence: str, count: float, request: gr.Request) -> tuple[Tiles, str]:
        """Photographs for a sentence, and a note."""
        text = read_sentence(sentence)
        query = self.main.sentence(text)
        own = self.visitors.pictures(request.session_hash)
        return self.tiles(self.main.photographs(query, count, own, text), own), self.main.note(text, query)

    @friendly
    def choose(self, event: gr.SelectData) -> int:
        """The number, from 1, of the photograph that was clicked."""
        return how_many(event.index + 1 if isinstance(event.index, int) else None)

    @friendly
    def why(self, sentence: str, count: float, number: float, request: gr.Request) -> str:
        """One of the photographs found, with light on what speaks for the sentence."""
        text, number = read_sentence(sentence), how_many(number)
        own = self.visitors.pictures(request.session_hash)
        hits = self.main.photographs(self.main.sentence(text), count, own, text)
        if number > len(hits):
            raise RefusedError(f"{len(hits)} photographs were found: choose one of them.")
        hit = hits[number - 1]
        jpeg = own[hit.row].thumbnail if hit.is_own else self.main.album.thumbnails[hit.row]
        return lit_photograph(number, *self.main.why(text, jpeg))

    @friendly
    def find_by_photograph(
        self, image: PIL.Image.Image | None, sentence: str, weight: float, count: float, request: gr.Request
    ) -> tuple[str, Tiles]:
        """Sentences for the photograph, and photographs similar to it and to the sentence."""
        sentences = sentence_list(self.main.sentences(self.main.photograph(image), count))
        query = self.main.both(sentence, image, weight)
        own = self.visitors.pictures(request.session_hash)
        return sentences, self.tiles(self.main.photographs(query, count, own), own)

    @friendly
    def take_sample(self, event: gr.SelectData) -> bytes:
        rows = self.main.spread_rows(SAMPLES)
        if not isinstance(event.index, int) or not 0 <= event.index < len(rows):
            raise RefusedError("There is no such sample: choose one from the strip.")
        return self.main.album.thumbnails[rows[event.index]]

    def receive(self, image: PIL.Image.Image | None) -> PIL.Image.Image | None:
        """Returns a small copy of an uploaded photograph, so that its file is not needed again."""
        return image

    @friendly
    def label(self, image: PIL.Image.Image | None, labels: str, template: str) -> dict[str, float]:
        return self.main.labels(image, labels, template)

    @friendly
    def find_by_both_models(self, sentence: str, count: float) -> list:
        """Tiles and note for each model."""
        text = read_sentence(sentence)
        answers = []
        for search in self.searches:
            query = search.sentence(text)
            hits = search.photographs(query, count, sentence=text)
            answers += [self.tiles(hits), search.note(text, query)]
        return answers

    @friendly
    def add_pictures(self, files: list[Path], request: gr.Request) -> tuple[None, Tiles, str]:
        """Reads uploaded files, keeps small copies in memory, and deletes the files."""
        try:
            room = self.visitors.room(request.session_hash)
            if len(files) > room:
                raise RefusedError(f"There is room for {room} more pictures (at most {MAX_PICTURES}); choose fewer.")
            pictures, refused = [], []
            for file in files:
                try:
                    pictures.append(self.main.picture(read_image(read_upload(file))))
                except RefusedError as error:
                    refused.append(f"{file.name}: {error}")
        finally:
            for file in files:
                file.unlink(missing_ok=True)
        mine = self.visitors.add(request.session_hash, pictures) if pictures else None
        if refused:
            gr.Warning(refused[0] if len(refused) == 1 else f"{len(refused)} files were left out. {refused[0]}")
        return None, *self._own(mine or self.visitors.pictures(request.session_hash))

    @friendly
    def find_own(self, sentence: str, request: gr.Request) -> Tiles:
        """The visitor's own pictures, best first."""
        own = self.visitors.pictures(request.session_hash)
        if not own:
            raise RefusedError("There are no pictures of yours yet: add some first.")
        query = self.main.sentence(sentence)
        scores = [float(each.embed @ query) for each in own]
        best = sorted(range(len(own)), key=lambda row: -scores[row])
        return [(own[row].thumbnail, f"{scores[row]:.2f}") for row in best]

    def remove_own(self, request: gr.Request) -> tuple[Tiles, str]:
        self.visitors.forget(request.session_hash)
        return self._own([])

    def leave(self, request: gr.Request) -> None:
        """Called when a visitor closes or reloads the page."""
        count = self.visitors.forget(request.session_hash)
        if count:
            logger.info("a visitor left, pictures forgotten: %d", count)

    def _own(self, pictures: Sequence[Picture]) -> tuple[Tiles, str]:
        many = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
        note = f"{many} of yours now take part in every search on this page." if pictures else "No pictures yet."
        return [(each.thumbnail, None) for each in pictures], note
