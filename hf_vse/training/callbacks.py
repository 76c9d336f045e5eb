"""Training callbacks: recalls in one line, and a warning when the embeddings collapse.

Hardest-negative objectives can collapse at the start or when a backbone is unfrozen. The loss then stays at its value
for equal similarities (2 m / t for `hardnce`), and nothing crashes. A reliable sign is the mean cosine between
different items of one modality. A model can also fail to learn with well spread embeddings: the loss stays at that
value and positives score hardly above negatives. The loss alone is not enough: if images are very similar, the hardest
negative scores like the positive even in a model that retrieves well (scenes, `hardnce` after a warm-up: rsum 310 of
600 at 2 m / t, positives 1.3 standard deviations above negatives; from scratch rsum 59, and 0.3).

All of it counts only true negatives: where captions are equal, their pairs are masked and the loss is lower.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ProgressCallback, TrainerCallback

from hf_vse.evaluation.diagnostics.diagnose import BATCH_ROWS, quick_diagnostics
from hf_vse.evaluation.diagnostics.geometry import is_collapsed
from hf_vse.model.losses_vse import SETTINGS, Objective, objective, pair_ids, share_an_id
from hf_vse.objectives.captions import texts_of_each

logger = logging.getLogger(__name__)

STUCK_MARGIN = 0.02
STUCK_STEPS = 200
STUCK_SEPARATION = 0.7


class CollapseAlarm(TrainerCallback):
    """Warns once if the model has collapsed, and once if it does not learn.

    Collapsed: the embeddings within the modalities are nearly equal for `patience` log lines, see `is_collapsed`. Not
    learning: for `STUCK_STEPS` steps, the loss is that of equal similarities and positives score hardly above
    negatives.

    Args:
        patience: number of log lines.
    """

    def __init__(self, patience: int):
        self.patience = patience
        self.collapsed_logs = 0
        self.stuck_since: int | None = None
        self.said_stuck = False
        self.sample: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def observe(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        pairs: int,
        past: int = 0,
        same_modality: bool = False,
        image_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        **options: Any,
    ) -> None:
        """Called with every batch; nothing is computed before the next log line.

        Args:
            pairs: number of pairs that are compared with each other, over all processes.
            past: number of candidates of earlier steps.
            same_modality: images are negatives of images too, and texts of texts.
            image_ids, text_ids: of the pairs that are no negatives of each other, as in `contrastive_loss`.
            options: the other current ones of `contrastive_loss`.
        """
        if len(image_embeds) > 1:
            self.pairs, self.past, self.options = pairs, past, options
            self.own_modality = (pairs - 1) / (pairs + past - 1) if same_modality else 0.0
            self.sample = image_embeds[:BATCH_ROWS].clone(), text_embeds[:BATCH_ROWS].clone()
            self.ids = pair_ids(image_ids, text_ids)

    def negatives(self) -> Tensor:
        """(rows, rows) booleans: which pairs of the sample are negatives of each other."""
        assert self.sample is not None  # `on_log` has looked
        images, _ = self.sample
        if self.ids is None:
            return ~torch.eye(len(images), dtype=torch.bool, device=images.device)
        ids = self.ids[:BATCH_ROWS].to(images.device)
        return ~share_an_id(ids, ids)

    @torch.no_grad()
    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.sample is None or "loss" not in (logs or {}):
            return
        negatives = self.negatives()
        if not negatives.any():
            return
        images, texts = ((each.float() @ each.float().T)[negatives].mean().item() for each in self.sample)
        shares = negatives.sum(dim=1) / (len(negatives) - 1)
        counts = (shares * (self.pairs + self.past - 1)).round().long().clamp(min=1).tolist()
        collapsed = is_collapsed(images, texts)
        unseparated = separation(*self.sample, negatives) < STUCK_SEPARATION
        indifferent = None  # takes longer than a step of a small model
        if collapsed or unseparated:
            indifferent = indifferent_loss(self.pairs, counts, own_modality=self.own_modality, **self.options)
        stuck = unseparated and indifferent is not None and logs["loss"] > (1 - STUCK_MARGIN) * indifferent
        self.collapsed_logs = self.collapsed_logs + 1 if collapsed else 0
        self.stuck_since = (self.stuck_since or state.global_step) if stuck else None
        self.said_stuck = self.said_stuck and stuck
        stuck_for = state.global_step - (self.stuck_since or state.global_step)
        found = None
        if self.collapsed_logs == self.patience:
            found = f"has collapsed: mean cosine {images:.3f} between images and {texts:.3f} between texts;"
        elif stuck_for >= STUCK_STEPS and self.collapsed_logs < self.patience and not self.said_stuck:
            self.said_stuck = True
            found = f"has not learned for {stuck_for} steps:"
        if found and state.is_world_process_zero:
            of_none = "" if indifferent is None else f" (with equal similarities it is {indifferent:.3g})"
            warmup = 0 if args is None else args.hard_negative_warmup_epochs
            logger.warning(
                "step %d: the model %s the loss is %.3g%s. %s",
                state.global_step, found, logs["loss"], of_none, remedy(objective(self.options["loss_type"]), warmup),
            )  # fmt: skip


def separation(image_embeds: Tensor, text_embeds: Tensor, negatives: Tensor) -> float:
    """Mean positive score minus mean negative score, in standard deviations of the negatives; inputs (rows, dim).

    Args:
        negatives: (rows, rows) booleans, which pairs of rows are negatives of each other.
    """
    scores = image_embeds.float() @ text_embeds.float().T
    others = scores[negatives]
    spread = others.std().clamp(min=1e-5)  # well above the rounding noise of equal scores
    return ((scores.diagonal().mean() - others.mean()) / spread).item()


def indifferent_loss(
    pairs: int,
    negatives: Sequence[int],
    loss_type: str,
    positives: str = "one",
    captions: int = 1,
    image_weight: float = 0.5,
    own_modality: float = 0.0,
    foils: int = 0,
    **settings: Any,
) -> float | None:
    """The loss of `pairs` pairs with equal similarities; None if it depends on their value, as with `siglip`, or is 0,
    as where `false_negative_gap` is negative and leaves out all negatives: no loss can rest there.

    Args:
        negatives: how many negatives each of some of the pairs has.
        positives, captions: of several captions for each image, see `objectives/captions.py`.
        own_modality: how many negatives of its own modality a pair has for each of the others.
        foils: further negatives of every image, see `objectives/foils.py`.
    """
    chosen = objective(loss_type)
    settings = {name: torch.as_tensor(value).detach().cpu() for name, value in {**SETTINGS, **settings}.items()}
    bonus = settings["temperature"] * math.log(captions) if positives == "any" else 0.0
    texts = texts_of_each(positives, captions)
    sides = []
    for of_each, of_own, own, more in ((texts, 1, bonus, foils), (1, texts, 0.0, 0)):  # candidates of an image, a text
        total = torch.zeros(2)
        for count, rows in Counter(negatives).items():
            candidates = 1 + count * of_each + round(own_modality * count) * of_own + more
            scores = torch.tensor([[0.0], [0.5]]).repeat(1, candidates)
            scores[:, 0] += own
            total += rows * chosen.rows(scores, torch.zeros(2, dtype=torch.int64), None, settings).float()
        sides.append(total / len(negatives))
    if not all(one.isclose(other, rtol=1e-3) for one, other in sides):
        return None
    image_rows, text_rows = (one.expand(pairs) for one, _ in sides)
    return chosen.reduce(image_rows, text_rows, image_weight=image_weight).item() or None


def remedy(chosen: Objective, warmup: float = 0) -> str:
    """Advice for a collapsed model, which was trained on another objective for `warmup` epochs before."""
    more = f"Give more than hard_negative_warmup_epochs={warmup:g}, or loss_type nce" if warmup else None
    first = f"{more or 'Start with hard_negative_warmup_epochs=1'}, or warm up" if chosen.may_collapse else "Warm up"
    return f"{first} the learning rate (warmup_steps=0.1), or lower it."


class BatchDiagnostics:
    """Adds diagnostics of a training batch to the log at regular intervals.

    Args:
        every: steps between two log lines with diagnostics; 0 turns them off.
    """

    def __init__(self, every: int):
        self.every = every
        self.latest = 0
        self.embeds: tuple[Tensor, Tensor] | None = None

    def observe(self, image_embeds: Tensor, text_embeds: Tensor) -> None:
        """Called with every batch; keeps a sample and computes nothing before the next log line."""
        if self.every:
            self.embeds = image_embeds[:BATCH_ROWS].clone(), text_embeds[:BATCH_ROWS].clone()

    def at(self, step: int) -> dict[str, float]:
        """`batch_alignment`, ... (see `quick_diagnostics`) of the latest batch if they are due, else an empty dict."""
        if self.embeds is None or step < self.latest + self.every:
            return {}
        self.latest = step
        found = quick_diagnostics(*self.embeds)
        if not found and len(self.embeds[0]) > 1:
            logger.warning("step %d: embeddings of this batch are not finite; no diagnostics", step)
        return {f"batch_{name}": value for name, value in found.items()}


class LimitedTemperature(TrainerCallback):
    """Keeps a learned temperature above its limit, below which its gradient would vanish."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        model.limit_logit_scale()


