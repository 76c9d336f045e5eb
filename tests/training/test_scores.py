"""The scores of a file reach the loss pair by pair, and a file of other data is refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_vse.data.schema import text_id
from hf_vse.embed.load import load_encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.training import trainer as trainer_module
from hf_vse.training.recipe import build_recipe
from hf_vse.training.scores import write_scores
from hf_vse.training.teachers import check_teachers, with_teachers
from tests.conftest import make_feature_pairs
from tests.training.test_teachers import teachers  # noqa: F401
from tests.training.test_trainer import arguments, losses, make_trainer
from tests.training.tiny_runs import tiny_values, write_features

IMAGES, CAPTIONS = 24, 5


def options(file, **more):
    return {"soft_targets": "scores", "teacher_scores": str(file), "soft_weight": 0.4, "max_steps": 2} | more


@pytest.fixture
def file(tmp_path):
    """Scores of more images than are trained on, in another order; those of each pair tell which it is."""
    split = make_feature_pairs(30).select(range(29, -1, -1))
    scores = torch.arange(30.0)[:, None] + torch.arange(150.0) / 1000
    write_scores(tmp_path / "scores.safetensors", split, scores)
    return tmp_path / "scores.safetensors"


@pytest.mark.parametrize("more", [{}, {"grad_cache_batch_size": 3, "captions_per_image": 2, "positives": "each"}])
def test_scores_of_a_step_are_those_of_its_pairs(more, file, tokenizer, tmp_path, monkeypatch):
    steps, execute_loss = [], trainer_module.execute_loss

    def spy(images, texts, soft=None, **given):
        steps.append((soft, given["image_ids"].tolist(), given["text_ids"].flatten().tolist()))
        return execute_loss(images, texts, soft=soft, **given)

    monkeypatch.setattr(trainer_module, "execute_loss", spy)
    data, given = make_feature_pairs(IMAGES), options(file, **more)
    train = with_teachers({"train": data}, arguments(tmp_path, **given))["train"]
    make_trainer(tmp_path, tokenizer, train, **given).train()
    columns = {  # the file begins with the last image
        text_id(caption): (29 - row) * CAPTIONS + number
        for row, captions in enumerate(data["captions"])
        for number, caption in enumerate(captions)
    }
    assert len(steps) == 2
    for soft, image_ids, text_ids in steps:
        found = soft.scores[soft.images, soft.texts.flatten()]
        expected = [[29 - image + columns[text] / 1000 for text in text_ids] for image in image_ids]
        torch.testing.assert_close(found, torch.tensor(expected))
        assert len(text_ids) == 8 * given.get("captions_per_image", 1) and soft.weight == 0.4


def test_written_scores_of_a_model_teach_what_the_model_teaches(teachers, tokenizer, tmp_path):  # noqa: F811
    data, encoder = make_feature_pairs(IMAGES), load_encoder(teachers[0])
    of_images = encode_images(encoder, data.select_columns("image_features").with_format("numpy")).embeds
    texts = [caption for captions in data["captions"] for caption in captions]
    write_scores(tmp_path / "scores", data, of_images @ encode_texts(encoder, texts).T)
    found = []
    by_model = {"soft_targets": "teacher", "teacher": teachers[0], "frozen_cache_dir": str(tmp_path / "cache")}
    for changed in (options(tmp_path / "scores"), options(None) | by_model, {"max_steps": 2}):
        given = changed | {"teacher_scores": changed.get("teacher_scores") if "teacher" not in changed else None}
        train = with_teachers({"train": data}, arguments(tmp_path, **given))["train"]
        trainer = make_trainer(tmp_path, tokenizer, train, **given)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] != pytest.approx(found[2], rel=1e-2)


def without(name):
    return lambda tensors: tensors.pop(name)


def changed(name, change):
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("text_ids"), "scores.safetensors cannot be read .*text_ids.*: write it with write_scores"),
        (changed("scores", lambda each: each.double()), "scores are torch.float64 .30, 150.: save a matrix"),
        (changed("image_ids", lambda each: each[1:]), "image_ids has to be 30 numbers of int64: write them anew"),
        (changed("text_to_image", lambda each: each + 1), "text_to_image names rows that scores do not have"),
        (changed("text_ids", lambda each: each + 1), "has no image 0 with the caption '.*', so it belongs to other"),
        (changed("image_ids", lambda each: each.flip(0)), "has no image 0 with the caption '.*', so it belongs to"),
        (changed("scores", lambda each: each - torch.inf), "120 captions have no finite score with their own image"),
    ],
)
def test_file_that_does_not_fit_is_refused(change, message, file, tmp_path):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=message):
        with_teachers({"train": make_feature_pairs(IMAGES)}, arguments(tmp_path, **options(file)))


def test_what_cannot_be_is_refused(file, tokenizer, tmp_path):
    for more, message in (
        ({"teacher_scores": None}, "soft_targets scores needs teacher_scores: give a safetensors file"),
        ({"feature_distance": 1}, "feature_distance needs the vectors of a teacher"),
        ({"negatives": "ring"}, "soft_targets are shares of all candidates at once"),
        ({}, "soft_targets scores: the training split has no vectors of a teacher or places in its scores"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, tokenizer, **options(file, **more))
    with pytest.raises(FileNotFoundError, match="teacher_scores .*none does not exist: give a safetensors file"):
        check_teachers(arguments(tmp_path, **options(tmp_path / "none")))
    args = arguments(tmp_path, **options(file))
    train = with_teachers({"train": make_feature_pairs(IMAGES)}, args)
    with pytest.raises(ValueError, match="the training split has a teacher already"):
        with_teachers(train, args)
    stream = {"train": make_feature_pairs(IMAGES).to_iterable_dataset()}
    with pytest.raises(ValueError, match="a stream has no rows to keep its vectors or scores for"):
        with_teachers(stream, args)
    with pytest.raises(ValueError, match="scores have shape .3, 4.; the split needs .24, 120."):
        write_scores(file, make_feature_pairs(IMAGES), torch.zeros(3, 4))
    data = write_features(tmp_path / "data")
    with pytest.raises(ValueError, match="teacher_scores does nothing: nothing is learned from it"):
        build_recipe(tiny_values(data, tmp_path / "run", teacher_scores=str(file)))
