"""Published directories in the rest of the ecosystem, in a process that has never heard of hf_vse."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import CLIPImageProcessorPil

from hf_vse.embed.adapters.transformers_models import TransformersEncoder, processor_of
from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.model.sentence_transformers_vse import VSESentenceModule
from tests.conftest import assert_same_vectors
from tests.embed.test_transformers_models import CASES, save

TEXTS = ["a red circle", "blue", "small green star above"]
STRANGER = """
import sys
sys.modules["hf_vse"] = None  # importing it fails from here on
from importlib.util import find_spec
import numpy as np, PIL.Image
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, pipeline

pixels, features, whole, work, photo, *texts = sys.argv[1:]
image = PIL.Image.open(photo)
exact = {}
numbers = np.linspace(-1, 1, 10)
for name, folder, given in (("pixels", pixels, image), ("features", features, numbers), ("whole", whole, image)):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "vse"
    assert len(AutoTokenizer.from_pretrained(folder, trust_remote_code=True)) == len(processor.tokenizer)
    inputs = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)([given], return_tensors="pt")
    exact[f"{name}.image"] = model(**inputs).image_embeds.detach().numpy()
    exact[f"{name}.text"] = model(**processor(text=texts)).text_embeds.detach().numpy()
save_file(exact, f"{work}/exact.safetensors")
zero_shot = pipeline("zero-shot-image-classification", model=pixels, trust_remote_code=True)
scores = zero_shot(image, candidate_labels=texts, hypothesis_template="{}")
found = {"zero_shot": [next(each["score"] for each in scores if each["label"] == text) for text in texts]}
found["image_features"] = pipeline("image-feature-extraction", model=pixels, trust_remote_code=True)(image)
# A model that came as remote code is saved again, by another class than it was first loaded with.
zero_shot.model.save_pretrained(f"{work}/again")
AutoProcessor.from_pretrained(pixels, trust_remote_code=True).save_pretrained(f"{work}/again")
if find_spec("sentence_transformers"):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(f"{work}/again", trust_remote_code=True)
    found["mixed"] = model.encode([texts[0], image, *texts[1:]], batch_size=3)
    found["similarity"] = model.similarity(found["mixed"], found["mixed"]).numpy()
    model.save_pretrained(f"{work}/sentence")
    found["saved"] = SentenceTransformer(f"{work}/sentence", trust_remote_code=True).encode([*texts, image])
    found["whole"] = SentenceTransformer(whole, trust_remote_code=True).encode([*texts, image])
    model = SentenceTransformer(features, trust_remote_code=True)
    found["prompted"] = model.encode(texts[1], prompt=f"{texts[0]} ")
    assert model.get_embedding_dimension() == 16
    try:
        model.encode([image])
    except ValueError as error:
        assert "text" in str(error)
    else:
        raise AssertionError("a model of features encoded a photograph")
