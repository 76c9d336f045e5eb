import numpy as np
import pytest
import torch
from datasets import Image
from transformers import CLIPImageProcessorPil

from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.encoder import Encoder
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.evaluator import embed_pairs, evaluate_retrieval
from hf_vse.evaluation.judge import judge
from hf_vse.evaluation.metrics import retrieval_metrics
from hf_vse.evaluation.tables import recall_table
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from tests.conftest import make_feature_pairs, make_pairs


@pytest.fixture
def pixel_model(tokenizer, tiny_resnet):
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    model = VSEModel(VSEConfig(vision_config=tiny_resnet, text_config=text, projection_dim=16))
    return model, VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32), tokenizer)


def one_by_one(model, processor, dataset):
    """Embeddings of every image and caption alone, in order."""
    model.eval()
    images = [model(**processor(images=[row["image"]])).image_embeds for row in dataset]
    texts = [model(**processor(text=[caption])).text_embeds for row in dataset for caption in row["captions"]]
    return torch.cat(images).detach(), torch.cat(texts).detach()


def test_embeddings_equal_those_of_one_item_at_a_time(pixel_model):
    dataset = make_pairs(7)
    pairs = embed_pairs(VSEEncoder(*pixel_model), dataset, batch_size=3, progress=False)
    images, texts = one_by_one(*pixel_model, dataset)
    torch.testing.assert_close(pairs.image_embeds, images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pairs.text_embeds, texts, rtol=1e-4, atol=1e-5)
    assert pairs.text_to_image.tolist() == np.repeat(np.arange(7), 5).tolist()


def test_broken_images_are_left_out_with_their_captions(pixel_model):
    dataset = make_pairs(6).cast_column("image", Image(decode=False))
    whole = embed_pairs(VSEEncoder(*pixel_model), dataset, progress=False)
    damaged = dataset.map(
        lambda row, index: {"image": {"bytes": b"x" if index in (0, 3) else row["image"]["bytes"], "path": None}},
        with_indices=True,
        features=dataset.features,
    )
    pairs = embed_pairs(VSEEncoder(*pixel_model), damaged, batch_size=2, progress=False)
    assert pairs.broken == 2 and pairs.image_rows.tolist() == [1, 2, 4, 5]
    torch.testing.assert_close(pairs.image_embeds, whole.image_embeds[[1, 2, 4, 5]])
    kept = [text for text, image in enumerate(whole.text_to_image.tolist()) if image not in (0, 3)]
    torch.testing.assert_close(pairs.text_embeds, whole.text_embeds[kept])
    metrics = evaluate_retrieval(*pixel_model, damaged, progress=False)
    assert (metrics["images"], metrics["texts"], metrics["broken_images"]) == (4, 20, 2)


def test_a_diverged_model_is_not_mistaken_for_broken_images(pixel_model):
    with torch.no_grad():
        pixel_model[0].visual_projection.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="image_embeds row 0 is not finite; the model diverged"):
        evaluate_retrieval(*pixel_model, make_pairs(3), progress=False)


def test_evaluation_leaves_the_mode_of_the_model_alone(pixel_model):
    for training in (True, False):
        pixel_model[0].train(training)
        evaluate_retrieval(*pixel_model, make_pairs(3), progress=False)
        assert pixel_model[0].training is training


def test_record_holds_numbers_protocol_and_fingerprint(tokenizer):
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    vision = {"model_type": "vse_features", "hidden_size": 16}
    model = VSEModel(VSEConfig(vision_config=vision, text_config=text, projection_dim=16))
    dataset = make_feature_pairs(12, captions=3)
    encoder = VSEEncoder(model, VSEProcessor(tokenizer=tokenizer), "mine")
    pairs = embed_pairs(encoder, dataset, progress=False)
    record = judge(encoder, dataset, progress=False).record
    assert record["metrics"] == retrieval_metrics(pairs.image_embeds, pairs.text_embeds, pairs.text_to_image)
    assert record["protocol"].startswith("12 images, 36 captions")
    same, other = make_feature_pairs(12, captions=3), dataset.select(range(11, -1, -1))
    assert record["fingerprint"] == judge(encoder, same, progress=False).record["fingerprint"]
    assert record["fingerprint"] != judge(encoder, other, progress=False).record["fingerprint"]
    assert f"{record['metrics']['rsum']:.1f}" in recall_table({"test": record["metrics"]})
    assert {"versions", "device", "threads", "commit"} == environment().keys()


