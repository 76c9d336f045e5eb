"""Teachers are run once, found again, and their scores reach the loss pair by pair."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from hf_vse.data.pairs import PairDataset
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.files import read_json
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training import teachers as teachers_module
from hf_vse.training import trainer as trainer_module
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe
from hf_vse.training.teachers import with_teachers
from tests.conftest import make_feature_pairs
from tests.training.test_trainer import arguments, make_model, make_trainer
from tests.training.tiny_runs import tiny_values, write_features

SOFT = {"soft_targets": "teacher", "soft_weight": 0.4, "soft_temperature": 0.2}


@pytest.fixture
def teachers(tokenizer, tmp_path) -> list[str]:
    """Two models of different width."""
    folders = []
    for number, width in enumerate((5, 7)):
        folders.append(str(tmp_path / f"teacher{number}"))
        make_model(tokenizer, projection_dim=width).save_pretrained(folders[-1])
        VSEProcessor(tokenizer=tokenizer).save_pretrained(folders[-1])
    return folders


def options(tmp_path, teachers, **more):
    return SOFT | {"teacher": teachers, "frozen_cache_dir": str(tmp_path / "cache")} | more


def test_product_of_the_columns_is_the_mean_of_the_cosines(teachers, tmp_path):
    data = make_feature_pairs(12)
    train = with_teachers({"train": data}, arguments(tmp_path, **options(tmp_path, teachers)))["train"]
    pairs = PairDataset(train)
    places = [(row, caption) for row in (0, 7, 11) for caption in (0, 3)]
    items = [pairs[(row, caption, 0)] for row, caption in places]
    images, texts = (np.stack([item[f"teacher_{kind}"] for item in items]) for kind in ("images", "captions"))
    scores = []
    for name in teachers:
        encoder = load_encoder(name)
        of_images = encode_images(encoder, data.select_columns("image_features").with_format("numpy")).embeds
        of_texts = encode_texts(encoder, [data["captions"][row][caption] for row, caption in places])
        scores.append(of_images[[row for row, _ in places]] @ of_texts.T)
    torch.testing.assert_close(torch.from_numpy(images @ texts.T), (scores[0] + scores[1]) / 2)
    assert not torch.allclose(scores[0], scores[1], atol=0.01)


def test_teacher_is_run_once_and_again_only_for_what_is_new(teachers, tokenizer, tmp_path, monkeypatch):
    seen, encode = [], teachers_module.encode_texts
    monkeypatch.setattr(teachers_module, "encode_texts", lambda *given: seen.append(len(given[1])) or encode(*given))
    args, data = arguments(tmp_path, **options(tmp_path, teachers[:1])), make_feature_pairs(12)
    first = with_teachers({"train": data}, args)["train"]
    again = with_teachers({"train": data}, args)["train"]
    assert seen == [60] and first.column_names == again.column_names
    for name in first.column_names[-2:]:
        assert first.data.column(name).equals(again.data.column(name))
    with_teachers({"train": make_feature_pairs(11)}, args)
    torch.manual_seed(1)
    model = VSEModel.from_pretrained(teachers[0])
    torch.nn.init.normal_(model.visual_projection.weight)
    model.save_pretrained(teachers[0])
    changed = with_teachers({"train": data}, args)["train"]
    assert seen == [60, 55, 60] and changed.column_names != first.column_names


@pytest.fixture
def steps(monkeypatch):
    found, execute_loss = [], trainer_module.execute_loss

    def spy(images, texts, soft=None, **given):
        found.append((soft, given["image_ids"], given["text_ids"]))
        return execute_loss(images, texts, soft=soft, **given)

    monkeypatch.setattr(trainer_module, "execute_loss", spy)
    return found


@pytest.mark.parametrize("more", [{}, {"grad_cache_batch_size": 3, "captions_per_image": 2, "positives": "each"}])
def test_soft_targets_of_a_step_are_those_of_its_pairs(more, steps, teachers, tokenizer, tmp_path):
    data, given = make_feature_pairs(24), options(tmp_path, teachers, max_steps=2, **more)
    train = with_teachers({"train": data}, arguments(tmp_path, **given))["train"]
    make_trainer(tmp_path, tokenizer, train, **given).train()
    plain = make_trainer(tmp_path, tokenizer, data, max_steps=2, **more)
    plain.train()
    pairs, text_ids = PairDataset(train), {}
    for row, captions in enumerate(pairs.captions):
        for number in range(len(captions)):
            item = pairs[(row, number, 0)]
            key = plain.data_collator([item])["text_ids"].item()
            text_ids[item["image_id"], key] = item["teacher_images"], item["teacher_captions"]
    assert len(steps) == 4 and steps[2][0] is None
    for soft, image_ids, ids in steps[:2]:
        assert (soft.weight, soft.temperature) == (0.4, 0.2)
        texts = soft.texts.view(len(image_ids), -1, 12)
        for place, image_id in enumerate(image_ids.tolist()):
            for each, found in zip(ids.view(len(image_ids), -1)[place].tolist(), texts[place], strict=True):
                expected = text_ids[image_id, each]
                assert np.array_equal(expected[0], soft.images[place]) and np.array_equal(expected[1], found)


def test_captions_are_their_own_teacher(steps, tokenizer, tmp_path):
    data = make_feature_pairs(24)
    columns = [[[float(row), number, 1.0] for number in range(5)] for row in range(24)]
    train = data.add_column("caption_features", columns)
    model = make_model(tokenizer, vision=None)
    given = {"soft_targets": "captions", "freeze_text_tower": True, "max_steps": 1}
    trainer = make_trainer(tmp_path, tokenizer, data, model)
    inputs = {"text_features": torch.tensor(columns).float()[:8, :2], "image_features": torch.zeros(8, 1)}
    soft = teachers_module.soft_targets_of(inputs, arguments(tmp_path, **given))
    expected = normalize(inputs["text_features"], dim=-1)
    assert torch.equal(soft.texts, expected)
    torch.testing.assert_close(soft.images, normalize(expected.sum(dim=1), dim=-1))
    flat = {"text_features": inputs["text_features"][:, 0]}
    soft = teachers_module.soft_targets_of(flat, arguments(tmp_path, **given))
    assert soft.images is soft.texts and torch.equal(soft.texts, expected[:, 0])
    with pytest.raises(ValueError, match="needs kept outputs of the frozen text tower, which here is run"):
        make_trainer(tmp_path, tokenizer, data, **given)
    assert trainer.args.soft_targets == "none" and "caption_features" in train.column_names


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"soft_targets": "captions"},
            "soft_targets captions takes what a frozen text tower finds alike: give freeze",
        ),
        ({"soft_targets": "teacher"}, "soft_targets teacher needs a teacher: give teacher, a folder or a Hub id"),
        ({"soft_targets": "teachers"}, "soft_targets is one of none, captions, teacher, scores, got 'teachers'"),
        ({"soft_weight": 1.5}, "soft_weight is a number from 0 to 1"),
        ({"soft_targets": "teacher", "soft_weight": 0, "teacher": "a/b"}, "soft_weight=0 leaves soft_targets without"),
        ({"soft_temperature": 0}, "soft_temperature is a number above 0"),
    ],
)
def test_soft_targets_that_cannot_be_are_refused(given, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **given)


def test_teacher_may_be_a_class_of_ones_own(tmp_path):
    (tmp_path / "own.py").write_text(
        """import numpy as np
