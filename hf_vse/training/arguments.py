"""How training is executed. `VSEConfig` has the settings that change what the weights mean."""

import logging
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

import torch
from transformers import TrainingArguments

from hf_vse.data.images import MAX_BROKEN_SHARE
from hf_vse.data.transforms import Augmentation
from hf_vse.model.losses_vse import objective
from hf_vse.objectives.captions import Positives
from hf_vse.objectives.execution import Execution
from hf_vse.training.limits import check_limits

logger = logging.getLogger(__name__)


@dataclass
class VSETrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the settings of cross-modal training.

    The defaults are those of the paper (Adam at 2e-4, gradients clipped at 2, 30 epochs). The checkpoint with the best
    `rsum` on the validation split is kept, measured after every epoch.
    """

    per_device_train_batch_size: int = field(
        default=128, metadata={"help": "Pairs of one process in a batch; with captions_per_image, images."}
    )
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "Images or sentences encoded at once."})
    num_train_epochs: float = field(default=30.0, metadata={"help": "Passes over all captions."})
    learning_rate: float = field(default=2e-4, metadata={"help": "Initial learning rate."})
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Gradients are clipped to this norm, 0: not at all. VSE++ clips to 2."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure recall on the validation split."})
    eval_on_start: bool | None = field(
        default=None,
        metadata={
            "help": "Measure the model before the first step too; it is the best until something beats it. Default: "
            "with init_from."
        },
    )
    save_strategy: str | None = field(
        default=None, metadata={"help": "When to write a checkpoint. Default: as eval_strategy, or epoch without it."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best one among them."})
    load_best_model_at_end: bool | None = field(
        default=None, metadata={"help": "End with the best checkpoint. Default: where recall is measured and saved."}
    )
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "What makes a checkpoint the best. Default: rsum; of entities entity_r1."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of it is better."})
    remove_unused_columns: bool | None = False
    ddp_find_unused_parameters: bool | None = False

    negatives: str = field(
        default="gather",
        metadata={
            "help": "Contrast with the candidates of all processes at once (gather), of one process after the other "
            "(ring), or only with the own (local).",
            "choices": ["gather", "ring", "local"],
        },
    )
    loss_execution: str = field(
        default="auto",
        metadata={
            "help": "How the loss is computed, never what it is: dense stores the similarity matrix, chunked and "
            "streamed a part of it, fused none; auto chooses and says why.",
            "choices": ["auto", "dense", "chunked", "streamed", "fused"],
        },
    )
    loss_chunk_size: int | None = field(
        default=None, metadata={"help": "Queries compared at once, except by dense. Default: what suits the device."}
    )
    loss_dtype: str = field(
        default="float32",
        metadata={
            "help": "Precision that embeddings are rounded to before they are compared; bfloat16 is faster on a GPU.",
            "choices": ["float32", "bfloat16"],
        },
    )
    grad_cache_batch_size: int | None = field(
        default=None,
        metadata={"help": "Embed a batch in mini-batches of at most so many pairs, with the gradient of the whole."},
    )
    captions_per_image: int = field(
        default=1,
        metadata={
            "help": "Captions that come with an image in a batch. An epoch then has as many times fewer steps, and "
            "positives says what they are."
        },
    )
    positives: str = field(
        default="one",
        metadata={
            "help": "How captions count: one for an image, or of several each as a positive of its own, any as one "
            "candidate of which one need fit (MIL-NCE), or their centre as the only text. Or entity: an image and its "
            "captions are pooled, by image_weight, and records of one group_column are positives (CLIPPINGS).",
            "choices": [*get_args(Positives), "entity"],
        },
    )
    caption_weight: float = field(
        default=0.0, metadata={"help": "With positives entity, of images against captions, so that search stays good."}
    )
    unique_images: bool = field(default=True, metadata={"help": "Batches in which no image occurs twice."})
    batch_groups: str = field(
        default="none",
        metadata={
            "help": "Batches of groups: of neighbours, images whose captions are near in the vectors of a frozen text "
            "tower, which gives hard negatives (B3); or none.",
            "choices": ["none", "neighbours"],
        },
    )
    group_size: int = field(default=8, metadata={"help": "Images of a group, or records of an entity in a batch."})
    group_first_rank: int = field(
        default=10, metadata={"help": "Nearest rank that joins a group; nearer ones may show the same."}
    )
    group_last_rank: int = field(default=60, metadata={"help": "Farthest rank that joins a group."})
    mask_same_image: bool = field(default=True, metadata={"help": "Other captions of an image are no negatives."})
    mask_equal_captions: bool = field(
        default=True,
        metadata={"help": "Pairs of equal caption are no negatives of each other; false for results as published."},
    )
    queue_size: int = field(
        default=0,
        metadata={
            "help": "Contrast with the embeddings of the last so many pairs too (XBM): up to the whole split where "
            "backbones are frozen; 0 for none."
        },
    )
    queue_start_epochs: float = field(
        default=0.0,
        metadata={"help": "Epochs before the queue begins, so that it holds nothing of the first, fast steps."},
    )
    extra_negatives: str = field(
        default="none",
        metadata={
            "help": "Further negatives: same_modality, of an image the other images of the batch, of a sentence the "
            "other sentences (NT-Xent, MV-InfoNCE); foils, of an image its captions and those of the others with a "
            "word or their order changed by rules, in English (NegCLIP); or none.",
            "choices": ["none", "same_modality", "foils"],
        },
    )
    soft_targets: str = field(
        default="none",
        metadata={
            "help": "Weigh in the cross entropy with what a teacher scores the pairs of a batch: captions, what the "
            "frozen text tower finds alike; teacher, the models named as teacher; scores, the file teacher_scores.",
            "choices": ["none", "captions", "teacher", "scores"],
        },
    )
    soft_weight: float = field(default=0.2, metadata={"help": "Share of soft targets in the loss, up to 1."})
    soft_temperature: float = field(
        default=0.1,
        metadata={"help": "Divides the teacher's scores: small leaves nearly all to the own pair; 0.1 suits cosines."},
    )
    feature_distance: float = field(
        default=0.0,
        metadata={
            "help": "Adds so many times the squared distance to the teacher's vectors, for a student in its space; "
            "projection_dim has to be the teacher's."
        },
    )
    teacher: str | list[str] | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub id of a model, or a list of them, [DIR, DIR], whose scores are averaged: any model "
            "that evaluate reads. Run once over the training split."
        },
    )
    teacher_scores: str | None = field(
        default=None,
        metadata={
            "help": "Safetensors file with the scores of a teacher, such as a cross-encoder, for the images and "
            "captions of the training split; hf_vse/training/scores.py describes it."
        },
    )
    hard_negative_warmup_epochs: float = field(
        default=0.0, metadata={"help": "Epochs on hard_negative_warmup_loss before a hardest-negative objective."}
    )
    hard_negative_warmup_loss: str = field(default="nce", metadata={"help": "Objective of these epochs."})
    freeze_image_tower: bool = field(default=False, metadata={"help": "Train everything but the image tower."})
    freeze_text_tower: bool = field(default=False, metadata={"help": "Train everything but the text tower."})
    unfreeze_last_blocks: int | None = field(
        default=None, metadata={"help": "Train only the last so many blocks of each tower, and the heads."}
    )
    cache_frozen: bool = field(
        default=True, metadata={"help": "Compute the outputs of a frozen tower once and read them in every epoch."}
    )
    cached_crops: int = field(
        default=0,
        metadata={
            "help": "Random crops of each image kept for a frozen image tower, beside the central one; the same "
            "for all seeds. With unfreeze_last_blocks, what the frozen blocks give for them."
        },
    )
    frozen_cache_dir: str | None = field(
        default=None, metadata={"help": "Where they are kept; default: hf_vse_frozen in the Hugging Face cache."}
    )
    freeze_batchnorm: bool = field(
        default=False, metadata={"help": "Keep statistics and weights of all batch normalisations."}
    )
    image_tower_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})
    text_tower_learning_rate: float | None = field(default=None, metadata={"help": "Default: learning_rate."})
    temperature_learning_rate: float | None = field(
        default=None, metadata={"help": "Of a learned temperature and bias. Default: learning_rate."}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Factor of the learning rate from each block of a tower to the one before: 0.65 to 0.9 for "
            "pretrained towers; 1 for one rate."
        },
    )
    lr_decay_epochs: float | None = field(
        default=None, metadata={"help": "Multiply the learning rate by lr_decay_factor after every so many epochs."}
    )
    lr_decay_factor: float = field(default=0.1, metadata={"help": "Factor of the decay; VSE++: 0.1 every 15 epochs."})
    lora_rank: int = field(
        default=0,
        metadata={
            "help": "Train low-rank adapters (LoRA) of this rank, 4 to 64, instead of the towers; 0 for none. The "
            "saved model has them merged into its weights. Needs the extra lora."
        },
    )
    lora_alpha: float | None = field(
        default=None, metadata={"help": "The adapters count lora_alpha / lora_rank. Default: twice the rank."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Share of what an adapter reads set to zero."})
    ema_decay: float = field(
        default=0.0,
        metadata={
            "help": "Evaluate and keep a moving average of the weights with this decay after every step: 0.98 to 0.99 "
            "for some hundred steps, 0.999 for many thousand; 0 for none."
        },
    )
    control_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Data on which little may be lost, named as dataset: the result is the best on validation of the "
            "weights between start and end (WiSE-FT) that keeps recall there."
        },
    )
    control_options: dict | None = field(
        default=None,
        metadata={"help": "Its options, as of dataset, and its split: {difficulty: easy, split: validation}."},
    )
    permitted_loss: float = field(
        default=1.0,
        metadata={"help": "Points of mean recall (R@1, 5, 10, both directions, in percent) that it may lose."},
    )
    joined_seeds: int = field(
        default=1,
        metadata={
            "help": "Train so many seeds (seed, seed + 1, ...) of the heads on frozen towers, and join them to one "
            "model, whose vectors are theirs one beside the other: more recall, longer vectors."
        },
    )
    class_weight: float = field(
        default=0.0, metadata={"help": "Adds so many times the loss of a classifier of images by group_column (MOFI)."}
    )
    class_samples: int = field(default=10_000, metadata={"help": "Classes of a step, beside those of its images."})
    class_margin: float = field(default=0.2, metadata={"help": "Taken from the cosine of an image with its class."})
    class_temperature: float = field(default=0.05, metadata={"help": "Divides the cosines with classes."})
    class_learning_rate: float = field(default=1e-3, metadata={"help": "Of the class vectors, which are not saved."})
    word_dropout: float = field(default=0.0, metadata={"help": "Share of words hidden in training."})
    set_dropout: float = field(
        default=0.0,
        metadata={"help": "Share of the words of a sentence and of the regions of an image left out in training."},
    )
    feature_mix: float = field(
        default=0.0,
        metadata={
            "help": "Train on mixtures of two images, which belong to both sentences, of shares drawn from Beta(a, a) "
            "(i-Mix): 0.2 mixes little, 1 much; 0 not. For one vector of each image: features, or a frozen tower."
        },
    )
    mosaic_share: float = field(
        default=0.0,
        metadata={
            "help": "Share of a batch's photographs that are seen several in one picture, each pooled from its part "
            "of the grid (CLIM), so that the image tower learns where things are: 0.5, say; 0 for none."
        },
    )
    mosaic_sides: list[int] | None = field(
        default=None,
        metadata={"help": "Photographs along a side of a mosaic, a list of 2, 3 and 4. Default: all three."},
    )
    crop_min_scale: float = field(
        default=0.08, metadata={"help": "Smallest share of an image that a random crop keeps; 1 for no random crop."}
    )
    mirror_images: bool = field(
        default=True, metadata={"help": "Mirror every second image; wrong where captions say left and right."}
    )
    max_broken_share: float = field(
        default=MAX_BROKEN_SHARE, metadata={"help": "Stop where more images cannot be read."}
    )
    diagnostics_steps: int = field(
        default=50,
        metadata={"help": "Steps between two log lines with alignment, uniformity, modality gap, ... ; 0 for none."},
    )
    collapse_patience: int = field(default=5, metadata={"help": "Log lines of collapse before the alarm."})

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True
            self.dataloader_pin_memory = False
        choose_strategies(self)
        given = vars(self)["accelerator_config"]
        if not isinstance(given, dict | None):
            raise ValueError(f"accelerator_config is a map here, got {given!r:.60}: write it out")
        self.accelerator_config = {"even_batches": False, "dispatch_batches": False} | (given or {})
        objective(self.hard_negative_warmup_loss)
        check_limits({**vars(self)})
        checked = ("negatives", "loss_execution", "loss_dtype", "positives", "batch_groups")
        for name in (*checked, "extra_negatives", "soft_targets"):
            choices = self.__dataclass_fields__[name].metadata["choices"]
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.metric_for_best_model is None:
            self.metric_for_best_model = "entity_r1" if self.positives == "entity" else "rsum"
        if self.positives != "entity" and (self.captions_per_image == 1) != (self.positives == "one"):
            raise ValueError(
                f"captions_per_image={self.captions_per_image} and positives={self.positives!r} do not fit: one "
                "caption needs one, several need each, any or centre"
            )
        super().__post_init__()

    def __getstate__(self) -> dict[str, Any]:
        """The arguments that transformers writes beside every checkpoint, without the token."""
        return vars(self) | {"hub_token": None}

    @property
    def n_gpu(self) -> int:
        """GPUs of this process, at most one. With several, transformers would split each batch among copies of the
        model, and no part would see the negatives of the others. One process per GPU gathers them."""
        found = super().n_gpu
        if found > 1:
            tell_of_idle_gpus(found)
        return min(found, 1)

    @property
    def execution(self) -> Execution:
        """How the loss is computed."""
        words: dict[str, Any] = {"name": self.loss_execution, "negatives": self.negatives}
        return Execution(**words, chunk_size=self.loss_chunk_size)

    @property
    def texts_of_image(self) -> int:
        """How many texts come with an image in a batch: captions, and as many foils after them."""
        return self.captions_per_image * (2 if self.extra_negatives == "foils" else 1)

    @property
    def augmentation(self) -> Augmentation | None:
        """Random crops and mirroring of training images; None for neither."""
        if self.crop_min_scale >= 1 and not self.mirror_images:
            return None
        return Augmentation(self.crop_min_scale, self.mirror_images)


@cache
def tell_of_idle_gpus(found: int) -> None:
    """Warns once in a process."""
    logger.warning(
        "this process trains on one of %d GPUs; to use all: accelerate launch --num_processes %d -m hf_vse.cli train "
        "RECIPE (or scripts/train.py RECIPE)", found, found,
    )  # fmt: skip


def choose_strategies(args: VSETrainingArguments) -> None:
    """Sets when checkpoints are written and whether the best one is kept, where this was not given.

    Raises:
        ValueError: the given settings contradict each other.
    """
    measured, saved = (getattr(each, "value", each) for each in (args.eval_strategy, args.save_strategy))
    if args.load_best_model_at_end is None:
        args.load_best_model_at_end = "no" not in (measured, saved)
    elif args.load_best_model_at_end and "no" in (measured, saved):
        raise ValueError(
            f"load_best_model_at_end needs checkpoints that are measured, but eval_strategy is {measured!r} and "
            f"save_strategy {saved!r}: give both as 'epoch' or 'steps', or load_best_model_at_end: false"
        )
    if saved is None:
        args.save_strategy = measured if args.load_best_model_at_end else "epoch"
    elif args.load_best_model_at_end and saved not in ("best", measured):
        raise ValueError(
            f"save_strategy {saved!r} with eval_strategy {measured!r}: only what was measured can be the best; give "
            f"eval_strategy: {saved}, or load_best_model_at_end: false"
        )
