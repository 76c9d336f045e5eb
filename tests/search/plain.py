"""An encoder without a model, for tests of what is around it."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images

DIM = 8


class PlainEncoder(Encoder):
    """Vectors of 8 dimensions that the pixels of an image, or a sentence, determine.

    Args:
        weights: another text stands for other weights.
    """

    dim = DIM

    def __init__(self, weights: str = "a"):
        self.name = "plain"
        self.digest = blake2b(weights.encode(), digest_size=16).hexdigest()
        self.images: set[bytes] = set()

    @property
    def seen(self) -> int:
        """How many different images were encoded."""
        return len(self.images)

    def vector(self, content: bytes) -> np.ndarray:
        seed = int.from_bytes(blake2b(content + self.digest.encode(), digest_size=8).digest())
        return np.random.default_rng(seed).normal(size=DIM).astype(np.float32)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        contents = [image.tobytes() for image in images]
        self.images.update(contents)
        return np.stack([self.vector(content) for content in contents])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.vector(text.encode()) for text in texts])

    def vectors_of(self, files: Sequence[Path]) -> np.ndarray:
        return encode_images(self, [{"image": str(file)} for file in files]).embeds.numpy()


def fill(folder: Path, names: Sequence[str], salt: str = "") -> Path:
    """Files with an image that name and salt determine, all of one size."""
    for name in names:
        pixels = blake2b(f"{name} {salt}".encode(errors="surrogateescape"), digest_size=48).digest()
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.frombytes("RGB", (4, 4), pixels).save(file, "BMP")
    return folder
