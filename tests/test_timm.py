"""The timm extra for real, with torchvision installed; run by `make test-timm` in an environment of its own."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil

from hf_vse.model.configuration_vse import VSEConfig
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.build import timm_tower
from hf_vse.training.trainer import VSETrainer
from tests.conftest import assert_same_vectors, make_pairs

pytestmark = pytest.mark.timm
ARCHITECTURES = ["resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224"]


@pytest.fixture(autouse=True)
def needs_timm():
    pytest.importorskip("timm", reason='needs pip install "hf_vse[timm]"', exc_type=ImportError)


def timm_model(architecture):
    import timm

    return timm.create_model(architecture, pretrained=False)


def make_model(tokenizer, architecture, **options) -> VSEModel:
    vision = {"model_type": "timm_wrapper", "architecture": architecture, "num_classes": 0}
    if architecture.startswith("vit"):
        vision["model_args"] = {"img_size": 32}
    text = {"vocab_size": len(tokenizer), "word_dim": 8, "hidden_size": 16}
    return VSEModel(VSEConfig(vision_config=vision, text_config=text, **{"projection_dim": 16} | options))


def make_processor(tokenizer) -> VSEProcessor:
    return VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size=32), tokenizer)


@pytest.mark.parametrize("pooling", ["mean", "pooler", "gpo"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_timm_tower_embeds_and_survives_saving(architecture, pooling, tokenizer, tmp_path):
    model = make_model(tokenizer, architecture, vision_pooling=pooling).eval()
    pixels = torch.randn(2, 3, 32, 32)
    embeds = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))
    model.save_pretrained(tmp_path)
    loaded = VSEModel.from_pretrained(tmp_path).eval().get_image_features(pixels).pooler_output
    assert_same_vectors(loaded.detach(), embeds.detach())


def test_weights_of_a_local_file_are_those_of_the_tower(tokenizer, tmp_path):
    network = timm_model("resnet18")
    path = str(tmp_path / "weights.safetensors")
    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, path)
    tower = timm_tower("timm/resnet18.a1_in1k", path)
    pixels = torch.randn(2, 3, 64, 64)
    expected = network.eval().forward_features(pixels).mean((2, 3))
    torch.testing.assert_close(tower.eval()(pixels).pooler_output.flatten(1), expected, rtol=0.02, atol=0.02)
    deeper = str(tmp_path / "deeper.safetensors")
    save_file(timm_model("resnet34").state_dict(), deeper)
    for other, file, first in (("resnet50", path, "layer1.0.conv1.weight"), ("resnet18", deeper, "layer1.2.bn1.bias")):
        with pytest.raises(ValueError, match=f"does not hold the weights of timm/{other}: .* the first is '{first}'"):
            timm_tower(f"timm/{other}", file)
    with pytest.raises(ValueError, match="needs a timm image_tower"):
        timm_tower("microsoft/resnet-50", path)


def test_mean_pooling_is_the_global_pooling_of_the_network(tokenizer):
    model = make_model(tokenizer, "resnet18").eval()
    pixels = torch.randn(2, 3, 64, 64)
    states = model.vision_model(pixels)
    pooled = model.vision_pooling(states.last_hidden_state.flatten(2).transpose(1, 2), None, None)
    torch.testing.assert_close(pooled, states.pooler_output.flatten(1))


def test_training_from_pixels_frozen_then_unfrozen(tokenizer, tmp_path):
    data, processor = make_pairs(12), make_processor(tokenizer)
    model = make_model(tokenizer, "resnet18")
    for stage, options in {
        "frozen": {"freeze_image_tower": True},
        "unfrozen": {"freeze_batchnorm": True, "image_tower_learning_rate": 1e-5},
    }.items():
        before = {name: value.clone() for name, value in model.vision_model.state_dict().items()}
        args = VSETrainingArguments(
            output_dir=str(tmp_path / stage), num_train_epochs=1, per_device_train_batch_size=6, eval_strategy="epoch",
            save_strategy="epoch", disable_tqdm=True, **options,
        )  # fmt: skip
        trainer = VSETrainer(model, args, train_dataset=data, eval_dataset=data, processing_class=processor)
        trainer.train()
        assert trainer.state.best_metric > 0
        changed = {
            name for name, value in model.vision_model.state_dict().items() if not torch.equal(value, before[name])
        }
        assert not any("running" in name or "bn" in name for name in changed)
        assert bool(changed) == (stage == "unfrozen")
