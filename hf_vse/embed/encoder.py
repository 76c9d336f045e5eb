"""Any image-text model as two functions into one space. All commands work with an `Encoder`, whoever wrote the model.

The whole adapter of a new model:

    class MyEncoder(Encoder):
        name = "my model"

        def encode_images(self, images):  # list of RGB PIL images
            return my_model.images(torch.stack([my_transform(image) for image in images]))

        def encode_texts(self, texts):  # list of strings
            return my_model.texts(my_tokenizer(texts))

Each returns one vector per input, of any length and precision, on any device, with or without gradients. Batches,
broken files, the order of the texts, several processes, normalisation and resumption are handled by `run.py`.
Similarity is the cosine.
"""

import ast
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_vse.data.decoding import BrokenImageError, decode_image
from hf_vse.data.digests import digest_of, weights_digest
from hf_vse.deprecation import deprecated
from hf_vse.embed.run import encode_images, encode_texts

Device = str | torch.device | None
Precision = str | torch.dtype | None


class Encoder:
    """Base class of all adapters. A new model needs `encode_images` and `encode_texts`; the rest has defaults.

    Attributes:
        name: what to call the model in a report.
        place: what `load_encoder` was given, with the whole path of files; None for an object made otherwise.
        kind: which adapter this is, in the words of `load_encoder`.
        extra, needs: the extra of this package, and the packages in it, without which the adapter does not run.
        dtype: precision of the weights, as `load_encoder` takes it; None where the model has its own.
        temperature: what the model divides cosines by before a softmax; None where it has no such number.
        reads_images, reads_features: what `encode_images` takes: images, or the arrays of a data set of
            precomputed features.
        stays: attributes that worker processes do without: they prepare images and get no copy of the model.
        needed_side: pixels to which the shorter side of an image is reduced before it is prepared, so that a much
            larger one is not held whole; None where it is not known.
    """

    # Values, because that is what most classes know; an adapter that has to compute one overrides it by a property.
    name: str = "unnamed model"
    place: str | None = None
    kind: str = "python"
    extra: str = ""
    needs: tuple[str, ...] = ()
    dtype: str | None = None
    temperature: float | None = None
    reads_images: bool = True
    reads_features: bool = False
    stays: tuple[str, ...] = ("model",)
    needed_side: int | None = None

    @classmethod
    def from_pretrained(cls, name: str, device: Device = None) -> "Encoder":
        """Deprecated: `load_encoder` does the same, for every kind of model."""
        from hf_vse.embed.load import load_encoder

        deprecated("Encoder.from_pretrained", "load_encoder")
        return load_encoder(name, device=device)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process that is spawned gets."""
        return {name: value for name, value in vars(self).items() if name not in self.stays}

    @cached_property
    def digest(self) -> str | None:
        """Names all that decides the vectors, weights and preparation: vectors are comparable only where it is equal.

        By default it covers the source files of the class and the weights of the `nn.Module`s that it holds. A class
        whose vectors depend on more (a file that it reads, the version of a package) sets a digest of its own, any
        text. None where the source is not known: such vectors are neither kept nor continued.
        """
        source = source_digest(type(self))
        held = sorted(name for name, value in vars(self).items() if isinstance(value, nn.Module))
        weights = [(name, weights_digest(vars(self)[name])) for name in held]
        return None if source is None else digest_of(source, weights)

    @cached_property
    def dim(self) -> int:
        """Length of the vectors."""
        return encode_texts(self, ["a"]).shape[1]

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

    def query(
        self, text: str | Sequence[str] | None = None, image: Any = None, image_weight: float = 0.5
    ) -> np.ndarray:
        """Unit vectors to search with: texts, an image, or texts that refine an image.

        Args:
            text: one sentence or several.
            image: a file, a PIL image or `{"bytes": ..., "path": ...}`; an array for a model of precomputed features.
            image_weight: share of the image in the sum where both are given, from 0 to 1.

        Returns:
            (queries, dim) float32, one for each sentence, or one for the image.

        Raises:
            ValueError: nothing given, an empty sentence, or an image that cannot be read.
        """
        if text is None and image is None:
            raise ValueError("nothing to search for: give text, image, or both")
        if not 0 <= image_weight <= 1:
            raise ValueError(f"image_weight must lie between 0 and 1, got {image_weight}")
        of_image = None if image is None else self.image_query(image)
        if text is None:
            assert of_image is not None  # one of the two is given
            return of_image
        sentences = [text] if isinstance(text, str) else list(text)
        if not sentences or not all(sentence.strip() for sentence in sentences):
            raise ValueError("a query is empty; write a sentence, such as 'two dogs in the snow'")
        of_text = encode_texts(self, sentences).numpy()
        if of_image is None:
            return of_text
        both = image_weight * of_image + (1 - image_weight) * of_text
        return both / np.linalg.norm(both, axis=1, keepdims=True)

    def image_query(self, image: Any) -> np.ndarray:
        """(1, dim)"""
        if not self.reads_images:
            if isinstance(image, str):
                raise ValueError(f"{self.name} was trained on precomputed features and cannot read the image {image}")
            return encode_images(self, [{"image_features": image}]).embeds.numpy()
        try:
            decoded = decode_image(image, needed=self.needed_side)
        except BrokenImageError as error:
            raise ValueError(f"query image {error}") from error
        return encode_images(self, [{"image": decoded}]).embeds.numpy()


class NetworkEncoder(Encoder):
    """An encoder that holds one torch module, `model`."""

    model: nn.Module

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    def facts(self) -> dict[str, Any]:
        size = sum(parameter.numel() for parameter in self.model.parameters())
        return {"dimensions": self.dim, "parameters": size, "dtype": self.dtype}


def source_digest(kind: type[Encoder]) -> str | None:
    """Of the files that define a class and those that it derives from, up to `Encoder`, and of what these import from
    their own folder; None where a file is unknown."""
    digests = []
    for each in kind.__mro__[: kind.__mro__.index(Encoder)]:
        file = getattr(sys.modules.get(each.__module__), "__file__", None)
        if file is None or not Path(file).is_file():
            return None
        digests.append((each.__qualname__, [digest_of(part.read_bytes()) for part in with_imports(Path(file))]))
    return digest_of(digests)


def with_imports(file: Path) -> list[Path]:
    """A Python file and, of the files of its folder or package, those that it imports, directly or through others."""
    roots = [file.parent]
    while (roots[-1] / "__init__.py").is_file():
        roots.append(roots[-1].parent)
    found = [file]
    for each in found:
        names = []
        for node in ast.walk(ast.parse(each.read_bytes())):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names += [node.module or "", *(f"{node.module or ''}.{alias.name}" for alias in node.names)]
        for module in [root.joinpath(*name.strip(".").split(".")) for root in roots for name in names if name]:
            places = module.parent / f"{module.name}.py", module / "__init__.py"
            found += [place for place in places if place.is_file() and place not in found]
    return found


def __getattr__(name: str) -> Any:
    if name == "DualEncoder":
        deprecated("DualEncoder", "Encoder")
        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
