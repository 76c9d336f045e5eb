"""An exponential moving average of the trained weights (EMA; Tarvainen & Valpola, arXiv 1703.01780, equation 2).

After every step of the optimizer `average = decay * average + (1 - decay) * weights`, in float32, from the weights at
the start on. It covers the trained weights; frozen weights and buffers, such as the statistics of batch normalisation,
are those of the model. Every evaluation and every saved model has the average; a checkpoint holds the trained weights
in a file of their own, from which training goes on.

A run of 700 steps wants a decay of 0.98 to 0.99: one step counts for less than a third after 1 / (1 - decay) steps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_vse.training.arguments import VSETrainingArguments

TRAINED = "trained.safetensors"


class AveragedWeights(TrainerCallback):
    """Averages the weights from the beginning of a training to its end, and does nothing with a decay of 0."""

    def __init__(self, decay: float):
        self.decay = decay
        self.average: dict[str, Tensor] = {}  # empty: not in training, or not asked for

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.decay and not state.global_step:
            self.average = trained_weights(model)

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        for name, average in self.average.items():
            average.lerp_(model.get_parameter(name), 1 - self.decay)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if not (args.load_best_model_at_end and state.best_model_checkpoint):  # else the model is an average already
            set_weights(model, self.average)
        self.average = {}

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        trained = trained_weights(model) if self.average else {}
        set_weights(model, self.average)
        try:
            yield
        finally:
            set_weights(model, trained)

    def save(self, model: nn.Module, checkpoint: Path) -> None:
        """Saves the trained weights; those of the checkpoint's model are the average."""
        if self.average:
            checkpoint.mkdir(parents=True, exist_ok=True)
            weights = {name: tensor.contiguous() for name, tensor in trained_weights(model).items()}
            save_file(weights, checkpoint / TRAINED, metadata={"format": "pt"})

    def resume(self, model: nn.Module, checkpoint: Path) -> None:
        """Goes on from a model that has the averaged weights of a checkpoint.

        Raises:
            ValueError: the checkpoint was written with another `ema_decay`, on or off, or other weights were trained.
        """
        path = checkpoint / TRAINED
        if bool(self.decay) != path.is_file():
            raise ValueError(
                f"{checkpoint} was written {'without' if self.decay else 'with'} ema_decay, so it cannot be resumed "
                f"with ema_decay={self.decay}: give the earlier value, or another output_dir"
            )
        if not self.decay:
            return
        self.average, trained = trained_weights(model), load_file(path)
        if trained.keys() != self.average.keys():
            other = sorted(trained.keys() ^ self.average.keys())
            raise ValueError(
                f"{path} holds other weights than are trained ({len(other)} differ, the first is {other[0]!r}): "
                "freeze the same as before, or give another output_dir"
            )
        set_weights(model, trained)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters with a gradient."""
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.requires_grad}


@torch.no_grad()
def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        model.get_parameter(name).copy_(tensor)


def check_averaging(trainer: Trainer, args: VSETrainingArguments) -> None:
    """Raises ValueError where weights are sharded over processes, or too coarse for an average."""
    if not args.ema_decay:
        return
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        raise ValueError(
            f"ema_decay={args.ema_decay} needs whole weights in each process, but FSDP or DeepSpeed shards them: "
            "train with DDP, or give ema_decay: 0"
        )
    coarse = {each.dtype for each in trainer.model.parameters() if each.requires_grad} - {torch.float32}
    if coarse:
        raise ValueError(
            f"ema_decay={args.ema_decay} needs weights in float32, the model has {coarse.pop()}: load it in float32, "
            "and give bf16: true to compute in bfloat16"
        )
