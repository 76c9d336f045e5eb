"""Several models as one: the mean of their cosines."""

import pytest
import torch
from torch.nn.functional import normalize

from hf_vse.embed.adapters.joint import JointEncoder, joined_names
from hf_vse.embed.load import kind_of, load_encoder, model_place
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.evaluation.evaluator import embed_pairs
from hf_vse.evaluation.tables import short_names
from tests.conftest import make_pairs
from tests.embed.test_load import refusal
from tests.embed.test_transformers_models import CASES, save

TEXTS = ["a red circle", "green", "a small blue star above"]


@pytest.fixture(scope="module")
def names(tiny_model, tokenizer, tmp_path_factory) -> list[str]:
    """Models with vectors of other lengths, of other processors and one without unit vectors."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    return [str(tiny_model), *(str(save(folder / kind, CASES[kind], tokenizer)) for kind in ("clip", "siglip"))]


@pytest.mark.parametrize("count", [2, 3])
def test_its_cosines_are_the_mean_of_those_of_its_models(names, count):
    pairs = make_pairs(4, captions=2)
    joint = embed_pairs(load_encoder("+".join(names[:count]), device="cpu"), pairs, progress=False)
    alone = [embed_pairs(load_encoder(name, device="cpu"), pairs, progress=False) for name in names[:count]]
    expected = sum(each.image_embeds.double() @ each.text_embeds.double().T for each in alone) / count
    torch.testing.assert_close(joint.image_embeds @ joint.text_embeds.T, expected.float(), rtol=1e-5, atol=1e-6)
    for vectors in (joint.image_embeds, joint.text_embeds):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_workers_prepare_for_all_models_without_holding_any(names):
    encoder = load_encoder(" + ".join(names), device="cpu")
    images = make_pairs(5).select_columns("image")
    alone = encode_images(encoder, images, batch_size=2).embeds
    assert torch.equal(encode_images(encoder, images, batch_size=2, num_workers=1).embeds, alone)
    assert encoder.dim == alone.shape[1] == sum(each.dim for each in encoder.encoders)
    assert encoder.facts()["parameters"] == sum(each.facts()["parameters"] for each in encoder.encoders)
    assert encoder.facts()["models"][1]["model"] == names[1]


def test_a_model_counts_the_same_however_long_its_vectors_are(names):
    """Multiplying the vectors of one by ten changes nothing."""
    encoder = load_encoder("+".join(names[:2]), device="cpu")
    before = encode_texts(encoder, TEXTS)
    second = encoder.encoders[1]
    second.encode_texts = lambda texts, longer=second.encode_texts: 10 * longer(texts)
    torch.testing.assert_close(encode_texts(encoder, TEXTS), before)
    parts = [encode_texts(each, TEXTS) for each in encoder.encoders]
    torch.testing.assert_close(before, normalize(torch.cat(parts, dim=1), dim=1))


def test_its_digest_is_that_of_the_models_and_their_order(names):
    a, b, c = names
    digests = [load_encoder(name, device="cpu").digest for name in (f"{a}+{b}", f"{b}+{a}", f"{a}+{c}", f"{a}+{b}")]
    assert len({*digests}) == 3 and digests[0] == digests[3]
    parts = [load_encoder(name, device="cpu") for name in (a, b)]
    for part in parts:
        part.digest = None  # of a class whose source is not known: nothing of it is kept
        assert JointEncoder(parts).digest is None


def test_a_folder_with_the_sign_in_its_name_is_one_model(tiny_model, tmp_path, monkeypatch):
    both = tmp_path / "a+b"
    both.symlink_to(tiny_model)
    assert joined_names(str(both)) == [str(both)] and kind_of(str(both)) == "vse"
    assert joined_names("c++") == ["c++"] and joined_names(" a + b ") == ["a", "b"]
    monkeypatch.chdir(tmp_path)
    assert model_place("a+b") == str(both)
    assert short_names(["runs/a+org/b", "runs/c"]) == {"runs/a+org/b": "a+b", "runs/c": "c"}
    both.rename(tmp_path / "a")
    assert model_place("a+org/b") == f"{tmp_path / 'a'}+org/b"


def test_what_cannot_be_joined_is_said(names, tmp_path):
    assert "names a model twice" in refusal(lambda: load_encoder(f"{names[0]}+{names[0]}", device="cpu"))
    assert "is one model: give two or more" in refusal(lambda: load_encoder(names[0], device="cpu", kind="joint"))
    assert "is one model: give two or more" in refusal(lambda: JointEncoder([load_encoder(names[0], device="cpu")]))
    own = f"{names[0]}+tests.embed.test_encode:Colours"
    for kind in ("auto", "joint"):
        message = refusal(lambda kind=kind: load_encoder(own, device="cpu", kind=kind))
        assert "tests.embed.test_encode:Colours is a Python class, which is not joined to others" in message
    assert "none does not exist" in refusal(lambda: load_encoder(f"{names[0]}+{tmp_path / 'none'}", device="cpu"))