class Counting(Encoder):
    """Vectors that follow from brightness and length, and a count of what was encoded."""

    name = digest = "counting"

    def __init__(self):
        self.images = self.texts = 0

    def encode_images(self, images):
        self.images += len(images)
        return torch.tensor([[np.asarray(image).mean(), 1.0] for image in images])

    def encode_texts(self, texts):
        self.texts += len(texts)
        return np.array([[len(text), 1.0, 0.0][:2] for text in texts])


def test_an_encoder_is_two_methods_and_each_image_is_encoded_once():
    encoder, dataset = Counting(), make_pairs(7, captions=3)
    pairs = embed_pairs(encoder, dataset, batch_size=3, progress=False)
    assert (encoder.images, encoder.texts) == (7, 21)
    lengths = torch.tensor([[len(text), 1.0] for row in dataset["captions"] for text in row])
    torch.testing.assert_close(pairs.text_embeds, torch.nn.functional.normalize(lengths))


def test_kept_embeddings_are_read_and_those_of_other_data_are_not(tmp_path):
    encoder, dataset = Counting(), make_pairs(5)
    first = embed_pairs(encoder, dataset, progress=False, keep=tmp_path)
    encoder.images = encoder.texts = 0
    second = embed_pairs(encoder, dataset, progress=False, keep=tmp_path)
    assert encoder.images == encoder.texts == 0
    assert all(torch.equal(one, other) for one, other in zip(first[:4], second[:4], strict=True))
    more = make_pairs(7)
    assert torch.equal(
        embed_pairs(encoder, more, progress=False, keep=tmp_path).image_embeds,
        embed_pairs(Counting(), more, progress=False).image_embeds,
    )
    assert encoder.images == 2  # the other five are those of before
    encoder.digest = "other weights"
    embed_pairs(encoder, dataset, progress=False, keep=tmp_path)
    assert encoder.images == 2 + 5


def test_embeddings_of_an_encoder_without_digest_are_not_kept(tmp_path):
    encoder = Counting()
    encoder.digest = None
    with pytest.raises(ValueError, match="counting has no digest, .* give it an attribute `digest`"):
        embed_pairs(encoder, make_pairs(3), progress=False, keep=tmp_path)
    assert not list(tmp_path.iterdir())


def test_embeddings_of_the_first_version_are_ignored_with_one_line(tmp_path, caplog):
    (tmp_path / "0123456789abcdef").mkdir()
    np.save(tmp_path / "0123456789abcdef" / "images_0_of_1.npy", np.zeros((5, 2), np.float32))
    encoder = Counting()
    embed_pairs(encoder, make_pairs(5), progress=False, keep=tmp_path)
    assert encoder.images == 5 and caplog.text.count("embeddings of hf_vse 0.1, which are not read") == 1


def test_data_that_a_model_cannot_read_are_refused(tokenizer):
    with pytest.raises(ValueError, match="counting reads photographs, the data have precomputed features"):
        embed_pairs(Counting(), make_feature_pairs(4), progress=False)
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    config = VSEConfig(vision_config={"model_type": "vse_features", "hidden_size": 16}, text_config=text)
    of_features = VSEEncoder(VSEModel(config), VSEProcessor(tokenizer=tokenizer), "mine")
    with pytest.raises(ValueError, match="mine reads precomputed features, the data have photographs"):
        embed_pairs(of_features, make_pairs(4), progress=False)
