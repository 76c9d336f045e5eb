"""Several models as one encoder, `MODEL+MODEL`: their unit vectors one beside the other.

The cosine of two such vectors is the mean of the cosines of the models, an ensemble of scores as in SCAN (Lee et al.,
ECCV 2018). Each model runs its own towers, so the cost and the length of the vectors are sums. Models of one training
with frozen towers join to one model instead, which runs them once: `joined_seeds`.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_vse.data.digests import digest_of
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import unit

SIGN = "+"


def joined_names(name: str) -> list[str]:
    """The models that a name joins, or the name itself: a folder may be called so, too."""
    parts = [part.strip() for part in name.split(SIGN)]
    return parts if len(parts) > 1 and all(parts) and not Path(name).exists() else [name]


class JointEncoder(Encoder):
    """
    Args:
        encoders: two or more, which all read what the data have.

    Raises:
        ValueError: fewer, or the same model twice.
    """

    kind = "joint"

    def __init__(self, encoders: Sequence[Encoder]):
        self.encoders = list(encoders)
        self.name = SIGN.join(each.name for each in encoders)
        self.needs = tuple(dict.fromkeys(package for each in encoders for package in each.needs))
        if len(encoders) < 2:
            raise ValueError(f"{self.name} is one model: give two or more to join, or its name alone")
        digests = [each.digest for each in encoders if each.digest is not None]
        if len({*digests}) < len(digests):
            raise ValueError(f"{self.name} names a model twice: give each one once")

    @property
    def dtype(self) -> str | None:  # type: ignore[override]
        dtypes = {each.dtype for each in self.encoders}
        return dtypes.pop() if len(dtypes) == 1 else None

    @property
    def reads_images(self) -> bool:  # type: ignore[override]
        return all(each.reads_images for each in self.encoders)

    @property
    def reads_features(self) -> bool:  # type: ignore[override]
        return all(each.reads_features for each in self.encoders)

    @property
    def needed_side(self) -> int | None:  # type: ignore[override]
        sides = [each.needed_side for each in self.encoders]
        return None if None in sides else max(side for side in sides if side is not None)

    @cached_property
    def digest(self) -> str | None:
        digests = [each.digest for each in self.encoders]
        return None if None in digests else digest_of(self.kind, *digests)

    @cached_property
    def dim(self) -> int:
        return sum(each.dim for each in self.encoders)

    def facts(self) -> dict[str, Any]:
        of_parts = [{"model": each.name, **each.facts()} for each in self.encoders]
        known = all("parameters" in facts for facts in of_parts)
        total = {"parameters": sum(facts["parameters"] for facts in of_parts)} if known else {}
        return {"family": self.kind, "dimensions": self.dim, **total, "models": of_parts}

    def prepare_images(self, images: list[Image.Image]) -> list[Any]:
        return [each.prepare_images(images) for each in self.encoders]

    def encode_images(self, images: list[Any]) -> Tensor:
        found = [each.encode_images(prepared) for each, prepared in zip(self.encoders, images, strict=True)]
        return self.joint(found, len(found[0]))

    def encode_texts(self, texts: list[str]) -> Tensor:
        return self.joint([each.encode_texts(texts) for each in self.encoders], len(texts))

    def joint(self, vectors: list[Any], count: int) -> Tensor:
        """(count, dim), where all models count alike: each has vectors of length one."""
        parts = (unit(found, count, each) for found, each in zip(vectors, self.encoders, strict=True))
        return torch.cat([torch.from_numpy(part) for part in parts], dim=1) / len(self.encoders) ** 0.5
