"""The classifier of images among entities that trains beside the contrastive loss, see `objectives/classes.py`.

Classes are the groups of images of the training split (`group_column`); an image that is alone in its group, or has
none, takes no part. The vectors of the classes are no part of the model and are not saved with it; only checkpoints
hold them, so that a resumed run goes on to the bit. A step changes the vectors of its own classes alone, by Adam
(`torch.optim.SparseAdam`), so its cost does not grow with the number of classes; their memory does, by 12 bytes for
each number of each vector. All processes keep the same vectors. Gradients of classes are not clipped.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from hf_vse.data.groups import plain_column
from hf_vse.data.schema import GROUP_ID
from hf_vse.objectives.classes import margin_cosine_loss, sampled_classes
from hf_vse.objectives.exchange import gathered_parts, row_counts, world_size
from hf_vse.training.arguments import VSETrainingArguments

logger = logging.getLogger(__name__)

CLASSES = "classes.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam


class ClassHead(TrainerCallback):
    """The class vectors and their optimizer; does nothing with a `class_weight` of 0."""

    def __init__(self, args: VSETrainingArguments, ids: Tensor, dim: int):
        self.args, self.ids, self.dim = args, ids.to(args.device), dim
        self.clear()

    @classmethod
    def of(cls, args: VSETrainingArguments, train: Dataset | IterableDataset | None, dim: int) -> "ClassHead":
        """The head of a training.

        Raises:
            ValueError: a stream, or fewer than two groups of images.
        """
        if not args.class_weight or train is None:
            return cls(args, torch.empty(0, dtype=torch.int64), dim)
        if isinstance(train, IterableDataset):
            raise ValueError(
                "class_weight counts classes before training, which a stream does not: give streaming: false"
            )
        ids = sorted({each for each in plain_column(train, GROUP_ID) if each is not None})
        if len(ids) < 2:
            raise ValueError(
                f"class_weight={args.class_weight:g}: the training split has {len(ids)} groups of images to tell "
                "apart: name the column that says what an image shows as group_column"
            )
        logger.info(
            "%s classes beside the contrastive loss, %s of them in a step", f"{len(ids):,}", args.class_samples
        )
        return cls(args, torch.tensor(ids), dim)

    def clear(self) -> None:
        """Fresh vectors, of about unit length."""
        drawn = torch.Generator().manual_seed(self.args.seed)
        vectors = torch.randn(len(self.ids), self.dim, generator=drawn) / self.dim**0.5
        self.vectors = nn.Parameter(vectors.to(self.args.device))
        self.optimizer = torch.optim.SparseAdam([self.vectors], lr=self.args.class_learning_rate)
        self.gradients: list[tuple[Tensor, Tensor]] = []  # of the batches of a step: classes, and theirs

    def loss(self, image_embeds: Tensor, image_ids: Tensor | None, step: int) -> Tensor | float:
        """`class_weight` times the local part of the loss; its mean over the processes is that of the whole batch.

        Args:
            image_embeds: (local, dim) unit vectors; image_ids: (local,) their groups, if they have one.
            step: a step draws the same classes when it is repeated, in all processes.
        """
        if not len(self.ids):
            return 0.0
        assert image_ids is not None  # `ids` are those of the training split, whose batches have them
        places = torch.searchsorted(self.ids, image_ids).clamp(max=len(self.ids) - 1)
        known = self.ids[places] == image_ids
        own = places[known]
        counts = row_counts(own)
        everybody = own if len(counts) == 1 else torch.cat(gathered_parts(own, counts))
        rng = np.random.default_rng((self.args.seed, step))
        sampled = sampled_classes(everybody.unique().cpu().numpy(), len(self.ids), self.args.class_samples, rng)
        chosen = torch.from_numpy(sampled).to(own.device)
        vectors = self.vectors.detach()[chosen].requires_grad_()
        settings = {"margin": self.args.class_margin, "temperature": self.args.class_temperature}
        losses = margin_cosine_loss(image_embeds[known], vectors, torch.searchsorted(chosen, own), **settings)
        loss = self.args.class_weight * len(counts) * losses.sum() / max(1, len(everybody))
        if image_embeds.requires_grad:  # the gradient of the vectors now: with cached gradients there is no other time
            self.gradients.append((chosen, torch.autograd.grad(loss, vectors, retain_graph=True)[0]))
        return loss

    def on_step_end(self, args, state, control, optimizer=None, **kwargs):
        """A step of the class vectors, whose rate falls as that of the model does."""
        if not self.gradients:
            return
        classes, values = map(torch.cat, zip(*self.gradients, strict=True))
        mean, size = values / len(self.gradients), self.vectors.shape
        gradient = torch.sparse_coo_tensor(classes[None], mean, size, check_invariants=True).coalesce()
        if world_size() > 1:
            dist.all_reduce(gradient.values())  # of the same classes in all processes
            gradient /= world_size()
        self.vectors.grad, self.gradients = gradient, []
        first = optimizer.param_groups[0]
        of_start = first["lr"] / first["initial_lr"] if first.get("initial_lr") else 1.0
        self.optimizer.param_groups[0]["lr"] = args.class_learning_rate * of_start
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, checkpoint: Path, writes: bool) -> None:
        if len(self.ids) and writes:
            checkpoint.mkdir(parents=True, exist_ok=True)
            state = self.optimizer.state[self.vectors]
            moments = {name: state[name] for name in MOMENTS if name in state}
            tensors = {"ids": self.ids, "vectors": self.vectors.detach(), "step": torch.tensor(state.get("step", 0))}
            save_file(tensors | moments, checkpoint / CLASSES, metadata={"format": "pt"})

    def resume(self, checkpoint: Path) -> None:
        """Goes on with the class vectors of a checkpoint.

        Raises:
            ValueError: it was written with `class_weight` on where it is off, or the reverse, or with other classes.
        """
        path = checkpoint / CLASSES
        if bool(len(self.ids)) != path.is_file():
            raise ValueError(
                f"{checkpoint} was written {'without' if len(self.ids) else 'with'} class_weight, so it cannot be "
                f"resumed with class_weight={self.args.class_weight:g}: give the earlier value, or another output_dir"
            )
        if not len(self.ids):
            return
        found = load_file(path, device=str(self.args.device))
        if not torch.equal(found["ids"], self.ids) or found["vectors"].shape != self.vectors.shape:
            raise ValueError(f"{path} holds the vectors of other classes: give the same data, or another output_dir")
        self.vectors.data.copy_(found["vectors"])
        if MOMENTS[0] in found:
            state = {"step": int(found["step"])} | {name: found[name] for name in MOMENTS}
            self.optimizer.state[self.vectors] = state


def check_class_head(args: VSETrainingArguments) -> None:
    """Raises ValueError where something else has no place beside a classifier."""
    if not args.class_weight:
        return
    reasons = {
        "feature_mix": (args.feature_mix, "a mixture shows two things", 0),
        "fp16": (args.fp16, "it scales gradients, those of the classes too", "false, or bf16: true"),
        "mask_same_image": (not args.mask_same_image, "images of one class would be negatives of each other", "true"),
    }
    for name, (wrong, why, remedy) in reasons.items():
        if wrong:
            raise ValueError(f"class_weight and {name}={getattr(args, name)}: {why}: give {name}: {remedy}")


def check_whole(trainer: Trainer, args: VSETrainingArguments) -> None:
    """Raises ValueError where models are sharded over processes."""
    if args.class_weight and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError("class_weight keeps whole class vectors in each process: train with DDP, or class_weight: 0")
