"""`transformers.Trainer` for image-text pairs; its methods are replaced at their named hooks."""

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_model
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_vse.data.collator import TEXT_INPUTS, VSECollator
from hf_vse.data.pairs import PairDataset
from hf_vse.data.sampler import PairBatchSampler
from hf_vse.data.schema import IMAGE_STATES
from hf_vse.data.streams import StreamedPairs
from hf_vse.embed.batches import to_device
from hf_vse.embed.memory import place_on
from hf_vse.evaluation.evaluator import evaluate_retrieval
from hf_vse.model.modeling_vse import VSEModel, VSEOutput
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.objectives.captions import text_of_each, texts_of_each
from hf_vse.objectives.execution import execute_loss
from hf_vse.objectives.grad_cache import cached_loss, mini_batches
from hf_vse.objectives.past import compared
from hf_vse.objectives.soft_targets import SoftTargets
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.averaging import AveragedWeights, check_averaging
from hf_vse.training.callbacks import BatchDiagnostics, CollapseAlarm, LimitedTemperature, RecallProgress, StepDecay
from hf_vse.training.check_objective import check_objective
from hf_vse.training.class_head import ClassHead, check_whole
from hf_vse.training.foils import foils_apart, ids_apart
from hf_vse.training.lora import (
    ADAPTERS,
    adapted_modules,
    adapters,
    check_adapters,
    load_adapters,
    merge_adapters,
    merged_state,
    save_adapters,
)
from hf_vse.training.lower_blocks import below, first_trained, states_in_place
from hf_vse.training.mixing import mixed_inputs
from hf_vse.training.mosaics import mosaic_inputs
from hf_vse.training.pairs import first_batch, pairs_of
from hf_vse.training.publish import PublishingTrainer, check_hub_strategy
from hf_vse.training.queue import PairQueue, check_queue_size
from hf_vse.training.stream_place import StreamPlace
from hf_vse.training.teachers import scores_of_teacher, soft_targets_of
from hf_vse.training.trainable import (
    decayed_names,
    freeze,
    move_to_own_rates,
    parameter_rates,
    set_aside,
    unused_parameters,
)
from hf_vse.training.training_data import groups_of_batches, report_equal_captions

logger = logging.getLogger(__name__)


