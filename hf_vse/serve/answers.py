"""Many queries to a gallery at once. Each gets what it would get alone, also where another one fails."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_vse.data.decoding import BrokenImageError, decode_image
from hf_vse.search.on_demand import ModelOnDemand
from hf_vse.search.store import GalleryStore
from hf_vse.serve.limits import RefusedRequest
from hf_vse.serve.requests import Query

if TYPE_CHECKING:  # sentences may be answered without torch
    from hf_vse.embed.encoder import Encoder

logger = logging.getLogger(__name__)

Results = list[dict[str, Any]]


class QueryAnswerer:
    """The gallery and the encoder that made it, see `open_model`."""

    def __init__(self, gallery: GalleryStore, encoder: "Encoder | ModelOnDemand"):
        self.gallery, self.encoder = gallery, encoder

    def open_model(self) -> None:
        """Opens what reads photographs, if it waits to be opened.

        Raises:
            RefusedRequest: it cannot be opened.
        """
        if not isinstance(self.encoder, ModelOnDemand):
            return
        try:
            self.encoder.model()
        except Exception as error:
            logger.exception("the model of the gallery cannot be opened")
            line = "image: the model that reads photographs cannot be opened: the log of the server says why"
            raise RefusedRequest(503, line) from error

    def answer(self, queries: Sequence[Query]) -> list[Results | Exception]:
        """For each query `score` and `item` of what is found, best first, or why there is no answer.

        Texts are encoded together, photographs one by one. Queries with the same `k` and conditions are searched
        together: an approximate index may find more with a larger `k`, so those of another one are not.
        """
        answers: list[Any] = self.encoded(queries)
        alike = defaultdict(list)
        for place, query in enumerate(queries):
            if not isinstance(answers[place], Exception):
                alike[query.k, query.where].append(place)
        for (k, where), places in alike.items():
            found: Sequence[Any]
            try:
                found = self.searched(np.stack([answers[place] for place in places]), k, where)
            except Exception as error:
                found = [error] * len(places)
            for place, results in zip(places, found, strict=True):
                answers[place] = results
        return answers

    def encoded(self, queries: Sequence[Query]) -> list[np.ndarray | Exception]:
        """A vector (dim,) for each query."""
        texts = list(dict.fromkeys(query.text for query in queries if query.image is None))
        of_text = dict(zip(texts, each_or_error(self.encoder.query, texts), strict=True))
        return [
            of_text[query.text] if query.image is None else each_or_error(self.of_image, [query])[0]
            for query in queries
        ]

    def of_image(self, queries: Sequence[Query]) -> np.ndarray:
        """(1, dim), of one query with a photograph."""
        (query,) = queries
        if not self.encoder.reads_images:
            raise RefusedRequest(400, "image: the model of this gallery reads no photographs; search with q")
        try:
            image = decode_image({"bytes": query.image, "path": None}, needed=self.encoder.needed_side)
        except BrokenImageError as error:
            raise RefusedRequest(400, f"{error}; send a JPEG, PNG or WebP") from error
        return self.encoder.query(query.text, image, query.image_weight)

    def searched(self, vectors: np.ndarray, k: int, where: Sequence[str]) -> list[Results]:
        try:
            self.gallery.check_conditions(where)
        except ValueError as error:
            raise RefusedRequest(400, f"where: {error}") from error
        scores, items = self.gallery.search(vectors, k, self.encoder, where)
        return [
            [
                {"score": round(float(score), 4), "item": public_item(item)}
                for score, item in zip(of, found, strict=True)
            ]
            for of, found in zip(scores, items, strict=True)
        ]


def each_or_error(work: Callable[..., Any], inputs: list) -> list[Any]:
    """What `work` makes of the inputs, one for each; where it fails, of each alone, or the exception."""
    if not inputs:
        return []
    try:
        return list(work(inputs))
    except Exception as error:
        if len(inputs) == 1:
            return [error]
        return [each_or_error(work, [each])[0] for each in inputs]


def public_item(item: Any) -> Any:
    """An item without the folders of this machine: of a file outside of the gallery's folder its name is left."""
    if not isinstance(item, dict) or not isinstance(item.get("file"), str):
        return item
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(item["file"]).is_absolute():
            return item | {"file": kind(item["file"]).name}
    return item
