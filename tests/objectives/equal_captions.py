"""A set in which half of the images share ten captions, and what a loss does to every similarity of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.data.schema import text_id
from hf_vse.model.losses_vse import OBJECTIVES
from tests.model.test_losses import naive_loss, options

EQUAL_PAIRS = 31
SHARED = 16  # of these pairs have one of ten captions
CAPTIONS = [f"{'A' if n % 3 else ' a'} field,  no. {n % 10}" for n in range(SHARED)]
CAPTIONS += [f"only of image {n}" for n in range(SHARED, EQUAL_PAIRS)]
IMAGES = [n // 2 if n > EQUAL_PAIRS - 6 else 100 + n for n in range(EQUAL_PAIRS)]  # two images have two captions
WORDS = [" ".join(each.split()).lower() for each in CAPTIONS]
EQUAL = torch.tensor([[one == other for other in WORDS] for one in WORDS])
SAME_IMAGE = torch.tensor([[one == other for other in IMAGES] for one in IMAGES])
POSITIVE = torch.eye(EQUAL_PAIRS, dtype=torch.bool)
NOT_COMPARED = (EQUAL | SAME_IMAGE) & ~POSITIVE
assert (EQUAL & ~POSITIVE).sum() == 12 and (SAME_IMAGE & ~POSITIVE).sum() == 4


def embeddings(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Images with any scores, and texts that are the axes: the gradient by an image is that by its similarities."""
    scores = torch.randn(EQUAL_PAIRS, EQUAL_PAIRS, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return F.normalize(scores, dim=1).to(dtype), torch.eye(EQUAL_PAIRS, dtype=dtype)


def gradient_by_similarity(loss, rows: slice = slice(None), **more) -> tuple[Tensor, Tensor]:
    """The value of a loss and its gradient by all similarities of some images: (), (rows, pairs)."""
    images, texts = (each[rows].clone().requires_grad_() for each in embeddings())
    ids = {
        "image_ids": torch.tensor(IMAGES)[rows],
        "text_ids": torch.tensor([text_id(each) for each in CAPTIONS])[rows],
    }
    value = loss(images, texts, **ids, **options(), **more)
    value.backward()
    return value.detach(), images.grad


def reference(loss_type: str) -> tuple[Tensor, Tensor]:
    """The same from a double loop over names of images and words of captions, in float64."""
    images, texts = embeddings(torch.float64)
    value = naive_loss(loss_type, images.requires_grad_(), texts, IMAGES, WORDS)
    value.backward()
    return value.detach(), images.grad


REFERENCES: dict[str, tuple[Tensor, Tensor]] = {}


def check_gradient_by_similarity(loss_type: str, found: Tensor, rows: slice = slice(None)) -> None:
    """Zero between equals, and as the reference everywhere."""
    if loss_type not in REFERENCES:
        REFERENCES[loss_type] = reference(loss_type)
    expected = REFERENCES[loss_type][1][rows]
    assert (found[NOT_COMPARED[rows]] == 0).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    if OBJECTIVES[loss_type].row_loss.__name__ in ("nce", "siglip"):  # all others count
        assert (found[~NOT_COMPARED[rows]] != 0).all()