class VSETrainer(PublishingTrainer):
    """Trains a `VSEModel` and keeps the checkpoint that retrieves best.

    Args:
        model: the dual encoder; its configuration chooses the objective.
        args: how to train.
        train_dataset, eval_dataset: splits as `load_pairs` returns them.
        processing_class: the processor, saved with every checkpoint.
        kwargs: anything else that `transformers.Trainer` takes.
    """

    model: VSEModel
    args: VSETrainingArguments
    processing_class: VSEProcessor

    def __init__(
        self,
        model: VSEModel,
        args: VSETrainingArguments,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | None = None,
        processing_class: VSEProcessor | None = None,
        **kwargs: Any,
    ):
        check_objective(model.config.loss_type, args, model.config.objective_settings)
        check_hub_strategy(args)
        freeze(model, args)
        pairs = None if train_dataset is None else pairs_of(train_dataset, processing_class, args)
        if train_dataset is not None:
            report_equal_captions(train_dataset, args.mask_equal_captions)
        if isinstance(pairs, PairDataset):
            check_queue_size(args, pairs.caption_counts)
        dropout = args.word_dropout, args.max_broken_share, args.set_dropout
        collator = VSECollator(processing_class, args.augmentation, *dropout)  # type: ignore[arg-type]
        if args.device.type == "cpu":
            place_on(model, args.device)
        super().__init__(
            model=model,
            args=args,
            data_collator=kwargs.pop("data_collator", collator),
            train_dataset=pairs,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        check_averaging(self, args)
        check_whole(self, args)
        check_adapters(model, args, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
        self.model_accepts_loss_kwargs = False
        self.averaged = AveragedWeights(args.ema_decay)
        self.add_callback(self.averaged)
        self.queue, self.stream = PairQueue.of(args), StreamPlace()
        self.class_head = ClassHead.of(args, train_dataset, model.config.projection_dim)
        self.add_callback(self.class_head)
        self.teacher_scores = scores_of_teacher(args)
        self.alarm = CollapseAlarm(args.collapse_patience)
        self.add_callback(self.alarm)
        self.add_callback(LimitedTemperature())
        self.diagnostics = BatchDiagnostics(args.diagnostics_steps)
        if args.lr_decay_epochs is not None:
            self.add_callback(StepDecay(args.lr_decay_epochs, args.lr_decay_factor))
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(RecallProgress())
        states = isinstance(pairs, PairDataset) and pairs.source == IMAGE_STATES
        self.lower_blocks = below(model, first_trained(model, args.unfreeze_last_blocks)) if states else []
        if pairs is not None:
            self.set_aside_unused(pairs)

    def set_aside_unused(self, pairs: PairDataset | StreamedPairs) -> None:
        """Data-parallel training waits for every trainable parameter; those the loss does not reach are set aside.

        Also by a single process, so that its optimizer has the parameters of theirs and either continues the other.
        """
        batch = to_device(first_batch(pairs, self.data_collator), self.model)
        soft_targets_of(batch, self.args, self.teacher_scores)
        with states_in_place(self.lower_blocks, batch):
            unused = unused_parameters(self.model, batch)
        set_aside(self.model, map(self.model.get_parameter, unused))
        if unused:
            logger.info("%d parameters take no part in the loss and stay as they are: %s", len(unused), unused)

    def get_train_dataloader(self) -> DataLoader:
        """Batches of different images; of a stream this process reads its own shards."""
        options = {
            "collate_fn": self.data_collator,
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "persistent_workers": self.args.dataloader_persistent_workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
        }
        groups = groups_of_batches(self.train_dataset, self.args)
        if isinstance(self.train_dataset, StreamedPairs):
            return self.stream.loader(self.train_dataset, self._train_batch_size, self.accelerator, **options)
        sampler = PairBatchSampler(
            self.train_dataset,
            batch_size=self._train_batch_size,
            num_processes=self.accelerator.num_processes,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            unique_images=self.args.unique_images,
            drop_last=self.args.dataloader_drop_last,
            captions_per_image=self.args.captions_per_image,
            **groups,
        )
        return self.accelerator.prepare(DataLoader(self.train_dataset, batch_sampler=sampler, **options))

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """As upstream; a pass of a stream ends when one process has read all of its share."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self.stream.as_many_as_all_have(batches, device), count

    def _init_training_state(self, max_steps: int, steps_in_epoch: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As upstream: passes and batches of a pass that were trained on; of a stream, whose length upstream does not
        know, as the epoch tells, which grows by one with every pass and by one batch's share of all with every batch.
        """
        trained = super()._init_training_state(max_steps, steps_in_epoch, *args, **kwargs)
        if not isinstance(self.train_dataset, StreamedPairs) or self.args.ignore_data_skip:
            return trained
        if args[1] is not None:
            self.stream.resume(Path(args[1]))
        passes = int(self.state.epoch or 0)
        batches = ((self.state.epoch or 0) - passes) * max_steps * self.args.gradient_accumulation_steps
        return passes, round(batches)

    def current_loss_type(self) -> str:
        """The objective of this moment: that of the configuration, or before it that of the warm-up."""
        warming_up = (self.state.epoch or 0) < self.args.hard_negative_warmup_epochs
        return self.args.hard_negative_warmup_loss if warming_up else self.model.config.loss_type

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """As upstream; states that were kept of an image tower enter it where they belong."""
        self.stream.follow(inputs)
        with states_in_place(self.lower_blocks, inputs):
            return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ):
        """Embeds the local pairs and contrasts them with the candidates of all processes, as `args.execution` says."""
        inputs = dict(inputs)
        text_ids, foil_ids = ids_apart(inputs.pop("text_ids", None), self.args)
        image_ids = inputs.pop("image_ids", None)
        masked = {"image_ids": image_ids} if self.args.mask_same_image else {}
        masked |= {"text_ids": text_ids} if self.args.mask_equal_captions else {}
        soft = soft_targets_of(inputs, self.args, self.teacher_scores)
        inputs, mixture = mixed_inputs(self.args, self.state.global_step, inputs, model.training)
        inputs, pooling = mosaic_inputs(self.model, self.args, self.state.global_step, inputs, model.training)
        contrast = partial(self.contrast, foil_ids)
        contrast = partial(contrast if mixture is None else mixture.loss(contrast), masked, soft)
        captions = self.args.texts_of_image
        if (size := self.args.grad_cache_batch_size) is not None and model.training and not return_outputs:
            return cached_loss(
                model,
                partial(embed, model, captions),
                mini_batches(inputs, size),
                contrast,
                self.backward_of_part,
                lambda: self.accelerator.no_sync(model),
            )
        with pooling:
            outputs = model(**with_texts_in_a_row(inputs, captions), return_logits=False)
        loss = contrast(*embeddings_and_scalars(outputs, captions))
        return (loss, outputs) if return_outputs else loss

    def contrast(
        self,
        foil_ids: Tensor | None,
        ids: dict[str, Any],
        soft: SoftTargets | None,
        images: Tensor,
        texts: Tensor,
        temperature: Tensor,
        bias: Tensor,
    ) -> Tensor:
        """The loss of a batch of embeddings, which alarm and diagnostics look at too."""
        texts, foils = foils_apart(texts, foil_ids)
        execution, dtype = self.args.execution, getattr(torch, self.args.loss_dtype)
        current = {"loss_type": self.current_loss_type(), "temperature": temperature, "logit_bias": bias}
        options = self.model.config.objective_settings | current
        positives, captions = self.args.positives, self.args.captions_per_image
        pairs = len(images) * (1 if execution.negatives == "local" else self.accelerator.num_processes)
        past = self.queue.past()
        shown, shown_ids = text_of_each(texts.detach(), positives, **ids)
        counts: dict[str, Any] = {"pairs": pairs, "past": len(self.queue) // texts_of_each(positives, captions)}
        how: dict[str, Any] = {"positives": positives, "same_modality": self.args.extra_negatives == "same_modality"}
        counts |= {"captions": captions, "foils": len(foils.ids) * pairs // len(images) if foils else 0}
        self.alarm.observe(images.detach(), shown, **counts, **how, **shown_ids, **options)
        self.diagnostics.observe(images.detach(), shown)
        images, texts = images.to(dtype), texts.to(dtype)
        foils = foils and foils._replace(embeds=foils.embeds.to(dtype))
        if self.queue.is_open(self.state.epoch or 0):
            self.queue.offer(*compared(images.detach(), texts.detach(), settings=options, **how, **ids))
        further: dict[str, Any] = {"past": past, "soft": soft, "foils": foils}
        further["caption_weight"] = self.args.caption_weight
        of_classes = self.class_head.loss(images, ids.get("image_ids"), self.state.global_step)
        return of_classes + execute_loss(images, texts, execution=execution, **further, **how, **ids, **options)

    def backward_of_part(self, loss: Tensor) -> None:
        """As `training_step` does it for the whole, of which this is a part."""
        self.accelerator.backward(loss / self.current_gradient_accumulation_steps)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """As upstream, without norms of every kind, the temperature and the bias of the logits."""
        return decayed_names(model, super().get_decay_parameter_names(model))

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """As upstream, with the learning rates of towers, layers and temperature; see `parameter_rates`."""
        optimizer = super().create_optimizer(model)
        for rates in parameter_rates(self.model, self.args):
            move_to_own_rates(optimizer, rates)
        return optimizer

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As upstream, with the diagnostics of the latest batch beside its loss."""
        super().log(logs | self.diagnostics.at(self.state.global_step) if "loss" in logs else logs, start_time)

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Retrieval over the whole split, both directions; see `evaluate_retrieval`."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None:
            raise ValueError("there is no split to evaluate on; give eval_dataset, or set eval_strategy to 'no'")
        start = time.perf_counter()
        with self.averaged.in_place(self.model):
            metrics = evaluate_retrieval(
                self.model,
                self.processing_class,
                dataset,
                batch_size=self.args.per_device_eval_batch_size,
                num_workers=self.args.dataloader_num_workers,
                progress=not self.args.disable_tqdm,
                image_weight=self.model.config.image_weight if self.args.positives == "entity" else None,
            )
        metrics["runtime"] = round(time.perf_counter() - start, 2)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False):
        """As upstream, which sets `skip_scheduler` for `eval_on_start` alone: a resumed run has measured it before."""
        if skip_scheduler and self.state.log_history:
            return {}
        if skip_scheduler:
            self.state.epoch = 0.0
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if skip_scheduler and self.args.load_best_model_at_end:
            self._determine_best_metric(metrics, trial)
            self.keep_start()
        return metrics

    def keep_start(self) -> None:
        """Saves the model before the first step as the best so far; without states, as nothing resumes from it."""
        folder = str(self.checkpoint_folder())
        self.save_model(folder, _internal_call=True)
        if self.is_fsdp_enabled:  # the best model is read from its own format
            save_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, self.model, folder)
        self.state.best_model_checkpoint = folder

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As upstream, with adapters where `lora_rank` asks for them; it leaves an ordinary model."""
        if self.args.lora_rank:
            self.optimizer = None  # that of an earlier training is of its adapters
        self.queue.clear()
        self.class_head.clear()
        with adapters(self.model, self.args):
            return super().train(*args, **kwargs)

    def checkpoint_folder(self) -> Path:
        """Of the current step."""
        return Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As upstream, the averaged weights where weights are averaged."""
        with self.averaged.in_place(self.model):
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """As upstream; of a model with adapters the ordinary one, and the adapters beside it."""
        if not adapted_modules(self.model):
            return super()._save(output_dir, state_dict)
        super()._save(output_dir, merged_state(self.model))
        if self.args.should_save:
            save_adapters(self.model, Path(output_dir or self.args.output_dir))

    def _load_best_model(self) -> None:
        merge_adapters(self.model)  # the best model is an ordinary one
        super()._load_best_model()

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self.args.should_save:
            self.averaged.save(self.model, self.checkpoint_folder())
        self.queue.save(self.checkpoint_folder(), self.args.should_save)
        self.stream.save(self.checkpoint_folder())
        self.class_head.save(self.checkpoint_folder(), self.args.should_save)
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self.args.lora_rank or Path(resume_from_checkpoint, ADAPTERS).is_file():
            load_adapters(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.averaged.resume(self.model, Path(resume_from_checkpoint))
        self.queue.resume(Path(resume_from_checkpoint), self.args.device)
        self.class_head.resume(Path(resume_from_checkpoint))


def with_texts_in_a_row(inputs: dict[str, Tensor], captions: int) -> dict[str, Tensor]:
    """Inputs of the model from those of images with several captions each, (images, captions, ...)."""
    if captions == 1:
        return inputs
    return {name: each.flatten(0, 1) if name in TEXT_INPUTS else each for name, each in inputs.items()}


def embeddings_and_scalars(outputs: VSEOutput, captions: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (images, dim), texts (images, dim) or (images, captions, dim), temperature and bias."""
    given: Any = outputs  # of images and texts, so nothing in it is None
    texts = given.text_embeds if captions == 1 else given.text_embeds.unflatten(0, (-1, captions))
    return given.image_embeds, texts, given.temperature, given.logit_bias


def embed(model: torch.nn.Module, captions: int, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    outputs = model(**with_texts_in_a_row(inputs, captions), return_logits=False)
    return embeddings_and_scalars(outputs, captions)