from hf_vse.embed.encoder import Encoder

class Own(Encoder):
    reads_features = True

    def encode_images(self, images):
        return np.asarray([each[:3] for each in images])

    def encode_texts(self, texts):
        return np.asarray([[len(text), 1.0, 2.0] for text in texts])
"""
    )
    data = make_feature_pairs(4)
    args = arguments(tmp_path, **options(tmp_path, f"{tmp_path}/own.py:Own"))
    item = PairDataset(with_teachers({"train": data}, args)["train"])[(2, 1, 0)]
    expected = normalize(torch.tensor(data["image_features"][2])[:3], dim=0)
    torch.testing.assert_close(torch.from_numpy(item["teacher_images"]), expected)
    expected = normalize(torch.tensor([len(data["captions"][2][1]), 1.0, 2.0]), dim=0)
    torch.testing.assert_close(torch.from_numpy(item["teacher_captions"]), expected)


def test_teacher_that_does_not_fit_is_refused(teachers, tokenizer, tiny_resnet, tmp_path):
    with pytest.raises(ValueError, match="is named twice: name every teacher once"):
        with_teachers(
            {"train": make_feature_pairs(4)}, arguments(tmp_path, **options(tmp_path, [teachers[0], teachers[0]]))
        )
    with pytest.raises(ValueError, match="the training split has no vectors of a teacher"):
        make_trainer(tmp_path, tokenizer, **options(tmp_path, teachers))
    with pytest.raises(ValueError, match="soft_targets need an objective with a temperature, loss_type 'hinge_sum'"):
        model = make_model(tokenizer, loss_type="hinge_sum")
        make_trainer(tmp_path, tokenizer, model=model, **options(tmp_path, teachers))


def test_recipe_learns_from_an_earlier_run_and_from_captions(tmp_path):
    data = write_features(tmp_path / "data")
    plain = {"stages": [{"name": "heads", "freeze_text_tower": True}]}
    run_recipe(build_recipe(tiny_values(data, tmp_path / "first", **plain)))
    first = str(tmp_path / "first")
    taught = {"soft_targets": "teacher", "teacher": first, "soft_weight": 0.5}
    for name, more in (("taught", taught), ("captions", {"soft_targets": "captions"})):
        run_recipe(build_recipe(tiny_values(data, tmp_path / name, **plain | more)))
    logs = [read_json(tmp_path / name / "stages/heads/stage.json")["log"] for name in ("first", "taught", "captions")]
    assert len({log[-1]["train_loss"] for log in logs}) == 3
    for key, given in (("soft_weight", 0.5), ("soft_temperature", 0.2)):
        with pytest.raises(ValueError, match=f"{key} does nothing: there are no soft targets: give soft_targets"):
            build_recipe(tiny_values(data, tmp_path / "none", **{key: given}))
    with pytest.raises(ValueError, match="^teacher no/such/folder"):
        run_recipe(
            build_recipe(tiny_values(data, tmp_path / "none", **plain | taught | {"teacher": "no/such/folder"}))
        )
    with pytest.raises(ValueError, match="teacher does nothing: nothing is learned from it: give soft_targets: teach"):
        build_recipe(tiny_values(data, tmp_path / "none", teacher="org/model"))
