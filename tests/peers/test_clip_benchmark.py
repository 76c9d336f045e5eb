"""The model in CLIP_benchmark's retrieval function, whose recalls are ours."""

import pytest
from torch.utils.data import DataLoader

from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.evaluation.evaluator import evaluate_retrieval
from tests.conftest import make_pairs

benchmark = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")


class AsOpenClip:
    """The two methods that CLIP_benchmark calls, on those of the model."""

    def __init__(self, model):
        self.model = model

    def encode_image(self, pixel_values):
        return self.model.get_image_features(pixel_values).pooler_output

    def encode_text(self, tokens):
        return self.model.get_text_features(**tokens).pooler_output


def test_recalls_are_ours(tiny_model):
    encoder, pairs, ks = VSEEncoder.from_pretrained(tiny_model), make_pairs(24), [1, 5, 10]

    def collate(rows):
        pixels = encoder.processor(images=[row["image"] for row in rows])["pixel_values"]
        return pixels, [row["captions"] for row in rows]

    batches = DataLoader(pairs, batch_size=8, collate_fn=collate)

    def tokenize(texts):
        return encoder.processor(text=texts)

    found = benchmark.evaluate(AsOpenClip(encoder.model), batches, tokenize, "cpu", amp=False, recall_k_list=ks)
    ours = evaluate_retrieval(encoder.model, encoder.processor, pairs, progress=False)
    for k in ks:
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(ours[f"t2i_r{k}"] / 100)
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(ours[f"i2t_r{k}"] / 100)
    assert 0 < found["text_retrieval_recall@10"] < 1
