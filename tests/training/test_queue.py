"""The queue holds what was embedded in the last steps, and goes on after an interruption to the bit."""

import pytest
import torch
from safetensors.torch import load_file

from hf_vse.objectives.past import Candidates
from hf_vse.training import trainer as trainer_module
from hf_vse.training.queue import QUEUE, PairQueue
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe
from tests.conftest import make_feature_pairs
from tests.processes import in_processes
from tests.training.test_trainer import losses, make_trainer, weights
from tests.training.tiny_runs import tiny_values, write_features


@pytest.fixture
def steps(monkeypatch):
    """Of every step the embeddings, ids and past candidates that the loss got."""
    found, execute_loss = [], trainer_module.execute_loss

    def spy(images, texts, past=None, **options):
        ids = torch.stack([options["image_ids"], options["text_ids"]], dim=1)
        kept = None if past is None else [each.clone() for side in past for each in side]
        found.append((images.detach().clone(), texts.detach().clone(), ids, kept))
        return execute_loss(images, texts, past=past, **options)

    monkeypatch.setattr(trainer_module, "execute_loss", spy)
    return found


def as_rows(*columns: torch.Tensor) -> torch.Tensor:
    """Rows in an order of their own."""
    rows = torch.cat([each.double() for each in columns], dim=1)
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("options", [{}, {"grad_cache_batch_size": 3, "gradient_accumulation_steps": 2}])
def test_queue_holds_the_last_pairs_of_the_steps_before(options, steps, tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, queue_size=20, queue_start_epochs=0.2, max_steps=7, **options)
    trainer.train()
    per_epoch = len(trainer.get_train_dataloader())
    begun = [step for step in range(len(steps)) if step // options.get("gradient_accumulation_steps", 1) * options.get(
        "gradient_accumulation_steps", 1) / per_epoch >= 0.2]  # fmt: skip
    assert begun[0] > 0 and [step for step, of in enumerate(steps) if of[3] is not None] == begun[1:]
    for step in begun[1:]:
        earlier = zip(*(steps[each][:3] for each in begun if each < step), strict=True)
        images, texts, ids = (torch.cat(each)[-20:] for each in earlier)
        past = steps[step][3]
        assert torch.equal(as_rows(past[0], past[1]), as_rows(images, ids))
        assert torch.equal(as_rows(past[2], past[3]), as_rows(texts, ids))
    assert len(steps[-1][3][0]) == 20


def test_queue_changes_the_training_only_once_it_begins(tokenizer, tmp_path):
    plain = make_trainer(tmp_path, tokenizer, max_steps=6)
    plain.train()
    queued = make_trainer(tmp_path, tokenizer, max_steps=6, queue_size=20, queue_start_epochs=0.15)
    queued.train()
    assert losses(queued)[:4] == losses(plain)[:4] and losses(queued)[4] > losses(plain)[4]


def test_resumed_queue_is_that_of_an_uninterrupted_run(tokenizer, tmp_path):
    options = {"max_steps": 10, "save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
    options |= {"queue_size": 50, "train": make_feature_pairs(24)}
    whole = make_trainer(tmp_path / "whole", tokenizer, **options)
    whole.train()
    checkpoint = str(tmp_path / "whole" / "checkpoint-5")
    resumed = make_trainer(tmp_path / "resumed", tokenizer, **options)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert losses(resumed) == losses(whole)
    for name, tensor in weights(whole.model).items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    of_both = [load_file(tmp_path / run / "checkpoint-10" / QUEUE) for run in ("whole", "resumed")]
    kept = [len(state["texts.embeds"]) for state in (load_file(f"{checkpoint}/{QUEUE}"), of_both[0])]
    assert kept == [40, 50]
    assert all(torch.equal(tensor, of_both[1][name]) for name, tensor in of_both[0].items())
    with pytest.raises(ValueError, match="written with queue_size=50, so it cannot be resumed with queue_size=0"):
        make_trainer(tmp_path, tokenizer, max_steps=10).train(resume_from_checkpoint=checkpoint)
    for name, value, more in (
        ("captions_per_image", 2, {"captions_per_image": 2, "positives": "each"}),
        ("extra_negatives", "same_modality", {"extra_negatives": "same_modality"}),
        ("mask_equal_captions", False, {"mask_equal_captions": False}),
    ):
        trainer = make_trainer(tmp_path, tokenizer, **options | more)
        with pytest.raises(
            ValueError, match=f"with {name}=(1|none|True), so it cannot be resumed with {name}={value}: "
        ):
            trainer.train(resume_from_checkpoint=checkpoint)


def test_second_training_begins_with_an_empty_queue(steps, tokenizer, tmp_path):
    trainer = make_trainer(tmp_path, tokenizer, max_steps=2, queue_size=20)
    trainer.train()
    trainer.train()
    assert [of[3] is None for of in steps] == [True, False, True, False]


def check_processes(rank: int, world: int) -> None:
    """Two texts of each image; uneven parts, and one larger than the queue."""
    generator = torch.Generator().manual_seed(0)
    queue, seen = PairQueue(7, 0.0), ([], [])
    for counts in ([2, 1], [1, 3], [4, 5]):
        sides = []
        for number, of_each in enumerate((1, 2)):
            embeds = torch.randn(of_each * sum(counts), 3, generator=generator)
            ids = torch.randint(0, 9, (len(embeds), 2), generator=generator)
            seen[number].append(Candidates(embeds, ids))
            own = slice(of_each * sum(counts[:rank]), of_each * sum(counts[: rank + 1]))
            sides.append(Candidates(embeds[own], ids[own]))
        queue.offer(*sides)
        for kept, side, size in zip(queue.past(), seen, (3, 7), strict=True):
            expected = (torch.cat(each)[-size:] for each in zip(*side, strict=True))
            assert torch.equal(as_rows(*kept), as_rows(*expected))


def test_processes_keep_the_pairs_of_all():
    in_processes(2, check_processes, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue_size": 121}, "queue_size=121: the training split has only 120 pairs, .*; give at most 120"),
        ({"queue_size": 8, "mask_same_image": False}, "queue_size needs mask_same_image: true"),
        ({"queue_size": 8, "negatives": "local"}, "queue_size keeps the pairs of all processes: give negatives"),
        ({"queue_size": 8, "queue_start_epochs": 2}, "queue_start_epochs=2 is not before the end, num_train_epochs=2"),
        ({"queue_size": -1}, "queue_size is a number from 0 to"),
    ],
)
def test_queue_that_would_be_wrong_is_refused(options, message, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, tokenizer, **options)


def test_recipe_with_a_queue_runs_and_one_that_does_nothing_is_refused(tmp_path):
    data = write_features(tmp_path / "data")
    run_recipe(build_recipe(tiny_values(data, tmp_path / "run", queue_size=24, queue_start_epochs=0.1)))
    assert (tmp_path / "run/stages/heads/checkpoint-4" / QUEUE).is_file()
    with pytest.raises(ValueError, match="queue_size=10000: the training split has only 80 pairs"):
        run_recipe(build_recipe(tiny_values(data, tmp_path / "large", queue_size=10000)))
    with pytest.raises(ValueError, match="queue_start_epochs does nothing: there is no queue: give queue_size"):
        build_recipe(tiny_values(data, tmp_path / "none", queue_start_epochs=1))
