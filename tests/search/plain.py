"""An encoder without a model, for tests of what is around it."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from hf_vse.search.encoder import Encoder

from hf_vse.data.encoding import UNREAD

DIM = 8


class PlainEncoder:
    """Unit vectors of 8 dimensions that the content of a file, or a sentence, determines.

    Args:
        weights: another text stands for other weights.
    """

    dim = DIM
    reads_photographs = True
    readable = staticmethod(Encoder.readable)

    def __init__(self, weights: str = "a"):
        self.name = "plain"
        self.digest = blake2b(weights.encode(), digest_size=16).hexdigest()
        self.seen = 0

    def vector(self, content: bytes) -> np.ndarray:
        seed = int.from_bytes(blake2b(content + self.digest.encode(), digest_size=8).digest())
        vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
        return vector / np.linalg.norm(vector)

    def images(self, images: Sequence[Any], batch_size: int = 64, num_workers: int = 0) -> np.ndarray:
        self.seen += len(images)
        contents = [Path(image).read_bytes() for image in images]
        unread = np.full(DIM, UNREAD, np.float32)
        return np.stack([self.vector(content) if content else unread for content in contents])

    def texts(self, sentences: Sequence[str]) -> np.ndarray:
        return np.stack([self.vector(sentence.encode()) for sentence in sentences])


def fill(folder: Path, names: Sequence[str], salt: str = "") -> Path:
    """A folder of files that `PlainEncoder` takes for photographs."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"picture {name} {salt}".encode(errors="surrogateescape"))
    return folder
