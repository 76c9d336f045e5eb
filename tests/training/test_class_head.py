"""A classifier of entities trains beside the contrastive loss, is not saved, and goes on to the bit."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hf_vse.data.schema import GROUP_ID
from hf_vse.objectives.classes import margin_cosine_loss
from hf_vse.training.class_head import CLASSES, ClassHead, check_class_head
from hf_vse.training.recipe import build_recipe
from tests.conftest import make_feature_pairs
from tests.processes import in_processes
from tests.training.test_trainer import arguments, losses, make_model, make_trainer, weights
from tests.training.tiny_runs import tiny_values, write_features

IDS = [10, 20, 30, 40]


def grouped(images=24):
    """Pairs of images in groups of three, the last three in none."""
    groups = [100 + row // 3 if row < images - 3 else None for row in range(images)]
    return make_feature_pairs(images).add_column(GROUP_ID, groups)


def trainer_of(folder, tokenizer, **options):
    return make_trainer(folder, tokenizer, grouped(), **{"class_weight": 0.5, "class_samples": 3} | options)


def test_the_loss_of_a_step_is_the_contrast_and_the_classifier(tokenizer, tmp_path):
    trainer = trainer_of(tmp_path, tokenizer, class_samples=100, diagnostics_steps=0)
    batch = next(iter(trainer.get_train_dataloader()))
    both = trainer.compute_loss(trainer.model, dict(batch))
    head, trainer.class_head = trainer.class_head, ClassHead(trainer.args, torch.empty(0, dtype=torch.int64), 16)
    alone = trainer.compute_loss(trainer.model, dict(batch))
    given = {name: each for name, each in batch.items() if name not in ("image_ids", "text_ids")}
    images = trainer.model(**given, return_logits=False).image_embeds
    own = batch["image_ids"] - 100
    known = (own >= 0) & (own < 7)  # seven groups of three; the last images are in none
    assert 0 < known.sum() and len(head.ids) == 7
    rows = margin_cosine_loss(images[known], head.vectors, own[known], margin=0.2, temperature=0.05)
    torch.testing.assert_close(both, alone + 0.5 * rows.mean())


def test_training_teaches_the_classes_and_saves_none_of_them(tokenizer, tmp_path):
    options = {"max_steps": 30, "class_samples": 100, "learning_rate": 0.01, "class_learning_rate": 0.03}
    trainer = trainer_of(tmp_path, tokenizer, class_weight=1.0, **options)
    before = trainer.class_head.vectors.detach().clone()
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    head, names = trainer.class_head, load_file(tmp_path / "saved" / "model.safetensors").keys()
    assert names == weights(make_model(tokenizer)).keys() and not (tmp_path / "saved" / CLASSES).exists()
    assert losses(trainer)[-1] < 0.7 * losses(trainer)[0] and (head.vectors - before).abs().min() > 0
    features = torch.tensor(grouped().with_format("numpy")["image_features"][:21])
    images = trainer.model(image_features=features).image_embeds
    found = (images @ F.normalize(head.vectors, dim=1).T).argmax(dim=1)
    assert (found == torch.arange(21) // 3).float().mean() > 0.8


@pytest.mark.parametrize("options", [{}, {"grad_cache_batch_size": 3, "gradient_accumulation_steps": 2}])
def test_a_resumed_run_goes_on_to_the_bit(options, tokenizer, tmp_path):
    options |= {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "save_total_limit": None}
    whole = trainer_of(tmp_path / "whole", tokenizer, **options)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-4")
    resumed = trainer_of(tmp_path / "resumed", tokenizer, **options)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert losses(resumed) == losses(whole)
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    ends = [load_file(tmp_path / run / "checkpoint-8" / CLASSES) for run in ("whole", "resumed")]
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items()) and ends[0]["step"] == 8
    assert not torch.equal(ends[0]["vectors"], load_file(f"{checkpoint}/{CLASSES}")["vectors"])
    for trainer, says in (
        (trainer_of(tmp_path, tokenizer, max_steps=8, class_weight=0.0), "written with class_weight, so it cannot be"),
        (make_trainer(tmp_path, tokenizer, grouped(18), max_steps=8, class_weight=0.5), "vectors of other classes"),
    ):
        with pytest.raises(ValueError, match=says):
            trainer.train(resume_from_checkpoint=checkpoint)


def test_a_small_batch_in_parts_is_the_whole_one(tokenizer, tmp_path):
    """With cached gradients the loss and the class vectors are those of the batch at once."""
    runs = []
    for size in (None, 3):
        trainer = trainer_of(tmp_path, tokenizer, max_steps=3, grad_cache_batch_size=size)
        trainer.train()
        runs.append((losses(trainer), trainer.class_head.vectors.detach()))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=1e-5)
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=1e-4, atol=1e-5)


def step_of(head, images, image_ids):
    images = images.clone().requires_grad_()
    head.loss(images, image_ids, step=0).backward()
    head.on_step_end(head.args, None, None, optimizer=SimpleNamespace(param_groups=[{"lr": 1.0, "initial_lr": 1.0}]))
    return images.grad


def in_parts(rank, folder, images, image_ids, expected):
    args = arguments(folder, class_weight=0.5, class_samples=2)
    head = ClassHead(args, torch.tensor(IDS), 8)
    part = slice(0, 5) if rank == 0 else slice(5, None)
    gradient = step_of(head, images[part], image_ids[part])
    torch.testing.assert_close(gradient / 2, expected[0][part])  # processes average their gradients
    torch.testing.assert_close(head.vectors.detach(), expected[1])


def test_two_processes_take_the_step_of_one(tmp_path):
    torch.manual_seed(0)
    images, image_ids = F.normalize(torch.randn(8, 8), dim=1), torch.tensor([10, 20, 7, 10, 20, 40, 99, 10])
    head = ClassHead(arguments(tmp_path, class_weight=0.5, class_samples=2), torch.tensor(IDS), 8)
    before = head.vectors.detach().clone()
    expected = step_of(head, images, image_ids), head.vectors.detach()
    assert expected[0][[2, 6]].abs().max() == 0 and expected[0].abs().max() > 1e-3  # 7 and 99 are no classes
    assert (expected[1] != before).any(dim=1).sum() >= 3
    in_processes(2, in_parts, str(tmp_path), images, image_ids, expected)


def test_what_a_classifier_does_not_go_with_is_refused_in_one_line(tokenizer, tmp_path):
    for options, says in (
        ({"feature_mix": 0.2}, "a mixture shows two things"),
        ({"mask_same_image": False}, "images of one class would be negatives"),
    ):
        with pytest.raises(ValueError, match=says):
            check_class_head(arguments(tmp_path, class_weight=1.0, **options))
    with pytest.raises(ValueError, match="has 0 groups of images to tell apart"):
        make_trainer(tmp_path, tokenizer, make_feature_pairs(24), class_weight=1.0)
    with pytest.raises(ValueError, match="which a stream does not"):
        ClassHead.of(arguments(tmp_path, class_weight=1.0), make_feature_pairs(4).to_iterable_dataset(), 8)
    values = tiny_values(write_features(tmp_path / "data"), tmp_path / "run")
    for more, says in (
        ({"class_weight": 0.5}, "class_weight needs labels: name their column as group_column"),
        ({"class_weight": 0.5, "group_column": "entity", "near_duplicates": "vectors"}, "give near_duplicates: none"),
        ({"class_margin": 0.5}, "class_margin does nothing: there is no classifier: give class_weight"),
        ({"class_weight": -1}, "class_weight is a number"),
    ):
        with pytest.raises(ValueError, match=says):
            build_recipe(values | more)