class StepDecay(TrainerCallback):
    """Multiplies the learning rate by `factor` every `every` epochs, on top of any schedule.

    VSE++ (arXiv 1707.05612) trains 15 epochs at 2e-4 and 15 epochs at a tenth of it. The factor depends only on the
    epoch, so a resumed run has the same learning rate as an uninterrupted one.
    """

    def __init__(self, every: float, factor: float):
        self.every = every
        self.factor = factor

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        decay = self.factor ** math.floor((state.epoch or 0) / self.every + 1e-6)
        for place, group in enumerate(lr_scheduler.optimizer.param_groups):
            base = group["initial_lr"] * decay
            group["lr"] *= base / lr_scheduler.base_lrs[place]
            lr_scheduler.base_lrs[place] = base


class RecallProgress(ProgressCallback):
    """The standard progress bar plus the loss, and one line per evaluation."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is None or not state.is_world_process_zero:
            return
        if "eval_rsum" in logs:
            self.training_bar.write(evaluation_line(logs))
        elif "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.4g}", lr=f"{logs['learning_rate']:.2g}")


def evaluation_line(logs: dict[str, float]) -> str:
    """One evaluation as text: `epoch 3  image -> text 22.4 48.8 65.6  text -> image 12.3 37.7 53.2  rsum 240.0`."""
    recalls = {
        direction: " ".join(f"{logs[f'eval_{direction}_r{level}']:5.1f}" for level in (1, 5, 10))
        for direction in ("i2t", "t2i")
    }
    entities = f"   entity R@1 {logs['eval_entity_r1']:5.1f}" if "eval_entity_r1" in logs else ""
    return (
        f"epoch {logs.get('epoch', 0):<5.4g} R@1/5/10  image -> text {recalls['i2t']}   "
        f"text -> image {recalls['t2i']}   rsum {logs['eval_rsum']:6.1f}{entities}"
    )