save_file({name: np.asarray(value, dtype=np.float32) for name, value in found.items()}, f"{work}/found.safetensors")
assert not any(name.startswith("hf_vse.") for name in sys.modules)
"""


@pytest.fixture
def published(tokenizer, tiny_resnet, tmp_path):
    """A model of pixels, one of features, and one that started as a SigLIP, saved; and a photograph."""
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    options = {"projection_dim": 16, "projection_type": "mlp", "text_pooling": "gpo", "loss_type": "siglip"}
    made = {}
    for name, vision, images in (
        ("pixels", tiny_resnet, CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32)),
        ("features", {"model_type": "vse_features", "hidden_size": 10}, None),
    ):
        model = VSEModel(VSEConfig(vision_config=vision, text_config=text, **options)).eval()
        processor = VSEProcessor(images, tokenizer)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        made[name] = model, processor
    source = save(tmp_path / "source", CASES["siglip"], tokenizer)
    model = VSEModel.from_dual_encoder(TransformersEncoder.from_pretrained(str(source), "cpu").model).eval()
    made["whole"] = model, processor_of(str(source))
    for each in made["whole"]:
        each.save_pretrained(tmp_path / "whole")
    PIL.Image.effect_noise((50, 40), 80).convert("RGB").save(tmp_path / "photo.png")
    return made


@torch.no_grad()
def test_every_way_of_loading_gives_the_numbers_of_the_model(published, tmp_path):
    folders = [*(str(tmp_path / name) for name in published), str(tmp_path)]
    command = [sys.executable, "-c", STRANGER, *folders, str(tmp_path / "photo.png"), *TEXTS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    photo = PIL.Image.open(tmp_path / "photo.png")
    outputs = {
        name: model(**processor(images=[given], text=TEXTS))
        for (name, (model, processor)), given in zip(
            published.items(), (photo, np.linspace(-1, 1, 10), photo), strict=True
        )
    }
    exact = load_file(tmp_path / "exact.safetensors")
    for name, output in outputs.items():
        assert_same_vectors(exact[f"{name}.image"], output.image_embeds)
        assert_same_vectors(exact[f"{name}.text"], output.text_embeds)
    whole = torch.cat([outputs["whole"].text_embeds, outputs["whole"].image_embeds]).numpy()
    found, outputs = load_file(tmp_path / "found.safetensors"), outputs["pixels"]
    image, texts = outputs.image_embeds.numpy(), outputs.text_embeds.numpy()
    expected = {
        "zero_shot": outputs.logits_per_image[0].softmax(dim=0).numpy(),
        "image_features": image[None],
    }
    if find_spec("sentence_transformers"):
        mixed = np.concatenate([texts[:1], image, texts[1:]])
        expected |= {"mixed": mixed, "similarity": mixed @ mixed.T, "saved": np.concatenate([texts, image])}
        expected["whole"] = whole
        model, processor = published["features"]
        prompted = model(**processor(text=f"{TEXTS[0]} {TEXTS[1]}")).text_embeds.numpy()[0]
        expected["prompted"] = prompted
    assert found.keys() == expected.keys()
    assert np.ptp(expected["zero_shot"]) > 0.01
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].reshape(value.shape), value, atol=1e-5, err_msg=name)
    first, again = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("pixels", "again"))
    assert first["auto_map"] == again["auto_map"] and len(again["auto_map"]) == 3
    assert {path.name for path in (tmp_path / "pixels").iterdir()} == {p.name for p in (tmp_path / "again").iterdir()}


def test_outputs_hold_what_they_show(published):
    model, processor = published["features"]
    outputs = model(**processor(images=[np.ones(10)], text=TEXTS))
    names = ["logits_per_image", "logits_per_text", "image_embeds", "text_embeds", "temperature", "logit_bias"]
    assert list(outputs) == names
    assert outputs[0] is outputs.logits_per_image and outputs["text_embeds"] is outputs.text_embeds


def test_sentence_module_refuses_what_it_cannot_encode(published):
    module = VSESentenceModule(*published["pixels"])
    for strange in ({"image": "dog.jpg"}, {"text": "red", "image": PIL.Image.new("RGB", (8, 8))}, {"audio": "red"}):
        with pytest.raises(ValueError, match="encode takes sentences and images, got dict; give str or PIL.Image"):
            module.preprocess(["red", strange])
    with pytest.raises(ValueError, match="backend must be 'torch', got 'onnx'"):
        VSESentenceModule.load("anywhere", backend="onnx")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weights: weights.pop("visual_projection.bias"), "missing weights, such as 'visual_projection.bias'"),
        (lambda weights: weights.update(more=np.ones(3)), "unexpected weights, such as 'more'"),
    ],
)
def test_sentence_module_of_other_weights_is_refused(published, tmp_path, spoil, message):
    assert VSESentenceModule.load(str(tmp_path / "pixels"), trust_remote_code=True).get_embedding_dimension() == 16
    weights = load_file(tmp_path / "pixels" / "model.safetensors")
    spoil(weights)
    save_file(weights, tmp_path / "pixels" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        VSESentenceModule.load(str(tmp_path / "pixels"), trust_remote_code=True)
