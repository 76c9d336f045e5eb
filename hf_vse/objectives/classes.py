"""Classification of images among entities, with a margin and sampled classes (MOFI, arXiv 2306.07952).

Every class c has a vector w_c. An image z of class y, of unit length, is told from the classes S of a step, which are
those of the batch and as many others as are drawn:

    -log( e^{(cos(z, w_y) - m)/t} / (e^{(cos(z, w_y) - m)/t} + sum_{c in S, c != y} e^{cos(z, w_c)/t}) )

That is the large-margin cosine loss of CosFace (arXiv 1801.09414) on a part of the classes, as in Partial FC (arXiv
2010.05222). With all classes in S it is the whole softmax. The class vectors serve training alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def margin_cosine_loss(
    image_embeds: Tensor, class_vectors: Tensor, own: Tensor, *, margin: float, temperature: float
) -> Tensor:
    """The loss of each image, (images,) float32.

    Args:
        image_embeds: (images, dim) unit vectors.
        class_vectors: (classes, dim) of any length.
        own: (images,) the row of `class_vectors` that each image belongs to.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        cosines = image_embeds.float() @ F.normalize(class_vectors.float(), dim=1).T
        margins = torch.zeros_like(cosines).scatter(1, own[:, None], margin)
        return F.cross_entropy((cosines - margins) / temperature, own, reduction="none")


def sampled_classes(present: np.ndarray, classes: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """The classes of a step in rising order: those present, and `samples` drawn from all, each at most once."""
    if samples >= classes:
        return np.arange(classes)
    return np.union1d(present, rng.choice(classes, samples, replace=False, shuffle=False))
