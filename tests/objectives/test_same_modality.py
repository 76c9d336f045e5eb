"""Negatives of the same modality against a double loop in float64, forward and backward, in every execution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.model.losses_vse import OBJECTIVES, Objective
from hf_vse.objectives.execution import Execution, choose_execution, execute_loss
from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.objectives.streamed import streamed_contrastive_loss
from hf_vse.training.callbacks import indifferent_loss
from tests.objectives.batches import FRAMES, OPTIONS, Batch, assert_same, assert_same_together, squared
from tests.objectives.test_past import ALL, ROWS, T, make_past
from tests.processes import in_processes

PAIRS = 9
SEVERAL = [(positives, loss) for positives in ("each", "any", "centre") for loss in ("nce", "siglip", "hardnce")]
SAME = {"same_modality": True}


def double_loop(
    images: Tensor, texts: Tensor, loss_type: str, positives: str, image_ids: list, text_ids: list
) -> Tensor:
    """The loss, each score and each mask on its own; texts (B, K, dim), `text_ids` a list for each image."""
    owners = list(range(len(images)))
    of_images = [(image, i, set(text_ids[i])) for i, image in zip(owners, images, strict=True)]
    of_texts = [(texts[i, k], i, {text_ids[i][k]}) for i in owners for k in range(texts.shape[1])]
    if positives == "centre":
        of_texts = [(F.normalize(texts[i].mean(dim=0), dim=0), i, set(text_ids[i])) for i in owners]

    def row(query: tuple, own: Tensor) -> Tensor:
        vector, owner, words = query
        others = [
            other for other, of, theirs in (*of_images, *of_texts)
            if of != owner and image_ids[of] != image_ids[owner] and not words & theirs
        ]  # fmt: skip
        return ROWS[loss_type](own, [vector @ other for other in others])

    total = torch.zeros((), dtype=torch.float64)
    for i in owners:
        own = torch.stack([images[i] @ text for text, of, _ in of_texts if of == i])
        alone = [T * (own / T).logsumexp(0)] if positives == "any" else list(own)
        total = total + sum(row(of_images[i], each) for each in alone) / len(alone)
        mine = [text for text in of_texts if text[1] == i]
        total = total + sum(row(text, each) for text, each in zip(mine, own, strict=True)) / len(own)
    chosen = OBJECTIVES[loss_type]
    total = total / len(images) if chosen.reduction == "mean" else total
    return total / 2 if chosen.directions == "average" else total


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("positives", "loss_type"), [*(("one", name) for name in ROWS), *SEVERAL])
def test_negatives_of_the_same_modality_are_those_of_a_double_loop(positives, loss_type, masked):
    generator = torch.Generator().manual_seed(1)
    captions = 1 if positives == "one" else 3
    images, texts = (torch.randn(PAIRS, n, 4, generator=generator).requires_grad_() for n in (1, captions))
    unit = [F.normalize(each, dim=-1) for each in (images, texts)]
    ids = {"image_ids": torch.tensor([0, 0, *range(2, PAIRS)])}  # 2 and 3 share a caption in different places, 4 and 5
    text_ids = torch.arange(PAIRS * captions).view(PAIRS, captions)  # in the same
    text_ids[3, -1], text_ids[5, 0] = text_ids[2, 0], text_ids[4, 0]
    ids["text_ids"] = text_ids.squeeze(1)
    known = (ids["image_ids"].tolist() if masked else list(range(PAIRS))), text_ids.tolist()
    if not masked:
        ids, known = {}, (known[0], torch.arange(PAIRS * captions).view(PAIRS, captions).tolist())
    expected = double_loop(unit[0].double()[:, 0], unit[1].double(), loss_type, positives, *known)
    gradients = torch.autograd.grad(expected, (images, texts), retain_graph=True)
    shown = unit[0][:, 0], unit[1][:, 0] if captions == 1 else unit[1]
    options = OPTIONS | ids | {"loss_type": loss_type, "positives": positives}
    assert expected > 1.01 * execute_loss(*shown, **options), "nothing is added"
    for name in ("dense", "chunked", "streamed", "auto"):
        for size in (2, None):
            found = execute_loss(*shown, execution=Execution(name, chunk_size=size), **SAME, **options)
            torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
            of_found = torch.autograd.grad(found, (images, texts), retain_graph=True)
            for one, other in zip(of_found, gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss_type", "frame"), ALL)
def test_stream_and_chunks_equal_dense_with_past_candidates_too(loss_type, frame):
    batch, options = Batch(11, 2), {"loss_type": loss_type, "past": make_past(2, ids=7), **SAME, **frame}
    dense = batch.loss_and_gradients(gathered_contrastive_loss, **options)
    assert dense[0] != batch.loss_and_gradients(gathered_contrastive_loss, **options | {"same_modality": False})[0]
    for size in (3, None):
        for loss in (gathered_contrastive_loss, streamed_contrastive_loss):
            assert_same(batch.loss_and_gradients(loss, chunk_size=size, **options), dense)


def test_own_row_loss_sees_them_and_auto_counts_them(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "squared", Objective(squared))
    batch, options = Batch(PAIRS, 2), {"loss_type": "squared", **SAME}
    dense = batch.loss_and_gradients(execute_loss, execution=Execution("dense"), **options)
    assert dense[0] > batch.reference(loss_type="squared")[0]
    assert_same(batch.loss_and_gradients(execute_loss, execution=Execution("chunked", chunk_size=4), **options), dense)
    chosen = [choose_execution(Execution(), "nce", 1200, torch.device("cpu"), past=past)[0] for past in (0, 1200)]
    assert chosen[0] == "dense" and chosen[1] in ("streamed", "fused")
    with pytest.raises(ValueError, match="extra_negatives same_modality needs all images and texts at once"):
        batch.loss_and_gradients(streamed_contrastive_loss, negatives="ring", **SAME)


@pytest.mark.parametrize(("positives", "captions"), [("one", 1), ("each", 3), ("centre", 3)])
def test_loss_that_the_alarm_compares_with_is_that_of_equal_similarities(positives, captions):
    texts = torch.ones(6, 1) if captions == 1 else torch.ones(6, captions, 1)
    expected = execute_loss(torch.ones(6, 1), texts, positives=positives, **SAME).item()
    given = {"loss_type": "nce", "positives": positives, "captions": captions, "own_modality": 1.0}
    assert indifferent_loss(6, [5] * 6, **given) == pytest.approx(expected)


def check_processes(rank: int) -> None:
    bounds = [0, 4, 5, PAIRS]
    local = slice(bounds[rank], bounds[rank + 1])
    cases = (("nce", {}, 1), ("hardnce", {}, 1), (*FRAMES[2], 1), (*FRAMES[7], 1), ("nce", {"positives": "each"}, 3))
    for loss_type, frame, captions in cases:
        for ids in (2, 0):
            batch, options = Batch(PAIRS, ids, captions=captions), {"loss_type": loss_type, **SAME, **frame}
            expected = batch.loss_and_gradients(gathered_contrastive_loss, negatives="local", **options)
            for name in ("dense", "chunked", "streamed", "auto"):  # auto may take the kernels
                execution = Execution(name, chunk_size=2)
                found = batch.loss_and_gradients(execute_loss, local, execution=execution, **options)
                assert_same_together(found, expected)


def test_processes_compare_with_what_all_have():
    in_processes(3, check_processes)
