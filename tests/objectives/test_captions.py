"""Several captions of an image: every execution equals a double loop over names, forward and backward.

Several processes: `test_gather.py`.
"""

import pytest
import torch
import torch.nn.functional as F

from hf_vse.model.losses_vse import OBJECTIVES, Objective, contrastive_loss
from hf_vse.objectives.execution import Execution, execute_loss
from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.objectives.streamed import streamed_contrastive_loss
from tests.model.test_losses import TEMPERATURE, naive_row, options
from tests.objectives.batches import Batch, assert_same, squared

FRAMES = (
    ("nce", {"positive_margin": 0.25, "hardness": 0.8, "image_weight": 0.75}),
    ("nce", {"false_negative_gap": 0.1}),
    ("clip", {"false_negative_gap": -0.1, "negatives_kept": 3, "hardness": 0.5}),
    ("nce", {"negatives_kept": 6}),  # more than a text has
)
ALL = [
    (loss_type, frame, positives)
    for loss_type, frame in (*((name, {}) for name in OBJECTIVES), *FRAMES)
    for positives in ("each", "any", "centre")
    if positives != "any" or "temperature" in OBJECTIVES[loss_type].settings
]
B, K = 6, 3
IMAGES = ["a", "b", "c", "a", "d", "e"]
WORDS = [["1", "2", "3"], ["4", "2", "5"], ["6", "6", "7"], ["8", "9", "10"], ["11", "12", "13"], ["1", "14", "2"]]
IDS = {
    "none": {},
    "images": {"image_ids": torch.tensor([ord(name) for name in IMAGES])},
    "both": {
        "image_ids": torch.tensor([ord(name) for name in IMAGES]),
        "text_ids": torch.tensor([[int(word) for word in words] for words in WORDS]),
    },
}


def naive_loss(loss_type, images, texts, positives, ids, image_weight=0.5, **frame):
    """Scalars, names and words alone; `texts` (B, K, dim)."""
    if positives == "centre":
        sets = [set(words) for words in WORDS]
        texts = torch.stack([sum(each) / sum(each).norm() for each in texts])[:, None]
    else:
        sets = [[{word} for word in words] for words in WORDS]
    captions = texts.shape[1]
    every = [(j, k) for j in range(B) for k in range(captions)]

    def negative(i, j, k):
        words = sets[j] if positives == "centre" else sets[j][k]
        same = i == j or ("image_ids" in ids and IMAGES[i] == IMAGES[j])
        return not (same or ("text_ids" in ids and words & set(WORDS[i])))

    total = torch.zeros((), dtype=torch.float64)
    for i in range(B):
        own = [images[i] @ text for text in texts[i]]
        others = [images[i] @ texts[j, k] for j, k in every if negative(i, j, k)]
        of_image = own
        if positives == "any":
            of_image = [TEMPERATURE * sum((score / TEMPERATURE).exp() for score in own).log()]
        for score in of_image:
            row = naive_row(loss_type, [score, *others], 0, list(range(1, 1 + len(others))), **frame)
            total = total + 2 * image_weight * row / len(of_image)
        for k, score in enumerate(own):
            others = [images[j] @ texts[i, k] for j in range(B) if negative(j, i, k)]
            row = naive_row(loss_type, [score, *others], 0, list(range(1, 1 + len(others))), **frame)
            total = total + 2 * (1 - image_weight) * row / captions
    if loss_type in ("hinge_sum", "hinge_max"):
        return total
    return total / B / (2 if loss_type in ("clip", "siglip") else 1)


@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize(("loss_type", "frame", "positives"), ALL)
def test_loss_equals_double_loop_forward_and_gradient(loss_type, frame, positives, ids):
    generator = torch.Generator().manual_seed(1)
    shapes = (B, 5), (B, K, 5)
    reference = [F.normalize(torch.randn(*each, generator=generator, dtype=torch.float64), dim=-1) for each in shapes]
    reference = [each.requires_grad_() for each in reference]
    expected = naive_loss(loss_type, *reference, positives, IDS[ids], **frame)
    expected.backward()
    assert expected.item() > 0 and reference[0].grad.abs().max() > 0
    for execution in (Execution("dense"), Execution("streamed", chunk_size=4)):
        given = [each.detach().float().requires_grad_() for each in reference]
        more = IDS[ids] | options() | frame
        loss = execute_loss(*given, loss_type=loss_type, positives=positives, execution=execution, **more)
        loss.backward()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
        for one, other in zip(given, reference, strict=True):
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss_type", "frame", "positives"), ALL)
def test_chunks_and_streams_equal_the_dense_loss_and_gradient(loss_type, frame, positives):
    """Temperature and bias included."""
    batch, more = Batch(11, 2, captions=3), {"loss_type": loss_type, "positives": positives, **frame}
    expected = batch.reference(**more)
    for loss, chunk_size in ((gathered_contrastive_loss, 7), (streamed_contrastive_loss, 4)):
        assert_same(batch.loss_and_gradients(loss, chunk_size=chunk_size, **more), expected)


@pytest.mark.parametrize(
    ("loss_type", "positives"),
    [("nce", "each"), ("hinge_sum", "each"), ("hinge_max", "each"), ("siglip", "any"), ("clip", "centre")],
)
def test_kernels_equal_the_dense_loss_and_gradient(loss_type, positives):
    pytest.importorskip("triton")
    from hf_vse.objectives.kernels.tiles import TritonTiles

    batch, more = Batch(13, 2, captions=3), {"loss_type": loss_type, "positives": positives}
    found = batch.loss_and_gradients(streamed_contrastive_loss, tiles=TritonTiles((16, 16, 16)), chunk_size=9, **more)
    assert_same(found, batch.reference(**more))


@pytest.mark.parametrize(("copies", "positives", "weight"), [(1, "each", 0.5), (3, "centre", 0.5), (3, "each", 0.0)])
@pytest.mark.parametrize("loss_type", OBJECTIVES)
def test_a_caption_repeated_is_the_caption(loss_type, copies, positives, weight):
    """Of `each`, only the text rows: an image has more negatives."""
    images, texts = (F.normalize(torch.randn(9, 4), dim=1) for _ in "it")
    more = {"loss_type": loss_type, "image_weight": weight, **Batch(9, 1).ids, **options()}
    expected = contrastive_loss(images, texts, **more)
    found = execute_loss(images, texts[:, None].expand(-1, copies, -1), positives=positives, **more)
    torch.testing.assert_close(found, expected)
    assert expected > 0


@pytest.mark.parametrize("positives", ["each", "any", "centre"])
def test_row_loss_of_ones_own_takes_several_captions(monkeypatch, positives):
    monkeypatch.setitem(OBJECTIVES, "squared", Objective(squared))
    batch, more = Batch(7, 2, captions=2), {"loss_type": "squared", "positives": positives}
    found = batch.loss_and_gradients(gathered_contrastive_loss, chunk_size=3, **more)
    assert_same(found, batch.reference(**more))


def test_what_does_not_fit_is_refused():
    images, texts = torch.eye(3), torch.eye(3)[:, None].expand(-1, 2, -1)
    with pytest.raises(ValueError, match="positives one takes one caption of an image, got 2: choose each, any or"):
        execute_loss(images, texts)
    with pytest.raises(ValueError, match="positives any needs a temperature, loss_type 'hinge_sum' has none"):
        execute_loss(images, texts, positives="any", loss_type="hinge_sum")
    with pytest.raises(ValueError, match="positives is one of one, each, any, centre, got 'all'"):
        execute_loss(images, texts, positives="all")
