"""A model as two functions into one space: photographs to unit vectors, sentences to unit vectors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hf_vse.data.encoding import UNREAD
from hf_vse.data.images import BrokenImageError, decode_image
from hf_vse.embed.adapters.own_models import load_vse
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor


class Encoder:
    """Makes the vectors of a gallery and of the queries to it.

    Args:
        model, processor: the dual encoder.
        name: what to call it; default: the folder or Hub id it was loaded from.

    Example:
        encoder = Encoder.from_pretrained("org/vse-hardnce")
        scores, items = GalleryIndex.load("gallery").search(encoder.query("two dogs in the snow"), k=5)
    """

    def __init__(self, model: VSEModel, processor: VSEProcessor, name: str | None = None):
        self.model = model.eval()
        self.processor = processor
        self.towers = VSEEncoder(model, processor, name)
        self.name = self.towers.name

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device | None = None) -> "Encoder":
        """From a folder or a Hub id; the installed code is run, not the model's own.

        Raises:
            OSError, ValueError: see `load_vse`.
        """
        loaded = load_vse(name, device)
        return cls(loaded.model, loaded.processor, loaded.name)

    @property
    def digest(self) -> str:
        """Names all that decides the vectors, wherever it lies: they can be compared only where it is the same."""
        return self.towers.digest

    @property
    def dim(self) -> int:
        return self.model.config.projection_dim

    @property
    def reads_photographs(self) -> bool:
        return self.towers.reads_photographs

    def texts(self, sentences: Sequence[str], batch_size: int = 128, progress: bool = False) -> np.ndarray:
        """(sentences, dim) float32."""
        return encode_texts(self.towers, sentences, batch_size, progress).numpy()

    def images(self, images: Sequence[Any], batch_size: int = 64, num_workers: int = 0) -> np.ndarray:
        """(images, dim) float32, a row of infinity for each image that cannot be read.

        Args:
            images: files, PIL images or `{"bytes": ..., "path": ...}`; arrays for a model of precomputed features.
        """
        column = "image" if self.reads_photographs else "image_features"
        rows = [{column: image} for image in images]
        embeds = encode_images(self.towers, rows, batch_size, num_workers).numpy()
        return embeds if embeds.shape[1] == self.dim else np.full((len(rows), self.dim), UNREAD, np.float32)

    def query(
        self, text: str | Sequence[str] | None = None, image: Any = None, image_weight: float = 0.5
    ) -> np.ndarray:
        """Unit vectors to search with: sentences, an image, or sentences that refine an image.

        Args:
            text: one sentence or several.
            image: one image, see `images`.
            image_weight: share of the image in the sum where both are given, from 0 to 1.

        Returns:
            (queries, dim), one for each sentence, or one for the image.

        Raises:
            ValueError: nothing given, or an empty sentence, or an image that cannot be read.
        """
        if text is None and image is None:
            raise ValueError("nothing to search for: give text, image, or both")
        if not 0 <= image_weight <= 1:
            raise ValueError(f"image_weight must lie between 0 and 1, got {image_weight}")
        of_image = None if image is None else self.one_image(image)
        if text is None:
            return of_image
        sentences = [text] if isinstance(text, str) else list(text)
        if not sentences or not all(sentence.strip() for sentence in sentences):
            raise ValueError("a query is empty; write a sentence, such as 'two dogs in the snow'")
        of_text = self.texts(sentences)
        if of_image is None:
            return of_text
        both = image_weight * of_image + (1 - image_weight) * of_text
        return both / np.linalg.norm(both, axis=1, keepdims=True)

    def one_image(self, image: Any) -> np.ndarray:
        if self.reads_photographs:
            try:
                image = decode_image(image, needed=self.towers.needed_side)
            except BrokenImageError as error:
                raise ValueError(f"query image {error}") from error
        elif isinstance(image, str):
            raise ValueError(f"{self.name} was trained on precomputed features and cannot read the photograph {image}")
        return self.images([image])

    @staticmethod
    def readable(embeds: np.ndarray) -> np.ndarray:
        """(images,) booleans: which rows of `images` stand for an image that could be read."""
        return ~(embeds == UNREAD).all(axis=1)
