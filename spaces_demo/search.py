"""The searches behind the page and its API, with all input checks; independent of gradio."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from gallery import Gallery
from limits import MAX_RESULTS, RefusedError, read_image, read_labels, read_sentence, read_template
from overlay import draw_relevance
from photographs import thumbnail
from relevance import Relevance
from visitors import Picture

TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {} in the background")
_EXAMPLE_CHARACTERS = 60  # the page truncates longer examples
# Words around the names of things, which are not names themselves.
_FUNCTION_WORDS = set(
    "a above against an and appears are as at be behind below beneath beside between by can contains each for from "
    "has have he her his holds in into is it its lies looks near next of off on one or other over she shows sits "
    "some standing stands that the their them there these they this three to two under up very was wearing wears "
    "were which while who with air area back backdrop background bottom center centre corner drawing edge front group "
    "image left lower middle object objects photo photograph picture right row shape shapes side something top "
    "upper".split()
)


@dataclass(frozen=True)
class Hit:
    """A search result.

    Args:
        score: cosine similarity to the query.
        row: index in the album, or among the visitor's own images.
        is_own: the image belongs to the visitor.
        is_described: the query is a caption of this image.
    """

    score: float
    row: int
    is_own: bool = False
    is_described: bool = False


class Search:
    """Search with one model and its gallery."""

    def __init__(self, gallery: Gallery):
        self.gallery = gallery
        self.album = gallery.album
        self.encoder = gallery.encoder

    def sentence(self, text: object) -> np.ndarray:
        """Unit vector (dim,) of a visitor's sentence."""
        return self.encoder.encode_sentences([read_sentence(text)])[0]

    def photograph(self, image: PIL.Image.Image | None) -> np.ndarray:
        """Unit vector (dim,) of a visitor's photograph."""
        return self.encoder.encode_images([_given(image)])[0]

    def both(self, text: object, image: PIL.Image.Image | None, weight: float) -> np.ndarray:
        """Weighted sum of sentence (`weight`) and image (1 - `weight`); one of them is enough."""
        if not (isinstance(text, str) and text.strip()):
            return self.photograph(image)
        if image is None:
            return self.sentence(text)
        if not isinstance(weight, int | float):
            raise RefusedError("The weight of the sentence must be a number from 0 to 1.")
        weight = min(1.0, max(0.0, weight))
        query = weight * self.sentence(text) + (1 - weight) * self.photograph(image)
        return query / max(float(np.linalg.norm(query)), 1e-12)

    def photographs(
        self, query: np.ndarray, count: float, own: Sequence[Picture] = (), sentence: object = None
    ) -> list[Hit]:
        """The nearest images of album and visitor together, best first."""
        count = how_many(count)
        described = self.album.described_by.get(sentence, ()) if isinstance(sentence, str) else ()
        hits = [
            Hit(score, row, is_described=row in described) for score, row in self.gallery.nearest_images(query, count)
        ]
        hits += [Hit(float(each.embed @ query), row, is_own=True) for row, each in enumerate(own)]
        return sorted(hits, key=lambda hit: -hit.score)[:count]

    def sentences(self, query: np.ndarray, count: float) -> list[tuple[float, str]]:
        return self.gallery.nearest_sentences(query, how_many(count))

    def labels(self, image: PIL.Image.Image | None, labels: object, template: object) -> dict[str, float]:
        """Probability of each label of a comma-separated list, inserted into the template."""
        image, wanted, frame = _given(image), read_labels(labels), read_template(template)
        shares = self.encoder.judge_labels(image, [frame.replace("{}", label) for label in wanted])
        return {label: float(share) for label, share in zip(wanted, shares, strict=True)}

    def why(self, sentence: str, jpeg: bytes) -> tuple[PIL.Image.Image, Relevance]:
        """A thumbnail with light on what speaks for the sentence, and the numbers behind it."""
        image = read_image(jpeg)
        found = self.encoder.relevance(image, sentence)
        return draw_relevance(image, found.cells, found.box), found

    def picture(self, image: PIL.Image.Image) -> Picture:
        """A visitor's image as it is stored: a thumbnail with its vector."""
        return Picture(thumbnail(image), self.photograph(image))

    def as_json(self, hits: Sequence[Hit]) -> list[dict[str, Any]]:
        """Results from the album as JSON values: number, score, captions."""
        return [
            {"photograph": hit.row, "score": round(hit.score, 4), "captions": self.album.captions[hit.row]}
            for hit in hits
        ]

    def spread_rows(self, count: int) -> list[int]:
        """Rows evenly spread over the album."""
        count = min(count, len(self.album))
        return [int((number + 0.5) * len(self.album) / count) for number in range(count)]

    def example_sentences(self, count: int) -> list[str]:
        """Captions from images evenly spread over the album: the longest caption that fits the page."""
        found: list[str] = []
        for row in self.spread_rows(8 * count):
            captions = self.album.captions[row]
            short = [caption for caption in captions if len(caption) <= _EXAMPLE_CHARACTERS]
            found.append(max(short, key=len) if short else min(captions, key=len))
        found = [each for each in dict.fromkeys(found) if len(each) <= _EXAMPLE_CHARACTERS] or found
        return found[:: max(1, len(found) // count)][:count]

    def frequent_words(self, count: int) -> list[str]:
        """Names of things in the captions, most frequent first; used as default labels.

        The last word of a phrase counts as a name, such as "dog" and "grass" in "a brown dog in the grass".
        """
        names: Counter[str] = Counter()
        for captions in self.album.captions:
            words: set[str] = set()
            for caption in captions:
                words.update(_phrase_ends(caption))
            names.update(words)
        return [name for name, _ in names.most_common(count)]

    def note(self, sentence: str, query: np.ndarray) -> str:
        """A note on a sentence query: the rank of its own image, and words that the model does not know."""
        parts = []
        rank = self.gallery.rank_of_own(query, sentence)
        if rank is not None:
            place = "first" if rank == 1 else f"number {rank:,}"
            parts.append(f"A caption of the gallery: its own photograph (✓) is {place} of {len(self.album):,}.")
        unknown = self.encoder.unknown_words(sentence)
        if unknown:
            parts.append(f"Words this model has never seen: {', '.join(unknown[:8])}.")
        return " ".join(parts)


def how_many(count: object) -> int:
    """Number of results, clipped to the limits."""
    if not isinstance(count, int | float) or count != count:
        raise RefusedError("The number of results must be a number.")
    return int(min(MAX_RESULTS, max(1, count)))


def _given(image: PIL.Image.Image | None) -> PIL.Image.Image:
    if image is None:
        raise RefusedError("There is no photograph yet: drop one, or choose one from the gallery.")
    return image


def _phrase_ends(caption: str) -> list[str]:
    found = []
    tokens = caption.lower().split()
    for token, following in zip(tokens, [*tokens[1:], "."], strict=True):
        word = token.strip(".,;:!?\"'()")
        ends = word != token.rstrip() or following.strip(".,;:!?") in _FUNCTION_WORDS | {""}
        if (
            ends
            and len(word) > 2
            and word.isalpha()
            and word not in _FUNCTION_WORDS
            and not word.endswith(("ing", "ly"))
        ):
            found.append(word)
    return found
