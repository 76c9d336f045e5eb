"""One run from a recipe to a model directory: data, stages, evaluation, pictures.

    output_dir/                the model: weights, payload, processor; what `AutoModel.from_pretrained` takes
        recipe.yaml            what was asked for
        metrics.json           recalls, the data and their fingerprints, versions, times
        training_curves.png    loss and validation recall
        retrieval.png          what the model finds for some sentences
        interpolation.png      recall between start and end, with control_dataset; the end itself is in the last stage
        README.md              the model card, for `hf upload` and `hf-vse push`
        stages/NAME/           checkpoints of a stage and, when it is done, its model
        seeds/SEED/            with joined_seeds, instead of stages: the run of each seed, a folder like this one

The same recipe in the same directory continues where it stopped.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import set_seed
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks
from transformers.trainer_utils import align_special_tokens

from hf_vse.data.ready_columns import caption_counts
from hf_vse.data.sampler import check_batch_size, visits_of
from hf_vse.embed.adapters.own_models import load_vse_model
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.record import read_evaluation
from hf_vse.files import check_output_folder, inside, read_json, write_json
from hf_vse.hub.push import push_model
from hf_vse.hub.record import METRICS
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.build import NO_IMAGE_TOWER, build_model, build_processor, check_start, has_features, load_splits
from hf_vse.training.check_objective import check_objective
from hf_vse.training.checkpoints import last_checkpoint
from hf_vse.training.claim import STAGES, check_claim, claim
from hf_vse.training.foils import with_foil_column
from hf_vse.training.frozen import cache_frozen_towers
from hf_vse.training.interpolation import choose_weights, load_control
from hf_vse.training.joining import check_untrained, joined_models, recipes_of_seeds
from hf_vse.training.lora import check_adapters
from hf_vse.training.mosaics import check_mosaics_fit
from hf_vse.training.publish import check_hub_strategy
from hf_vse.training.queue import check_queue_size
from hf_vse.training.recipe import Recipe, check_together
from hf_vse.training.result import report_run
from hf_vse.training.teachers import check_teachers, with_teachers
from hf_vse.training.trainable import freeze
from hf_vse.training.trainer import VSETrainer

logger = logging.getLogger(__name__)

STAGE_RECORD = "stage.json"
WITH_PHOTOGRAPHS = ("scenes", "coco", "flickr30k", "flickr8k")
BESIDE_WEIGHTS = 2**20  # code, tokenizer and states in a folder with a model
FULL = 2**20  # free bytes below which a disk counts as full
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
ALWAYS_LISTED = ("azure_ml", "flyte")  # transformers does not tell whether they are installed


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Trains, evaluates and saves what a recipe describes. Nothing is written before the training begins.

    Returns:
        What is written to `metrics.json`: an evaluation with the records of the validation split and of the test
        split, if there are any, see `hf_vse.evaluation.record`, and the record of every stage.

    Raises:
        ValueError, OSError: the recipe, its data or the output directory cannot be used.
    """
    use_all_cores()
    common = training_arguments(recipe, recipe.output_dir)
    stages = [Stage(recipe, place) for place in places_here(recipe, common.use_cpu)]
    PartialState(cpu=common.use_cpu)
    check_named_parts(recipe)
    for stage in stages:
        check_stage(stage)
    check_claim(recipe)
    # Before training: the commit of the code that runs.
    where = environment() | {"processes": PartialState().num_processes}
    set_seed(common.seed)
    splits = load_splits(recipe.data)
    if has_features(splits["train"]):
        check_together(replace(recipe, values={"features": "columns of the data"} | recipe.values), "recipe")
    if recipe.control is not None:
        splits["control"] = load_control(recipe.control, splits)
    for stage in stages:
        check_batches(stage.args, splits["train"])
    processor = build_processor(recipe.model, splits["train"])
    train = run_seeds if common.joined_seeds > 1 else run_stages
    model, records, more = train(stages, processor, splits)
    if PartialState().is_main_process:
        model.save_pretrained(recipe.output_dir)
        processor.save_pretrained(recipe.output_dir)
    result = report_run(recipe, model, processor, splits, records, where, more, stages[-1].args)
    if common.push_to_hub and PartialState().is_main_process:
        publish(common)
    return result


