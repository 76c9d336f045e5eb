"""A stream that two processes read, each its own shards: passes end for both at once, both go on where they were."""

import json
from pathlib import Path

import pytest

from tests.conftest import make_feature_pairs
from tests.processes import in_processes
from tests.training.test_trainer import make_trainer

STEPS, STOPPED = 6, 3
OPTIONS = {"max_steps": STEPS, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}


def recorded(trainer, checkpoint: str | None = None) -> list[list[int]]:
    """The images of each batch that is trained on."""
    seen, step = [], trainer.training_step

    def recording(model, inputs, *args):
        seen.append(inputs["image_ids"].tolist())
        return step(model, inputs, *args)

    trainer.training_step = recording
    trainer.train(resume_from_checkpoint=checkpoint)
    return seen


def train(rank: int, folder: str, tokenizer) -> None:
    stream = make_feature_pairs(24).to_iterable_dataset(num_shards=3)  # two of 8 images for one, one for the other
    found = []
    for name, checkpoint in (("whole", None), ("resumed", f"{folder}/whole/checkpoint-{STOPPED}")):
        trainer = make_trainer(f"{folder}/{name}", tokenizer, stream, **OPTIONS, save_total_limit=None)
        found.append(recorded(trainer, checkpoint))
        assert trainer.state.epoch == pytest.approx(1 + 2 / STEPS)  # the second pass, after four batches
        assert (checkpoint is None) == (not trainer.stream.batches.states)
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


def test_passes_end_at_once_and_both_go_on_where_they_were(tmp_path, tokenizer):
    in_processes(2, train, str(tmp_path), tokenizer)
    (first, first_resumed), (second, second_resumed) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)
    )
    assert len(first) == len(second) == STEPS
    assert (first_resumed, second_resumed) == (first[STOPPED:], second[STOPPED:])
    of_pass = [image for each in (first, second) for batch in each[:4] for image in batch]
    assert len(of_pass) == len(set(of_pass)) == 16 and len({image // 8 for image in sum(second[:4], [])}) == 1


def test_another_number_of_workers_is_said_and_too_few_images_are_refused(tmp_path, tokenizer, caplog):
    stream = make_feature_pairs(6).to_iterable_dataset()
    trainer = make_trainer(tmp_path, tokenizer, stream, **OPTIONS)
    trainer.get_train_dataloader()
    trainer.stream.save(tmp_path)
    trainer.stream.layout = trainer.stream.layout | {"workers": 2}
    trainer.stream.resume(tmp_path)
    assert "this pass is read from its beginning" in caplog.text and not trainer.stream.batches.states
    with pytest.raises(ValueError, match="a share of the stream has too few images for a batch"):
        make_trainer(tmp_path, tokenizer, stream, **OPTIONS | {"per_device_train_batch_size": 8}).train()
