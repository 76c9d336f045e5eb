"""Foils from the field to the loss of a step, and through the store of a frozen text tower."""

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset, List, Value

from hf_vse.data.long_captions import Pieces
from hf_vse.data.pairs import Pair, PairDataset
from hf_vse.data.schema import text_id
from hf_vse.files import read_json
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.objectives.captions import Candidates
from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.training.foils import with_foil_column
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe
from tests.conftest import make_feature_pairs
from tests.training.test_trainer import arguments, losses, make_trainer
from tests.training.tiny_runs import captions_with_foils, tiny_values, write_features

FOILS = {"extra_negatives": "foils"}


def split_of(images: int = 24, captions_of=captions_with_foils) -> Dataset:
    captions = [captions_of(index) for index in range(images)]
    return make_feature_pairs(images).remove_columns("captions").add_column("captions", captions)


@pytest.fixture(scope="module")
def foil_of(tmp_path_factory) -> dict[tuple[int, str], str]:
    """Of each image and caption the foil; the caption itself where there is none."""
    split = with_foil_column(split_of(), arguments(tmp_path_factory.mktemp("args"), **FOILS))
    rows = zip(split["captions"], split["foils"], strict=True)
    return {(row, each): foil for row, pair in enumerate(rows) for each, foil in zip(*pair, strict=True)}


def test_foils_are_of_their_caption_and_a_caption_without_one_has_itself(foil_of, tmp_path, caplog):
    same = [caption for (_, caption), foil in foil_of.items() if foil == caption]
    assert len(same) > 15 and {len(caption.split()) for caption in same} == {2}
    split = split_of()
    with caplog.at_level(logging.INFO, "hf_vse"):
        again = with_foil_column(split, arguments(tmp_path, seed=7, **FOILS))
    pairs = [zip(*row, strict=True) for row in zip(split["captions"], again["foils"], strict=True)]
    different = sum(caption != foil for row in pairs for caption, foil in row)
    assert f"{different} of 120 captions have a foil" in caplog.text and 60 < different < 80
    assert again["foils"][3] == [foil_of[3, caption] for caption in split["captions"][3]]
    assert with_foil_column(again, arguments(tmp_path, **FOILS)) is again
    assert with_foil_column(split, arguments(tmp_path)) is split


@pytest.mark.parametrize("captions", [1, 3])
def test_loss_of_a_step_has_the_foils_of_its_captions(captions, foil_of, tokenizer, tmp_path):
    several = {"captions_per_image": captions, "positives": "each"} if captions > 1 else {}
    trainer = make_trainer(tmp_path, tokenizer, split_of(), **FOILS, **several)
    trainer.current_gradient_accumulation_steps = 1  # as while training
    batch, model = next(iter(trainer.get_train_dataloader())), trainer.model
    words = {text_id(caption): caption for _, caption in foil_of}
    rows = batch["image_ids"].tolist()
    drawn = [[words[each] for each in of[:captions]] for of in batch["text_ids"].tolist()]
    foils = [foil_of[row, caption] for row, of in zip(rows, drawn, strict=True) for caption in of]
    flat = [caption for of in drawn for caption in of]
    foils = [foil for foil, caption in zip(foils, flat, strict=True) if foil != caption]
    assert 0 < len(foils) < 8 * captions

    def embeds_of(texts: list[str]) -> torch.Tensor:
        inputs = {"image_features": batch["image_features"], **trainer.processing_class(text=texts)}
        return model(**inputs, return_logits=False)

    images = embeds_of(flat).image_embeds
    texts = embeds_of(flat).text_embeds.view(8, captions, -1).squeeze(1)
    ids = torch.tensor([[text_id(each) for each in of] for of in drawn]).squeeze(1)
    given = {"image_ids": batch["image_ids"], "text_ids": ids}
    reference = partial(gathered_contrastive_loss, images, texts, positives=several.get("positives", "one"))
    for masked in (True, False):
        trainer.args.mask_equal_captions = masked
        of_step = given if masked else {"image_ids": given["image_ids"]}
        of_foils = torch.tensor([[text_id(foil)] for foil in foils])
        expected = reference(foils=Candidates(embeds_of(foils).text_embeds, of_foils), **of_step)
        gradients = torch.autograd.grad(expected, [*model.parameters()], retain_graph=True, allow_unused=True)
        for size in (None, 3):
            trainer.args.grad_cache_batch_size = size
            model.zero_grad()
            found = trainer.compute_loss(model, batch)
            found.backward()
            torch.testing.assert_close(found, expected)
            assert found > reference(**of_step) + 0.1
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                if gradient is not None and parameter.requires_grad:
                    torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
    assert trainer.alarm.options["foils"] == len(foils)