def places_here(recipe: Recipe, on_cpu: bool) -> list[int]:
    """The numbers of the stages that run on this machine.

    Raises:
        ValueError: there is none.
    """
    left_out = [stage["name"] for stage in recipe.stages if stage.get("only_on") == "gpu" and on_cpu]
    if left_out:
        logger.warning("there is no GPU: left out are the stages %s, which are for one", ", ".join(left_out))
    if len(left_out) == len(recipe.stages):
        raise ValueError("every stage has only_on: gpu, and there is no GPU: remove it from one of them")
    return [place for place, stage in enumerate(recipe.stages) if stage["name"] not in left_out]


class Stage:
    """One stage of a run: its name, folder, model settings and training arguments."""

    def __init__(self, run: Recipe, place: int):
        self.run, self.place = run, place
        self.name = run.stages[place]["name"]
        self.folder = inside(run.output_dir / STAGES, self.name, "the name of a stage")
        recipe = run.stage(run.stages[place])
        self.model = recipe.model
        self.args = training_arguments(recipe, self.folder)

    @property
    def seed(self) -> int:
        """Seed of fresh weights and of the order of pairs, the same whether earlier stages were trained or loaded."""
        if self.place == 0:
            return self.args.seed
        return int(np.random.SeedSequence([self.args.seed, self.place]).generate_state(1)[0])


def run_stages(
    stages: list[Stage], processor: VSEProcessor, splits: dict[str, Any]
) -> tuple[VSEModel, list[dict[str, Any]], dict[str, Any]]:
    """Trains one stage after the other. Returns the model, the stages' records, and what else `metrics.json` holds."""
    model, records = None, []
    for stage in stages:
        model, record = run_stage(stage, model, processor, splits)
        records.append(record)
    assert model is not None  # there is a stage
    if stages[0].run.control is None:
        return model, records, {}
    return model, records, {"interpolation": keep_control(stages, model, processor, splits)}


def run_seeds(
    stages: list[Stage], processor: VSEProcessor, splits: dict[str, Any]
) -> tuple[VSEModel, list[dict[str, Any]], dict[str, Any]]:
    """Trains each seed in a folder of its own, where that is not done yet, and joins them. Returns what `run_stages`
    does; for `metrics.json` the recalls of each seed alone, as `seeds`: by seed, and by split."""
    runs = recipes_of_seeds(stages[0].run)
    check_seeds(stages, runs[:2], processor, splits)
    claim(stages[0].run)
    for run in runs:
        if (run.output_dir / METRICS).is_file():
            logger.info("seed %d was trained before: %s", run.values["seed"], run.output_dir)
            check_claim(run)
        else:
            run_recipe(run)
    PartialState().wait_for_everyone()
    names = [str(run.output_dir) for run in runs]
    model = joined_models([load_vse_model(name, "cpu") for name in names], names)
    records, seeds = [], {}
    for run in runs:
        result, seed = read_evaluation(run.output_dir / METRICS), str(run.values["seed"])
        seeds[seed] = {split: record["metrics"] for split, record in result["metrics"].items()}
        records += [stage | {"name": f"seed {seed}, {stage['name']}", "log": []} for stage in result["stages"]]
    return model, records, {"seeds": seeds}


def check_seeds(stages: list[Stage], runs: list[Recipe], processor: VSEProcessor, splits: dict[str, Any]) -> None:
    """Raises ValueError, before any training, for two seeds that could not be joined after it."""
    for place in (stage.place for stage in stages):
        models = []
        for stage in (Stage(run, place) for run in runs):
            set_seed(stage.seed)
            models.append(build_model(stage.model, processor, splits["train"]))
            freeze(models[-1], stage.args)
        check_untrained(models, [f"seed {run.values['seed']}" for run in runs])


