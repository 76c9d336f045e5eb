"""Tiny dual encoders of transformers to start from, and trainings of them."""

from pathlib import Path

import torch

from hf_vse.embed.adapters.transformers_models import TransformersEncoder, processor_of
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training import run
from tests.conftest import make_pairs
from tests.training.test_trainer import arguments, losses, weights

# Of plain gradient descent the weights tell the gradients; Adam would make a step even of their rounding errors.
PLAIN = {"crop_min_scale": 1.0, "mirror_images": False, "learning_rate": 1e-2, "num_train_epochs": 2, "optim": "sgd"}


def start(folder: Path, **options) -> tuple[VSEModel, VSEProcessor]:
    """The model that starts as the one saved in a folder, and its processor."""
    torch.manual_seed(0)
    source = TransformersEncoder.from_pretrained(str(folder), "cpu").model
    return VSEModel.from_dual_encoder(source, **options), processor_of(str(folder))


def trainer_of(output: Path, model: VSEModel, processor: VSEProcessor, data=None, **options):
    """A trainer on eight or more pairs of images, as a run would have it."""
    data = make_pairs(8, captions=2) if data is None else data
    args = arguments(output, **PLAIN | options)
    return run.VSETrainer(model, args, train_dataset=data, processing_class=processor)


def trained(output: Path, folder: Path, data=None, resume: str | None = None, model: dict | None = None, **options):
    """Losses of a training and the weights at its end."""
    trainer = trainer_of(output, *start(folder, **model or {}), data, **options)
    trainer.train(resume_from_checkpoint=resume)
    return losses(trainer), weights(trainer.model)
