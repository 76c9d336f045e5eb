"""i-Mix (arXiv 2010.08887) on the pooled vectors of images: a mixture of two images belongs to the sentences of both.

Image i becomes share * image i + (1 - share) * image j, its partner. The loss is share times that with the sentence
of image i as its positive, plus 1 - share times that with the sentence of image j. So every execution of every
objective computes it, as two losses of the same embeddings. The share is max(l, 1 - l), l drawn from Beta(a, a).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_vse.training.arguments import VSETrainingArguments


class Mixture(NamedTuple):
    """How the images of a batch are mixed.

    Args:
        share: of the image itself; the same in all processes.
        partners: (batch,) place of the other image of each.
    """

    share: float
    partners: Tensor

    def images(self, features: Tensor) -> Tensor:
        """The mixed images, (batch, dim)."""
        return self.share * features + (1 - self.share) * features[self.partners]

    def loss(self, contrast: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The loss of mixed images from `contrast(ids, soft, images, texts, ...)`, in which text i is the positive of
        image i."""

        def mixed(ids: dict[str, Tensor | None], soft: None, images: Tensor, texts: Tensor, *others: Tensor) -> Tensor:
            of_partners = {name: None if each is None else each[self.partners] for name, each in ids.items()}
            second = contrast(of_partners, soft, images, texts[self.partners], *others)
            return self.share * contrast(ids, soft, images, texts, *others) + (1 - self.share) * second

        return mixed


def check_mixing(args: VSETrainingArguments) -> None:
    """Raises ValueError where something else needs images as they are."""
    if args.feature_mix and args.queue_size:
        raise ValueError("feature_mix and queue_size: the queue would hold mixtures as images: set one of them to 0")
    if args.feature_mix and args.soft_targets != "none":
        raise ValueError("feature_mix and soft_targets: no teacher scores mixtures: give soft_targets none, or no mix")
    if args.feature_mix and args.extra_negatives != "none":
        raise ValueError(
            "feature_mix and extra_negatives: mixtures of one image would be negatives, and a foil false "
            "of a half: give one of them"
        )


def mixed_inputs(
    args: VSETrainingArguments, step: int, inputs: dict[str, Any], training: bool = True
) -> tuple[dict[str, Any], Mixture | None]:
    """The inputs of a model with mixed images as `feature_mix` asks in training, and how they were mixed.

    A step is mixed the same way when it is repeated. All processes have the same share.

    Raises:
        ValueError: the inputs hold no pooled vectors.
    """
    if not args.feature_mix or not training:
        return inputs, None
    features = inputs.get("image_features")
    if features is None or features.ndim != 2:
        there = "photographs" if features is None else "sets of regions"
        raise ValueError(
            f"feature_mix mixes the one vector that each image has, but these are {there}: give features of one "
            "vector, or freeze_image_tower: true; or feature_mix: 0"
        )
    rng = np.random.default_rng((args.seed, step))
    drawn = rng.beta(args.feature_mix, args.feature_mix)
    partners = torch.from_numpy(rng.permutation(len(features))).to(features.device)
    mixture = Mixture(max(drawn, 1 - drawn), partners)
    return inputs | {"image_features": mixture.images(features)}, mixture
