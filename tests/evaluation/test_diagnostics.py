"""Everything at once, and the few numbers of a batch, which must be those of the long way."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from hf_vse.evaluation.diagnostics import diagnose as diagnose_module
from hf_vse.evaluation.diagnostics.diagnose import diagnose, quick_diagnostics
from hf_vse.evaluation.diagnostics.geometry import geometry
from hf_vse.evaluation.diagnostics.hubness import hubness
from hf_vse.evaluation.diagnostics.similarities import similarities
from hf_vse.evaluation.metrics import retrieval_metrics
from tests.conftest import make_captions
from tests.evaluation.test_metrics import embeddings

PARTS = ["geometry", "hubness", "similarities", "breakdown", "suspects", "calibration"]


def some_captions(count):
    return [make_captions(row, 1)[0] for row in range(count)]


def test_diagnose_is_plain_json_and_repeatable():
    images, texts, owner = embeddings(images=30, ragged=True)
    captions = some_captions(len(texts))
    record = diagnose(images, texts, owner, captions, train_captions=captions[:9], temperature=0.1)
    assert sorted(record) == sorted(PARTS)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    again = diagnose(*(torch.from_numpy(np.asarray(each)) for each in (images, texts, owner)), captions,
                     train_captions=captions[:9], temperature=0.1)  # fmt: skip
    assert again == record


def test_parts_agree_where_they_speak_of_the_same():
    images, texts, owner = embeddings(images=50, noise=1.0, seed=4)
    record = diagnose(images, texts, owner, some_captions(len(texts)), temperature=0.1)
    assert record["geometry"]["alignment"] == pytest.approx(2 - 2 * record["similarities"]["t2i"]["positives"]["mean"])
    found = sum(row["queries"] * row["r1"] for row in record["breakdown"]["length"]) / len(texts)
    assert record["calibration"]["accuracy"] == pytest.approx(found)
    assert 5 < found < 95


def test_collapsed_model_is_diagnosed_and_not_refused():
    alike = np.full((30, 4), 0.5, np.float32)
    record = diagnose(alike[:10], alike, np.arange(30) // 3, some_captions(30))
    assert record["geometry"]["collapsed"] and record["calibration"]["accuracy"] == 0
    assert record["geometry"]["effective_rank_text"] == pytest.approx(1, rel=1e-3)
    assert record["suspects"]["annotation_errors"]["rows"] == []
    json.dumps(record, allow_nan=False)


def test_one_caption_for_each_image_is_enough():
    images, texts, owner = embeddings(images=20, captions=1)
    record = diagnose(images, texts, owner, some_captions(20))
    assert record["geometry"]["tolerance"] is None and record["calibration"]["given"] is None
    json.dumps(record, allow_nan=False)


def test_bad_input_is_refused_in_one_line():
    images, texts, owner = embeddings(images=4)
    captions = some_captions(len(texts))
    cases = [
        ((images, texts * 3, owner, captions), "text_embeds must be unit vectors, row .* has length 3; divide"),
        ((images, texts * np.nan, owner, captions), "text_embeds row 0 is not finite"),
        ((images, texts, owner, captions[:3]), "one text for each row of text_embeds, got 3, 20"),
        ((images[:1], texts[owner == 0], owner[owner == 0], captions[:5]), "two rows at least"),
        ((np.vstack([images] * 2), texts, owner, captions), "4 and 3 more have no text"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            diagnose(*arguments)


def test_quick_numbers_are_those_of_the_long_way():
    images, texts, owner = (torch.from_numpy(np.asarray(each)) for each in embeddings(images=48, captions=1, dim=12))
    images = images[owner]  # row i belongs to row i
    rows = torch.arange(48)
    quick = quick_diagnostics(images, texts)
    whole = geometry(images, texts, rows)
    for name in ("alignment", "modality_gap", "uniformity_image", "uniformity_text", "effective_rank_image",
                 "effective_rank_text"):  # fmt: skip
        assert quick.pop(name) == pytest.approx(whole[name], rel=1e-4), name
    hubs, cosines = hubness(images, texts, levels=(5,)), similarities(images, texts, rows)
    for direction in ("t2i", "i2t"):
        assert quick.pop(f"hubness_skew_{direction}") == pytest.approx(hubs[direction]["k5"]["skewness"], rel=1e-4)
        hardest = cosines[direction]["hardest_negatives"]["mean"]
        assert quick.pop(f"hardest_negative_{direction}") == pytest.approx(hardest, rel=1e-5)
    assert quick.pop("positive_similarity") == pytest.approx(cosines["t2i"]["positives"]["mean"], rel=1e-5)
    assert quick == {}


def test_quick_numbers_know_captions_of_one_image():
    images, texts, owner = (torch.from_numpy(np.asarray(each)) for each in embeddings(images=20, ragged=True))
    quick = quick_diagnostics(images, texts, owner)
    cosines = similarities(images, texts, owner)
    for direction in ("t2i", "i2t"):
        hardest = cosines[direction]["hardest_negatives"]["mean"]
        assert quick[f"hardest_negative_{direction}"] == pytest.approx(hardest, rel=1e-5)
    assert quick["positive_similarity"] == pytest.approx(cosines["t2i"]["positives"]["mean"], rel=1e-5)
    assert quick["hardest_negative_t2i"] != pytest.approx(
        quick_diagnostics(images, texts[:20])["hardest_negative_t2i"]
    )


def test_quick_numbers_of_large_batches_take_their_first_rows(monkeypatch):
    images, texts, owner = (torch.from_numpy(np.asarray(each)) for each in embeddings(images=48, captions=1, dim=12))
    images = images[owner]
    monkeypatch.setattr(diagnose_module, "BATCH_ROWS", 16)
    quick, first = quick_diagnostics(images, texts), quick_diagnostics(images[:16], texts[:16])
    linear = {"alignment", "modality_gap", "positive_similarity"}
    assert {name: quick[name] for name in first if name not in linear} == pytest.approx(
        {name: first[name] for name in first if name not in linear}
    )
    assert quick["alignment"] == pytest.approx(geometry(images, texts, torch.arange(48))["alignment"])


def test_quick_numbers_take_what_training_has():
    """Low precision under autocast, with gradients, the last batch of an epoch; a collapsed model."""
    images, texts = (torch.nn.functional.normalize(torch.randn(24, 16)) for _ in range(2))
    expected = quick_diagnostics(images, texts)
    with torch.autocast("cpu", torch.bfloat16):
        assert quick_diagnostics(images.requires_grad_(), texts) == expected
    low = quick_diagnostics(images.bfloat16(), texts.bfloat16())
    assert low["alignment"] == pytest.approx(expected["alignment"], rel=0.02)
    assert quick_diagnostics(images[:1], texts[:1]) == {}
    assert all(np.isfinite(list(quick_diagnostics(images[:2], texts[:2]).values())))
    collapsed = quick_diagnostics(torch.ones(24, 16), torch.ones(24, 16))
    assert all(np.isfinite(list(collapsed.values()))) and collapsed["uniformity_text"] == pytest.approx(0, abs=1e-5)
    assert collapsed["effective_rank_image"] < 1.2


def test_a_batch_that_is_not_finite_is_passed_over():
    images, texts = normalize(torch.randn(2, 6, 4), dim=-1)
    assert quick_diagnostics(images, texts)
    for bad in (torch.nan, torch.inf):
        broken = texts.clone()
        broken[2, 1] = bad
        assert quick_diagnostics(images, broken) == {}
        assert quick_diagnostics(broken, images) == {}


class OnAppleGPU(torch.Tensor):
    """A tensor that says it is on the GPU of an Apple computer, and like one there knows no float64."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func == torch.Tensor.device.__get__:
            return torch.device("mps:0")
        if func is torch.Tensor.cpu:
            with torch._C.DisableTorchFunctionSubclass():
                return args[0].clone().as_subclass(torch.Tensor)
        found = super().__torch_function__(func, types, args, kwargs or {})
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        return found


def test_diagnostics_and_ranks_do_without_float64_on_the_gpu_of_an_apple_computer():
    images, texts = normalize(torch.randn(36, 4), dim=-1).split([12, 24])
    owner = torch.arange(24) // 2
    there = [each.as_subclass(OnAppleGPU) for each in (images, texts)]
    with pytest.raises(TypeError, match="float64"):
        there[0].double()
    assert quick_diagnostics(*there, owner) == quick_diagnostics(images, texts, owner)
    assert retrieval_metrics(*there, owner) == retrieval_metrics(images, texts, owner)
    assert diagnose(*there, owner, None) == diagnose(images, texts, owner, None)
