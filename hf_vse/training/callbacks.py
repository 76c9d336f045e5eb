"""An alarm for the failure that is easy to miss: all embeddings fall together.

Hardest-negative objectives are known to collapse at the start or when a backbone is unfrozen. The loss then rests at
the value it has when all similarities are equal (2 m / t for `hardnce`) and nothing crashes. What tells it without
doubt is the mean cosine between different items of one modality, which costs next to nothing: with the mean vector c
of n unit vectors it is (n |c|^2 - 1) / (n - 1).
"""

import logging

import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_vse.model.losses_vse import contrastive_loss

logger = logging.getLogger(__name__)

COLLAPSED_COSINE = 0.98


def mean_cosine(embeds: Tensor) -> Tensor:
    """Mean cosine between different rows of unit vectors: (n, dim), n > 1, -> scalar."""
    count = len(embeds)
    return (count * embeds.mean(dim=0).square().sum() - 1) / (count - 1)


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
            self.cosines = mean_cosine(image_embeds), mean_cosine(text_embeds)

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
