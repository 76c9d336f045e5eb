"""What a person sees during training: the recalls in one line, and an alarm when all embeddings fall together.

Hardest-negative objectives are known to collapse at the start or when a backbone is unfrozen. The loss then rests at
the value it has when all similarities are equal (2 m / t for `hardnce`) and nothing crashes. What tells it without
doubt is the mean cosine between different items of one modality, which costs next to nothing: with the mean vector c
of n unit vectors it is (n |c|^2 - 1) / (n - 1).
"""

import logging
import math

import torch
from torch import Tensor
from transformers import ProgressCallback, TrainerCallback

from hf_vse.evaluation.diagnostics.diagnose import BATCH_ROWS, quick_diagnostics
from hf_vse.evaluation.diagnostics.geometry import COLLAPSED_COSINE, mean_cosine
from hf_vse.model.losses_vse import contrastive_loss

logger = logging.getLogger(__name__)


class CollapseAlarm(TrainerCallback):
    """Says so when the embeddings of both modalities have been alike for `patience` log lines; once per collapse.

    Args:
        patience: log lines.
        loss_options: `loss_type`, `temperature`, `margin`, to name the loss of a collapsed model.
    """

    def __init__(self, patience: int, **loss_options):
        self.patience = patience
        self.loss_options = loss_options
        self.collapsed_logs = 0
        self.cosines: tuple[Tensor, Tensor] | None = None
        self.batch_size = 0

    @torch.no_grad()
    def observe(self, image_embeds: Tensor, text_embeds: Tensor) -> None:
        """Called with every batch; nothing is read from the device before the next log line."""
        if len(image_embeds) > 1:
            self.batch_size = len(image_embeds)
            self.cosines = tuple(
                mean_cosine(embeds.mean(dim=0), len(embeds)) for embeds in (image_embeds, text_embeds)
            )

    def collapsed_loss(self) -> float:
        """The loss of a batch whose similarities are all equal."""
        alike = torch.ones(self.batch_size, 1)
        return contrastive_loss(alike, alike, **self.loss_options).item()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.cosines is None or "loss" not in (logs or {}):
            return
        image_cosine, text_cosine = (cosine.item() for cosine in self.cosines)
        collapsed = min(image_cosine, text_cosine) > COLLAPSED_COSINE
        self.collapsed_logs = self.collapsed_logs + 1 if collapsed else 0
        if self.collapsed_logs == self.patience and state.is_world_process_zero:
            logger.warning(
                "step %d: the model has collapsed: images are alike (mean cosine %.3f), so are texts (%.3f), and the "
                "loss is %.3g where a collapsed model has %.3g. Start with hard_negative_warmup_epochs=1, or warm up "
                "the learning rate (warmup_steps=0.1), or lower it.",
                state.global_step, image_cosine, text_cosine, logs["loss"], self.collapsed_loss(),
            )  # fmt: skip


class BatchDiagnostics:
    """Why training goes as it goes: a few numbers of a training batch, for every so many steps a log line.

    Args:
        every: steps between two log lines that have them; 0 for none.
    """

    def __init__(self, every: int):
        self.every = every
        self.latest = 0
        self.embeds: tuple[Tensor, Tensor] | None = None

    def observe(self, image_embeds: Tensor, text_embeds: Tensor) -> None:
        """Called with every batch, of which it keeps a sample; nothing is computed before the next log line."""
        if self.every:
            self.embeds = image_embeds[:BATCH_ROWS].clone(), text_embeds[:BATCH_ROWS].clone()

    def at(self, step: int) -> dict[str, float]:
        """`batch_alignment`, ... (see `quick_diagnostics`) of the latest batch if it is time, or nothing."""
        if self.embeds is None or step < self.latest + self.every:
            return {}
        self.latest = step
        return {f"batch_{name}": value for name, value in quick_diagnostics(*self.embeds).items()}


class LimitedTemperature(TrainerCallback):
    """Keeps a learned temperature from falling below its limit, where its gradient would end."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.limit_logit_scale()


class StepDecay(TrainerCallback):
    """Multiplies the learning rate by `factor` after every `every` epochs, whatever schedule it follows otherwise.

    VSE++ (arXiv 1707.05612) trains 15 epochs at 2e-4 and 15 at a tenth of it. The rate follows from the epoch alone,
    so a resumed run has the one that an uninterrupted run would have.
    """

    def __init__(self, every: float, factor: float):
        self.every = every
        self.factor = factor

    def on_epoch_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        decay = self.factor ** math.floor((state.epoch or 0) / self.every + 1e-6)
        for place, group in enumerate(lr_scheduler.optimizer.param_groups):
            base = group["initial_lr"] * decay
            group["lr"] *= base / lr_scheduler.base_lrs[place]
            lr_scheduler.base_lrs[place] = base


class RecallProgress(ProgressCallback):
    """The usual progress bar with the loss beside it, and one line for each evaluation."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or not state.is_world_process_zero:
            return
        if "eval_rsum" in logs:
            self.training_bar.write(evaluation_line(logs))
        elif "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4g}", lr=f"{logs['learning_rate']:.2g}")


def evaluation_line(logs: dict[str, float]) -> str:
    """Recalls of one evaluation: `epoch 3  image -> text 22.4 48.8 65.6  text -> image 12.3 37.7 53.2  rsum 240.0`."""
    recalls = {
        direction: " ".join(f"{logs[f'eval_{direction}_r{level}']:5.1f}" for level in (1, 5, 10))
        for direction in ("i2t", "t2i")
    }
    return (
        f"epoch {logs.get('epoch', 0):<5.4g} R@1/5/10  image -> text {recalls['i2t']}   "
        f"text -> image {recalls['t2i']}   rsum {logs['eval_rsum']:6.1f}"
    )
