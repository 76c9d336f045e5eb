"""A dual encoder as evaluation and search see it: two functions into one space, whoever wrote the model.

The whole adapter of a new model:

    class MyEncoder(DualEncoder):
        name = "my model"

        def encode_images(self, images):  # list of RGB PIL images
            return my_model.images(torch.stack([my_transform(image) for image in images]))

        def encode_texts(self, texts):  # list of strings
            return my_model.texts(my_tokenizer(texts))

Each returns one vector for each input, of any length and precision, on any device, with or without gradients. Batches,
broken files, the order of the sentences, several processes, normalisation and resumption are the business of
`encode.py`. Similarity is the cosine.
"""

from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor


class DualEncoder:
    """What an adapter inherits from; only the two methods at the end have to be written.

    Attributes:
        name: what to call the model in a report.
        digest: names the weights: embeddings kept in files are continued only where it is the same. An encoder
            without one is known by its name.
        reads_photographs, reads_features: what `encode_images` understands: pictures, or the arrays of a data set of
            precomputed features.
        stays: attributes that worker processes do without: they prepare images and get no copy of the model.
        needed_side: pixels to which the shorter side of a photograph is brought, so that one of many times that size
            is not held whole; None where it is not known.
    """

    name: str = "unnamed model"
    digest: str | None = None
    reads_photographs: bool = True
    reads_features: bool = False
    stays: tuple[str, ...] = ("model",)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process that is spawned gets."""
        return {name: value for name, value in vars(self).items() if name not in self.stays}

    needed_side: int | None = None

    def facts(self) -> dict[str, Any]:
        """What a reader of the record should know: family, parameters, image size, templates, ..."""
        return {}

    def prepare_images(self, images: list[Image.Image]) -> Any:
        """What worker processes can do for a batch: its result is what `encode_images` gets. By default nothing."""
        return images

    def encode_images(self, images: Any) -> Tensor | np.ndarray:
        """(images, dim)"""
        raise NotImplementedError(f"{type(self).__name__} does not say how it encodes images")

    def encode_texts(self, texts: list[str]) -> Tensor | np.ndarray:
        """(texts, dim)"""
        raise NotImplementedError(f"{type(self).__name__} does not say how it encodes texts")
