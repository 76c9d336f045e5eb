"""What works on the models of this package works on one that starts as a dual encoder of transformers."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_vse.cli.command import bundled
from hf_vse.data.collator import VSECollator
from hf_vse.data.transforms import Augmentation
from hf_vse.embed.adapters.own_models import load_vse_model
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.model.configuration_vse import OF_DUAL_ENCODER
from hf_vse.training.frozen import cache_frozen_towers
from hf_vse.training.run import run_recipe
from tests.conftest import assert_same_vectors, make_pairs
from tests.embed.test_transformers_models import CASES, images, save
from tests.faults.killing import slow
from tests.training.dual_encoders import start, trained, trainer_of
from tests.training.test_adapt import recipe_from
from tests.training.test_trainer import arguments, losses

# The others draw random numbers in training, or normalise over a mini-batch.
WITHOUT_CHANCE = ("clip", "siglip", "siglip2", "blip", "flava")
HEADS = {"freeze_image_tower": True, "freeze_text_tower": True}


@pytest.fixture(scope="module")
def source(tokenizer, tmp_path_factory):
    """The folder of a tiny model of a family."""
    parent = tmp_path_factory.mktemp("sources")
    return cache(lambda family: save(parent / family, CASES[family], tokenizer))


def assert_same(found, expected, **tolerance):
    (of_found, tensors), (of_expected, others) = found, expected
    assert of_found == pytest.approx(of_expected, rel=1e-4)
    for name, tensor in others.items():
        torch.testing.assert_close(tensors[name], tensor, msg=name, **tolerance)


@pytest.mark.parametrize("family", CASES)
def test_every_family_trains_the_same_with_less_memory(family, source, tmp_path):
    plain = trained(tmp_path / "plain", source(family), max_steps=2)
    assert plain[0][0] != plain[0][1]
    if family in WITHOUT_CHANCE:
        options = {"grad_cache_batch_size": 3, "activation_checkpointing": True}
        cached = trained(tmp_path / "cached", source(family), max_steps=2, **options)
        assert_same(cached, plain, rtol=1e-4, atol=1e-6)


COMPILED = pytest.param({"torch_compile_backend": "aot_eager"}, marks=slow)


@pytest.mark.parametrize("options", [{"bf16": True}, COMPILED], ids=str)
def test_other_precision_and_compiled(options, source, tmp_path):
    plain = trained(tmp_path / "plain", source("clip"), max_steps=2)
    found = trained(tmp_path / "other", source("clip"), max_steps=2, **options)
    assert found[0] == pytest.approx(plain[0], rel=0.05 if "bf16" in options else 1e-4)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_resumed_to_the_bit(family, source, tmp_path):
    options = {"model": {"projection_type": "residual", "head_dropout": 0.2}, "mirror_images": True}
    options |= {
        "crop_min_scale": 0.3,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "optim": "adamw_torch",
    }
    whole = trained(tmp_path / "whole", source(family), **options)
    resumed = trained(tmp_path / "resumed", source(family), resume=str(tmp_path / "whole" / "checkpoint-1"), **options)
    assert len(whole[0]) == 4 and resumed[0] == whole[0]
    for name, tensor in whole[1].items():
        assert torch.equal(resumed[1][name], tensor), name


@pytest.mark.parametrize(("family", "head"), [("clip", "linear"), ("clip", "mlp"), ("siglip2", "residual")])
def test_heads_on_kept_vectors_train_as_on_the_towers(family, head, source, tmp_path):
    split, found = make_pairs(8, captions=2), {}
    for cached in (True, False):
        model, processor = start(source(family), projection_type=head, head_init="identity")
        options = HEADS | {"cache_frozen": cached, "frozen_cache_dir": str(tmp_path / "cache")}
        args = arguments(tmp_path / "run", crop_min_scale=1.0, mirror_images=False, **options)
        read = cache_frozen_towers(model, processor, {"train": split}, args)["train"]
        assert ({"image_features", "caption_features"} <= set(read.column_names)) == cached
        trainer = trainer_of(tmp_path / "run", model, processor, read, **options)
        trainer.train()
        names = {name for name, each in model.named_parameters() if each.requires_grad}
        assert names and not any(name.startswith("dual_encoder.") for name in names)
        metrics = [evaluate_retrieval(model, processor, each, progress=False) for each in (read, split)]
        assert metrics[0] == pytest.approx(metrics[1])
        found[cached] = losses(trainer)
    assert found[True] == pytest.approx(found[False], rel=1e-4) and len(set(found[True])) == 4


def test_images_in_their_own_aspect_ratio_are_cropped_at_random(source, tmp_path):
    """There is no fixed size to bring a crop to: the processor brings it to the size that it gives to any image."""
    model, processor = start(source("siglip2"))
    cropping, plain = VSECollator(processor, Augmentation(0.3, True)), VSECollator(processor)
    rngs = [np.random.default_rng(row) for row in range(3)]
    expected, found = dict(plain.image_inputs(images(), rngs)), dict(cropping.image_inputs(images(), rngs))
    assert {name: each.shape for name, each in found.items()} == {name: each.shape for name, each in expected.items()}
    assert not torch.equal(found["pixel_values"], expected["pixel_values"])
    whole, mirrored = images()[0].crop((8, 4, 24, 40)), Augmentation(1.0, False)
    assert torch.equal(processor(images=[mirrored(whole, None, rngs[0])])["pixel_values"],
                       processor(images=[whole])["pixel_values"])  # fmt: skip
    options = HEADS | {"cached_crops": 1, "frozen_cache_dir": str(tmp_path / "cache"), "crop_min_scale": 0.3}
    args = arguments(tmp_path / "run", **options)
    read = cache_frozen_towers(model, processor, {"train": make_pairs(4)}, args)["train"]
    assert not np.allclose(read["image_features"][:], read["image_features_1"][:])


@pytest.fixture(scope="module")
def run_of_stages(source, tmp_path_factory):
    """Heads on frozen towers, then everything with another head and another objective."""
    folder = tmp_path_factory.mktemp("run")
    stages = [
        {"name": "heads", "projection_type": "linear", **HEADS},
        {"name": "all", "projection_type": "residual", "loss_type": "nce", "learning_rate": 1e-3},
    ]
    run_recipe(recipe_from(source("siglip"), folder / "run", stages=stages, eval_strategy="no"))
    return folder / "run"


def test_stages_change_head_and_objective(run_of_stages, source):
    theirs = {f"dual_encoder.{name}": each for name, each in load_file(source("siglip") / "model.safetensors").items()}
    heads, end = (load_file(each / "model.safetensors") for each in (run_of_stages / "stages/heads", run_of_stages))
    towers = [name for name in theirs if name in heads and "logit" not in name]
    assert len(towers) > 40 and all(torch.equal(heads[name], theirs[name]) for name in towers)
    assert not torch.equal(heads["visual_projection.weight"], torch.eye(16)) and "logit_bias" in heads
    assert any(not torch.equal(end[name], theirs[name]) for name in towers)
    assert "visual_head.expand.weight" in end and not {"logit_scale", "visual_projection.weight"} & end.keys()
    config = json.loads((run_of_stages / "config.json").read_text())
    assert (config["projection_type"], config["loss_type"], config["text_pooling"]) == ("residual", "nce", "pooler")


def test_page_reads_sentences_as_the_model_was_trained_to(run_of_stages, monkeypatch):
    """The page asks for padding to the longest sentence, and the code beside the weights knows better."""
    monkeypatch.syspath_prepend(str(bundled("spaces_demo")))
    from encoder import PublishedModel

    page, encoder = PublishedModel(str(run_of_stages)), VSEEncoder.from_pretrained(run_of_stages, "cpu")
    texts = ["Red", "a small Blue circle above"]
    assert_same_vectors(page.encode_sentences(texts), encoder.query(texts))
    pixels = encoder.prepare_images(images())
    assert_same_vectors(page.encode_images(images()), encoder.encode_images(pixels).detach())


def test_transformers_pipeline_that_would_pad_wrongly_is_not_offered(run_of_stages, source, tmp_path):
    of_siglip = json.loads((run_of_stages / "config.json").read_text())["auto_map"]
    start(source("clip"))[0].save_pretrained(tmp_path)
    of_clip = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert of_clip.keys() - of_siglip.keys() == {"AutoModelForZeroShotImageClassification"}


def test_what_would_learn_nothing_is_refused_before_towers_are_run(source, tmp_path):
    for family in ("clip", "blip"):
        recipe = recipe_from(source(family), tmp_path / "run", stages=[{"name": "heads"} | HEADS])
        with pytest.raises(ValueError, match="both towers are frozen and there is no head, .*give projection_type"):
            run_recipe(recipe)
        assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"vision_pooling": "mean"},
            "^vision_pooling 'mean' does nothing: the clip model .*decides it: leave it",
        ),
        ({"stages": [{"name": "a"}, {"name": "b", "text_pooling": "gpo"}]}, "^text_pooling 'gpo' does nothing"),
        ({"vision_hidden_size": 8}, "^vision_hidden_size 8 does nothing"),
        ({"projection_dim": 8}, "projection_dim 8 does nothing"),
        ({"max_length": 8}, "max_length does nothing: the tokenizer is that of init_from"),
        ({"image_tower": "timm/resnet50"}, "image_tower does nothing: the towers are those of init_from"),
        ({"vision_config": {"model_type": "vit"}}, "vision_config does nothing: the image tower is that of"),
        ({"text_config": {"word_dim": 8}}, "text_config does nothing: the text tower is that of"),
        ({"resize": 40}, "resize does nothing: features, init_from or image_tower decide"),
    ],
    ids=str,
)
def test_what_the_dual_encoder_decides_is_no_key(given, message, source, tmp_path):
    with pytest.raises(ValueError, match=message) as refused:
        run_recipe(recipe_from(source("clip"), tmp_path / "run", **{"stages": [{"name": "a"}]} | given))
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_saved_dual_encoder_keeps_its_fields_too(run_of_stages):
    for name, value in {"vision_pooling": "mean", "vision_hidden_size": 3, "projection_dim": 8}.items():
        assert name in OF_DUAL_ENCODER
        with pytest.raises(ValueError, match=f"^{name} {value!r} does nothing: the siglip model"):
            load_vse_model(run_of_stages, "cpu", **{name: value})
    assert load_vse_model(run_of_stages, "cpu", projection_dim=16, vision_pooling="pooler")