def check_named_parts(recipe: Recipe) -> None:
    """Raises an error, before the data are read, for a model or a file that does not exist."""
    model = recipe.model
    for key in ("init_from", "image_tower", "text_tower"):
        name = getattr(model, key)
        if name is not None and not HUB_ID.fullmatch(name) and not Path(name).is_dir():
            raise ValueError(f"{key} {name!r:.80} is not a folder that exists, and no Hub id like org/name: give one")
    if model.init_from is not None:
        check_start(model.init_from, [recipe.stage(stage).model.config_options for stage in recipe.stages])
    given = (model.init_from, model.image_tower, model.vision_config, recipe.data.options.get("features"))
    if recipe.data.source in WITH_PHOTOGRAPHS and given == (None, None, None, None):
        raise ValueError(NO_IMAGE_TOWER)
    if model.image_tower_weights is not None and not Path(model.image_tower_weights).is_file():
        raise FileNotFoundError(
            f"image_tower_weights={model.image_tower_weights!r:.80} does not exist: give a safetensors file"
        )


def check_stage(stage: Stage) -> None:
    """Raises ValueError, before any work, for settings that a stage would refuse later."""
    args = stage.args
    if stage.model.loss_type is not None:
        check_objective(stage.model.loss_type, args, stage.model.config_options)
    check_hub_strategy(args)
    check_teachers(args)
    if args.frozen_cache_dir is not None and (args.freeze_image_tower or args.freeze_text_tower):
        check_output_folder("frozen_cache_dir", args.frozen_cache_dir)
    try:
        get_reporting_integration_callbacks(args.report_to)
    except ValueError as error:
        raise ValueError(f"report_to {args.report_to!r:.60}: {error}") from error
    if absent := set(args.report_to) - {*get_available_reporting_integrations(), *ALWAYS_LISTED}:
        raise ValueError(f"report_to: {', '.join(sorted(absent))} is not installed: pip install it, or give none")
    together = 1 if args.negatives == "local" else PartialState().num_processes
    if args.per_device_train_batch_size * together < 2:
        raise ValueError(
            f"per_device_train_batch_size={args.per_device_train_batch_size}: a batch of one pair has no negatives "
            "to contrast with: give at least 2"
        )


def check_batches(args: VSETrainingArguments, train: Dataset | IterableDataset) -> None:
    """Raises ValueError, before a tower runs, for batches that need more images or pairs than there are."""
    if isinstance(train, Dataset):
        counts = caption_counts(train)
        available = len(train) if args.unique_images else int(visits_of(counts, args.captions_per_image).sum())
        check_queue_size(args, counts)
        processes = PartialState().num_processes
        check_batch_size(args.per_device_train_batch_size, processes, available, args.unique_images)


def publish(args: VSETrainingArguments) -> None:
    """Pushes the finished run; it replaces what its stages pushed during training."""
    address = push_model(
        args.output_dir,
        args.hub_model_id,
        private=args.hub_private_repo,
        token=args.hub_token,
        revision=args.hub_revision,
    )
    print(f"published {address}")


def use_all_cores() -> None:
    """On a CPU, replaces the single thread per process that `accelerate launch` sets, which makes training slow."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1" and not torch.accelerator.is_available():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def training_arguments(recipe: Recipe, output_dir: Path) -> VSETrainingArguments:
    named: dict[str, Any] = {"hub_model_id": Path(os.path.abspath(recipe.output_dir)).name}  # not the name of a stage
    named |= {"eval_on_start": recipe.model.init_from is not None and recipe.values.get("eval_strategy") != "no"}
    try:
        return VSETrainingArguments(**named | recipe.section("training") | {"output_dir": str(output_dir)})
    except Exception as error:  # transformers raises many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"training arguments: {reason:.400}") from error


def run_stage(
    stage: Stage, previous: VSEModel | None, processor: VSEProcessor, splits: dict[str, Any]
) -> tuple[VSEModel, dict[str, Any]]:
    """Trains one stage, or loads its model if it was trained before. Returns the model and the stage's record."""
    finished = stage.folder / STAGE_RECORD
    if finished.is_file():
        logger.info("stage %s was trained before: %s", stage.name, stage.folder)
        return load_stage(stage.folder), read_stage_record(finished)
    set_seed(stage.seed)
    if previous is None:
        model = build_model(stage.model, processor, splits["train"])
    else:
        model = load_stage(Path(previous.name_or_path), **stage.model.config_options)
    freeze(model, stage.args)  # the trainer does it again; what is refused, is refused before anything is written
    check_adapters(model, stage.args)
    check_mosaics_fit(model, stage.args)
    there = sum(path.stat().st_size for path in stage.folder.rglob("*") if path.is_file())
    check_output_folder("output_dir", stage.folder, bytes_needed(model, stage.args) - there)
    claim(stage.run)
    record = train_stage(stage, model, processor, splits)
    return load_stage(stage.folder).to(stage.args.device), record


