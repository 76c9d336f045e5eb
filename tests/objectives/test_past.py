"""Candidates of earlier steps against a double loop in float64, forward and backward, in every execution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.model.losses_vse import OBJECTIVES, Objective, contrastive_loss, share_an_id
from hf_vse.objectives.execution import Execution, choose_execution, execute_loss
from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.objectives.past import Candidates, Past
from hf_vse.objectives.streamed import streamed_contrastive_loss
from tests.objectives.batches import FRAMES, OPTIONS, Batch, assert_same, assert_same_together, squared
from tests.processes import in_processes

PAIRS, PAST = 11, 17
ALL = (*((name, {}) for name in OBJECTIVES), *FRAMES)
T, M, B = (OPTIONS[name] for name in ("temperature", "margin", "logit_bias"))
# Of the positive's score p and the list n of those of the negatives.
ROWS = {
    "nce": lambda p, n: torch.stack([p, *n]).div(T).logsumexp(0) - p / T,
    "hardnce": lambda p, n: (max(n) + M - p).clamp(min=0) / T,
    "hardnce_smooth": lambda p, n: F.softplus((max(n) + M - p) / T),
    "hinge_sum": lambda p, n: sum((M + s - p).clamp(min=0) for s in n),
    "hinge_max": lambda p, n: (max(n) + M - p).clamp(min=0),
    "siglip": lambda p, n: F.softplus(-p / T - B) + sum(F.softplus(s / T + B) for s in n),
}
ROWS["clip"] = ROWS["nce"]


def make_past(kinds: int, dim: int = 4, ids: int = PAIRS) -> Past:
    """Fewer images than texts; most share an id with some pair."""
    generator = torch.Generator().manual_seed(5)
    return Past(
        *(
            Candidates(
                F.normalize(torch.randn(count, dim, generator=generator), dim=1),
                torch.randint(0, ids, (count, kinds), generator=generator),
            )
            for count in (PAST - 4, PAST)
        )
    )


def double_loop(images: Tensor, texts: Tensor, loss_type: str, ids: Tensor, past: Past) -> Tensor:
    """The loss, each score and each mask on its own."""
    total = torch.zeros((), dtype=torch.float64)
    for queries, own, others in ((images, texts, past.texts), (texts, images, past.images)):
        masked = 0
        for i, query in enumerate(queries):
            negatives = [query @ own[j] for j in range(len(own)) if j != i and not (ids[i] == ids[j]).any()]
            kept = [c for c, of in zip(others.embeds, others.ids, strict=True) if not (ids[i] == of).any()]
            masked += len(others.ids) - len(kept)
            negatives += [query @ candidate.double() for candidate in kept]
            total = total + ROWS[loss_type](query @ own[i], negatives)
        assert masked > 10
    chosen = OBJECTIVES[loss_type]
    total = total / len(images) if chosen.reduction == "mean" else total
    return total / 2 if chosen.directions == "average" else total


@pytest.mark.parametrize("loss_type", ROWS)
def test_past_candidates_are_those_of_a_double_loop(loss_type):
    generator = torch.Generator().manual_seed(1)
    images, texts = (F.normalize(torch.randn(PAIRS, 4, generator=generator), dim=1).requires_grad_() for _ in "it")
    ids = torch.randint(0, PAIRS, (PAIRS, 2), generator=generator)
    past = make_past(2)
    expected = double_loop(images.double(), texts.double(), loss_type, ids, past)
    gradients = torch.autograd.grad(expected, (images, texts))
    options = OPTIONS | {"loss_type": loss_type, "image_ids": ids[:, 0], "text_ids": ids[:, 1], "past": past}
    without = contrastive_loss(images, texts, **{k: v for k, v in options.items() if k != "past"})
    assert expected > 1.01 * without, "past candidates do not matter"
    for name in ("dense", "chunked", "streamed", "auto"):
        for size in (3, None):
            found = execute_loss(images, texts, execution=Execution(name, chunk_size=size), **options)
            torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
            for one, other in zip(torch.autograd.grad(found, (images, texts)), gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss_type", "frame"), ALL)
def test_stream_and_chunks_with_past_candidates_equal_dense(loss_type, frame):
    past = make_past(2, ids=5)  # so few ids that some query has no past negatives
    batch, options = Batch(PAIRS, 2), {"loss_type": loss_type, "past": past, **frame}
    dense = batch.loss_and_gradients(gathered_contrastive_loss, **options)
    ids = torch.stack(tuple(batch.ids.values()), dim=1)
    assert dense[0] != batch.reference(loss_type=loss_type, **frame)[0]
    assert share_an_id(ids, past.texts.ids).any()
    for size in (1, 4, None):
        for loss in (gathered_contrastive_loss, streamed_contrastive_loss):
            assert_same(batch.loss_and_gradients(loss, chunk_size=size, **options), dense)


@pytest.mark.parametrize("loss_type", ["nce", "hinge_sum", "hardnce"])
@pytest.mark.parametrize("positives", ["each", "any", "centre"])
def test_stream_and_chunks_of_several_captions_with_past_candidates_equal_dense(positives, loss_type):
    if (positives, loss_type) == ("any", "hinge_sum"):  # it has no temperature
        loss_type = "siglip"
    batch, past = Batch(5, 2, captions=3), make_past(10 if positives == "centre" else 4, ids=9)
    options = {"loss_type": loss_type, "past": past, "positives": positives}
    dense = batch.loss_and_gradients(gathered_contrastive_loss, **options)
    assert dense[0] > batch.reference(loss_type=loss_type, positives=positives)[0]
    for size in (2, None):
        for loss in (gathered_contrastive_loss, streamed_contrastive_loss):
            assert_same(batch.loss_and_gradients(loss, chunk_size=size, **options), dense)


@pytest.mark.parametrize(("loss_type", "frame"), ALL)
def test_query_that_no_candidate_contradicts_has_a_finite_gradient(loss_type, frame):
    generator = torch.Generator().manual_seed(2)
    images, texts = (F.normalize(torch.randn(3, 4, generator=generator), dim=1).requires_grad_() for _ in "it")
    for ids in (torch.tensor([5, 5, 5]), torch.tensor([5, 5, 6])):
        same = Candidates(images.detach().roll(1, 0), torch.full((3, 1), 5))
        options = OPTIONS | frame | {"loss_type": loss_type, "image_ids": ids, "past": Past(same, same)}
        results = []
        for loss in (gathered_contrastive_loss, streamed_contrastive_loss):
            value = loss(images, texts, **options)
            gradients = torch.autograd.grad(value, (images, texts), materialize_grads=True)
            assert all(each.isfinite().all() for each in gradients)
            results.append([value.detach(), *gradients])
        assert_same(*results)


def test_own_row_loss_sees_past_candidates(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "squared", Objective(squared))
    batch, options = Batch(PAIRS, 2), {"loss_type": "squared", "past": make_past(2)}
    dense = batch.loss_and_gradients(execute_loss, execution=Execution("dense"), **options)
    assert dense[0] > batch.reference(loss_type="squared")[0]
    assert_same(batch.loss_and_gradients(execute_loss, execution=Execution("chunked", chunk_size=4), **options), dense)


def test_auto_counts_past_candidates_as_a_part_of_the_matrix():
    chosen = [choose_execution(Execution(), "nce", 256, torch.device("cpu"), past=past)[0] for past in (0, 30000)]
    assert chosen[0] == "dense" and chosen[1] in ("streamed", "fused")  # kernels run where they are interpreted


def test_past_candidates_without_ids_are_refused():
    batch = Batch(PAIRS)
    with pytest.raises(ValueError, match="past candidates need image_ids"):
        batch.loss_and_gradients(execute_loss, past=make_past(1))


def check_processes(rank: int) -> None:
    past, bounds = make_past(2), [0, 4, 5, PAIRS]
    local = slice(bounds[rank], bounds[rank + 1])
    for loss_type, frame in (("nce", {}), ("hardnce", {}), FRAMES[2], FRAMES[7]):
        batch, options = Batch(PAIRS, 2), {"loss_type": loss_type, "past": past, **frame}
        expected = batch.loss_and_gradients(gathered_contrastive_loss, negatives="local", **options)
        for name, negatives in (("dense", "gather"), ("chunked", "gather"), ("streamed", "gather"), ("auto", "ring")):
            execution = Execution(name, negatives, 2)
            found = batch.loss_and_gradients(execute_loss, local, execution=execution, **options)
            assert_same_together(found, expected)


def test_processes_with_one_past_equal_one_process():
    in_processes(3, check_processes)