def test_queue_keeps_captions_alone(foil_of, tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, split_of(), max_steps=6, queue_size=40, **FOILS)
    trainer.train()
    past = trainer.queue.past().texts
    assert len(past.ids) == 40 and len(losses(trainer)) == 6
    assert {*past.ids[:, 1].tolist()} <= {text_id(caption) for _, caption in foil_of}


def test_captions_that_are_read_in_pieces_have_no_foil(tokenizer, tmp_path):
    split = with_foil_column(split_of(), arguments(tmp_path, **FOILS))
    long, short = split["captions"][0][:2]
    pairs = PairDataset(split, {long: ["a red circle above", "a blue star"]})
    caption, foil = pairs[Pair(0, 0, 5)]["texts"]
    assert caption == foil and caption["whole_caption"] == long != caption["caption"]
    caption, foil = pairs[Pair(0, 1, 5)]["texts"]
    assert caption["caption"] == short and foil["caption"] == foil["whole_caption"] == split["foils"][0][1] != short
    assert Pieces(VSEProcessor(tokenizer=tokenizer)).of_long(split["captions"]) == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"negatives": "ring"}, "extra_negatives foils needs all images and texts at once: give negatives: gather"),
        (
            {"word_dropout": 0.1},
            "word_dropout=0.1 may leave out the word that makes a foil false: give word_dropout: 0",
        ),
        ({"set_dropout": 0.2}, "set_dropout=0.2 may leave out the word that makes a foil false: give set_dropout: 0"),
        ({"soft_targets": "captions"}, "soft_targets captions and extra_negatives foils: no teacher scores foils"),
        ({"feature_mix": 0.5}, "feature_mix and extra_negatives: mixtures .* a foil false of a half: give one"),
        ({"train": make_feature_pairs(24)}, "the rules, which know English, find no foil of 120 captions: give extra"),
        ({"train": split_of().to_iterable_dataset()}, "a stream does not have: give streaming: false, or extra"),
    ],
)
def test_what_cannot_be_is_refused(more, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        make_trainer(tmp_path, tokenizer, **FOILS | {"train": split_of(), "max_steps": 2} | more)
    assert "\n" not in str(caught.value)


def test_kept_captions_without_kept_foils_are_refused(tokenizer, tmp_path):
    kept = [[[0.0] * 4] * 5] * 24
    split = split_of().add_column("caption_features", kept, feature=List(List(Value("float32"), length=4)))
    with pytest.raises(ValueError, match="caption_features are kept without foil_features"):
        make_trainer(tmp_path, tokenizer, split, **FOILS)


def test_run_on_a_frozen_text_tower_keeps_foils_too(tmp_path):
    data = write_features(tmp_path / "data", captions_of=captions_with_foils)
    for name, more in (("cached", {}), ("run in every step", {"cache_frozen": False})):
        values = {"freeze_text_tower": True, "logging_steps": 1, "stages": [{"name": "train"}]}
        run_recipe(build_recipe(tiny_values(data, tmp_path / name, **values | FOILS | more)))
    kinds = [folder.name.split("-")[0] for folder in sorted((tmp_path / "cache").iterdir())]
    assert kinds == ["captions", "foils"]
    assert logged(tmp_path / "cached") == pytest.approx(logged(tmp_path / "run in every step"), rel=1e-3)


def logged(output: Path) -> list[float]:
    return [each["loss"] for each in read_json(output / "stages/train/stage.json")["log"] if "loss" in each]