def keep_control(
    stages: list[Stage], model: VSEModel, processor: VSEProcessor, splits: dict[str, Any]
) -> dict[str, Any]:
    """Leaves the model with the chosen weights between the start of the run and its end, see `choose_weights`."""
    first, args = stages[0], stages[-1].args
    assert first.run.control is not None  # the data that choose
    set_seed(first.seed)
    start = build_model(first.model, processor, splits["train"]).state_dict()
    read = {name: splits[name] for name in ("validation", "control")}
    frozen = {(stage.args.freeze_image_tower, stage.args.freeze_text_tower) for stage in stages}
    if len(frozen) == 1:  # then a frozen tower is the same at the start and at the end
        read = cache_frozen_towers(model, processor, read, args)
    found = choose_weights(model, start, processor, read["validation"], read["control"], args)
    return {"control": first.run.control.to_dict()} | found


def read_stage_record(path: Path) -> dict[str, Any]:
    """The record of a finished stage."""
    record = read_json(path, dict)
    missing = [key for key in ("name", "loss_type", "log") if key not in record]
    if missing or not isinstance(record["log"], list):
        raise ValueError(f"{path} is not a record of a stage: remove it, and the stage is trained again")
    return record


def load_stage(folder: Path, **options: Any) -> VSEModel:
    """The model of a finished stage.

    Raises:
        ValueError: it is damaged, or the options of the next stage do not fit it.
    """
    try:
        return load_vse_model(folder, "cpu", **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the model of a stage cannot be used ({' '.join(str(error).split()):.300}): remove "
            f"{folder / STAGE_RECORD}, and the stage goes on from its last checkpoint"
        ) from error


def bytes_needed(model: VSEModel, args: VSETrainingArguments) -> int:
    """Disk space of a stage: its checkpoints with the two moments of Adam, its model, and the model of the run."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    checkpoint = weights if args.save_only_model else 3 * weights
    checkpoint += weights if args.ema_decay else 0
    checkpoint += 2 * 4 * args.queue_size * model.config.projection_dim if args.queue_size else 0
    kept = 0 if args.save_strategy == "no" else (args.save_total_limit or 1) + 1
    return kept * (checkpoint + BESIDE_WEIGHTS) + 2 * (weights + BESIDE_WEIGHTS)


def train_stage(stage: Stage, model: VSEModel, processor: VSEProcessor, splits: dict[str, Any]) -> dict[str, Any]:
    """Trains a model and saves it in the folder of the stage. The file with the record is written last."""
    args, folder = stage.args, stage.folder
    start, cpu_start = time.perf_counter(), time.process_time()
    align_special_tokens(model, processor)  # as `Trainer.train` does: what towers are kept for does not change then
    splits = splits | {"train": with_foil_column(splits["train"], args)}
    read = cache_frozen_towers(model, processor, with_teachers(splits, args), args)
    trainer = VSETrainer(
        model, args, train_dataset=read["train"], eval_dataset=read.get("validation"), processing_class=processor
    )
    before_training = time.perf_counter()
    with full_disk_as_error(folder):
        trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    record = {
        "name": stage.name,
        "loss_type": model.config.loss_type,
        "seconds": round(time.perf_counter() - start, 1),  # frozen towers included
        "cpu_seconds": round(time.process_time() - cpu_start, 1),  # of this process, without workers of its loader
        "seconds_before_training": round(before_training - start, 1),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        f"best_{args.metric_for_best_model}": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "log": trainer.state.log_history,
    }
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        write_json(folder / STAGE_RECORD, record)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    return record


@contextmanager
def full_disk_as_error(folder: Path) -> Iterator[None]:
    """Turns torch's `unexpected pos 8512 vs 8406` into an error that says that the disk is full."""
    try:
        yield
    except RuntimeError as error:
        if not folder.is_dir() or shutil.disk_usage(folder).free > FULL:
            raise
        raise OSError(
            f"the disk of {folder} is full ({' '.join(str(error).split()):.100}): make room and repeat the command, "
            "which goes on from the last checkpoint"
        ) from error
