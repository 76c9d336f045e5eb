"""Foils as negatives of images against a double loop in float64, forward and backward, in every execution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.model.losses_vse import OBJECTIVES, Objective
from hf_vse.objectives.captions import Candidates
from hf_vse.objectives.execution import Execution, execute_loss
from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.objectives.streamed import streamed_contrastive_loss
from hf_vse.training.callbacks import indifferent_loss
from tests.objectives.batches import FRAMES, OPTIONS, Batch, assert_same, assert_same_together, squared
from tests.objectives.test_past import ALL, ROWS, T, make_past
from tests.processes import in_processes

PAIRS, FOILS = 7, 9
SEVERAL = [(positives, loss) for positives in ("each", "any", "centre") for loss in ("nce", "siglip", "hardnce")]


def double_loop(
    images: Tensor, texts: Tensor, foils: Tensor, loss_type: str, positives: str, image_ids: list, text_ids: list,
    foil_ids: list,
) -> Tensor:  # fmt: skip
    """The loss, each score and each mask on its own; texts (B, K, dim), `text_ids` a list for each image."""
    owners = list(range(len(images)))
    of_texts = [(texts[i, k], i, {text_ids[i][k]}) for i in owners for k in range(texts.shape[1])]
    if positives == "centre":
        of_texts = [(F.normalize(texts[i].mean(dim=0), dim=0), i, set(text_ids[i])) for i in owners]

    def negatives(of: int, words: set, candidates: list) -> list[Tensor]:
        return [
            each for each, i, theirs in candidates
            if i != of and image_ids[i] != image_ids[of] and not words & theirs
        ]  # fmt: skip

    total = torch.zeros((), dtype=torch.float64)
    for i in owners:
        own = torch.stack([images[i] @ text for text, of, _ in of_texts if of == i])
        false = [foil for foil, word in zip(foils, foil_ids, strict=True) if word not in text_ids[i]]
        others = [images[i] @ each for each in [*negatives(i, set(text_ids[i]), of_texts), *false]]
        alone = [T * (own / T).logsumexp(0)] if positives == "any" else list(own)
        total = total + sum(ROWS[loss_type](each, others) for each in alone) / len(alone)
        of_images = [(image, j, set(text_ids[j])) for j, image in enumerate(images)]
        mine = [(text, words) for text, of, words in of_texts if of == i]
        for (text, words), score in zip(mine, own, strict=True):
            total = total + ROWS[loss_type](score, [text @ each for each in negatives(i, words, of_images)]) / len(own)
    chosen = OBJECTIVES[loss_type]
    total = total / len(images) if chosen.reduction == "mean" else total
    return total / 2 if chosen.directions == "average" else total


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("positives", "loss_type"), [*(("one", name) for name in ROWS), *SEVERAL])
def test_foils_are_those_of_a_double_loop(positives, loss_type, masked):
    generator = torch.Generator().manual_seed(1)
    captions = 1 if positives == "one" else 3
    shapes = (PAIRS, 1), (PAIRS, captions), (FOILS, 1)
    leaves = [torch.randn(*shape, 4, generator=generator).requires_grad_() for shape in shapes]
    images, texts, foils = (F.normalize(each, dim=-1) for each in leaves)
    image_ids, text_ids = torch.tensor([0, 0, *range(2, PAIRS)]), torch.arange(PAIRS * captions).view(PAIRS, captions)
    text_ids[3, -1] = text_ids[2, 0]
    foil_ids = torch.arange(100, 100 + FOILS)
    foil_ids[1], foil_ids[4] = text_ids[2, 0], text_ids[5, -1]  # word for word captions of images
    given = {"image_ids": image_ids, "text_ids": text_ids.squeeze(1)}
    known = image_ids.tolist(), text_ids.tolist(), foil_ids.tolist()
    assert sum(word in words for words in known[1] for word in known[2]) == 3, "no foil is masked"
    if not masked:
        given = {}
        known = list(range(PAIRS)), torch.arange(-PAIRS * captions, 0).view(PAIRS, captions).tolist(), known[2]
    expected = double_loop(images[:, 0].double(), texts.double(), foils[:, 0].double(), loss_type, positives, *known)
    gradients = torch.autograd.grad(expected, leaves, retain_graph=True)
    assert all(each.any() for each in gradients)
    shown = images[:, 0], texts[:, 0] if captions == 1 else texts
    options = OPTIONS | given | {"loss_type": loss_type, "positives": positives}
    assert expected > 1.005 * execute_loss(*shown, **options), "nothing is added"
    further = {"foils": Candidates(foils[:, 0], foil_ids[:, None])}
    for name in ("dense", "chunked", "streamed", "auto"):  # auto may take the kernels
        for size in (2, None):
            found = execute_loss(*shown, execution=Execution(name, chunk_size=size), **further, **options)
            torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
            of_found = torch.autograd.grad(found, leaves, retain_graph=True)
            for one, other in zip(of_found, gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def foiled(loss, most: int = 12):
    """The loss with foils that the texts determine, each by itself; some texts have none, some equal a caption."""

    def of_batch(images: Tensor, texts: Tensor, **options) -> Tensor:
        rows, words = texts.flatten(0, -2), options.get("text_ids")
        ids = torch.zeros(len(rows), dtype=torch.int64) if words is None else (words.flatten() * 5 + 1) % most
        there = rows[:, 0] > -0.4
        foils = Candidates(F.normalize(rows.roll(1, dims=1) + 0.3 * rows, dim=1)[there], ids[there, None])
        return loss(images, texts, foils=foils, **options)

    return of_batch


@pytest.mark.parametrize(("loss_type", "frame"), ALL)
def test_stream_and_chunks_equal_dense_with_past_candidates_too(loss_type, frame):
    batch, options = Batch(11, 2), {"loss_type": loss_type, "past": make_past(2, ids=7), **frame}
    dense = batch.loss_and_gradients(foiled(gathered_contrastive_loss), **options)
    assert dense[0] != batch.loss_and_gradients(gathered_contrastive_loss, **options)[0]
    for further in ({}, {"past": None}):
        dense = batch.loss_and_gradients(foiled(gathered_contrastive_loss), **options | further)
        for size in (3, None):
            for loss in (gathered_contrastive_loss, streamed_contrastive_loss):
                assert_same(batch.loss_and_gradients(foiled(loss), chunk_size=size, **options | further), dense)


def test_own_row_loss_sees_them_and_a_batch_may_have_none(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "squared", Objective(squared))
    batch, loss = Batch(PAIRS, 2), foiled(execute_loss)
    dense = batch.loss_and_gradients(loss, execution=Execution("dense"), loss_type="squared")
    assert dense[0] > batch.reference(loss_type="squared")[0]
    assert_same(
        batch.loss_and_gradients(loss, execution=Execution("chunked", chunk_size=4), loss_type="squared"), dense
    )
    none = Candidates(torch.zeros(0, 4), torch.zeros(0, 1, dtype=torch.int64))
    for name in ("dense", "chunked", "streamed"):
        found = batch.loss_and_gradients(execute_loss, execution=Execution(name), foils=none, hardness=0.5)
        assert_same(found, batch.reference(hardness=0.5))
    with pytest.raises(ValueError, match="extra_negatives foils needs all images and texts at once"):
        batch.loss_and_gradients(streamed_contrastive_loss, negatives="ring", foils=none)


@pytest.mark.parametrize(("positives", "captions"), [("one", 1), ("each", 3), ("any", 3)])
def test_loss_that_the_alarm_compares_with_is_that_of_equal_similarities(positives, captions):
    texts = torch.ones(6, 1) if captions == 1 else torch.ones(6, captions, 1)
    foils = Candidates(torch.ones(5, 1), torch.zeros(5, 1, dtype=torch.int64))
    expected = execute_loss(torch.ones(6, 1), texts, positives=positives, foils=foils).item()
    given = {"loss_type": "nce", "positives": positives, "captions": captions, "foils": 5}
    assert indifferent_loss(6, [5] * 6, **given) == pytest.approx(expected)


def check_processes(rank: int) -> None:
    local = slice(0, 6) if rank == 0 else slice(6, 9)
    cases = (("nce", {}, 1), ("hardnce", {}, 1), (*FRAMES[2], 1), (*FRAMES[7], 1), ("nce", {"positives": "each"}, 3))
    for loss_type, frame, captions in cases:
        for ids in (2, 0):
            batch, options = Batch(9, ids, captions=captions), {"loss_type": loss_type, **frame}
            expected = batch.loss_and_gradients(foiled(gathered_contrastive_loss), negatives="local", **options)
            assert expected[0] > batch.reference(**options)[0]
            for name in ("dense", "chunked", "streamed"):
                execution = Execution(name, chunk_size=2)
                found = batch.loss_and_gradients(foiled(execute_loss), local, execution=execution, **options)
                assert_same_together(found, expected)
    none = Candidates(torch.zeros(0, 4), torch.zeros(0, 1, dtype=torch.int64))
    found = Batch(9, 2).loss_and_gradients(execute_loss, local, foils=none)
    assert_same_together(found, Batch(9, 2).reference())


def test_processes_compare_with_foils_of_all():
    in_processes(2, check_processes)
