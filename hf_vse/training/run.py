"""One run from a recipe to a model directory: data, stages, evaluation, pictures.

    output_dir/                the model: weights, payload, processor; what `AutoModel.from_pretrained` takes
        recipe.yaml            what was asked for
        metrics.json           recalls, data fingerprints, versions, times
        training_curves.png    loss and validation recall
        retrieval.png          what the model finds for some sentences
        README.md              the model card, for `hf upload` and `hf-vse push`
        stages/NAME/           checkpoints of a stage and, when it is done, its model

The same recipe in the same directory continues where it stopped.
"""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from transformers import set_seed
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from hf_vse.encoders.vse import VSEEncoder
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.evaluator import PairEmbeddings, embed_pairs
from hf_vse.evaluation.record import recall_table, split_record
from hf_vse.files import check_output_folder, inside, read_json, write_json
from hf_vse.hub.push import leave_card, push_model
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.build import build_model, build_processor, load_splits
from hf_vse.training.checkpoints import last_checkpoint
from hf_vse.training.claim import STAGES, check_claim, claim
from hf_vse.training.frozen import cache_frozen_towers
from hf_vse.training.pictures import draw_pictures
from hf_vse.training.publish import check_hub_strategy
from hf_vse.training.recipe import Recipe
from hf_vse.training.trainer import VSETrainer, check_warmup

logger = logging.getLogger(__name__)

STAGE_RECORD = "stage.json"
ALWAYS_LISTED = ("azure_ml", "flyte")  # transformers does not tell whether they are installed


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Trains, evaluates and saves what a recipe describes. Nothing is written before the training begins.

    Returns:
        What is written to `metrics.json`: `metrics` of the validation split and of the test split, if there is one,
        and the record of every stage.

    Raises:
        ValueError, OSError: the recipe, its data or the output directory cannot be used.
    """
    use_all_cores()
    common = training_arguments(recipe, recipe.output_dir)
    stages = [Stage(recipe, place) for place in range(len(recipe.stages))]
    PartialState(cpu=common.use_cpu)
    for stage in stages:
        check_stage(stage)
    check_claim(recipe)
    where = environment() | {"processes": PartialState().num_processes}  # of the code that runs, not of later edits
    set_seed(common.seed)
    splits = load_splits(recipe.data, common.max_broken_share, common.seed)
    processor = build_processor(recipe.model, splits["train"])
    model, records = None, []
    for stage in stages:
        model, record = run_stage(stage, model, processor, splits)
        records.append(record)
    if PartialState().is_main_process:
        model.save_pretrained(recipe.output_dir)
        processor.save_pretrained(recipe.output_dir)
    result = report(recipe, model, processor, splits, records, where)
    if common.push_to_hub and PartialState().is_main_process:
        publish(common)
    return result


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
        """Of what starts fresh in this stage, whether the stages before were trained or loaded."""
        if self.place == 0:
            return self.args.seed
        return int(np.random.SeedSequence([self.args.seed, self.place]).generate_state(1)[0])


def check_stage(stage: Stage) -> None:
    """Raises ValueError, before any work, for what a later stage would refuse after the stages before it."""
    args = stage.args
    if stage.model.loss_type is not None:
        check_warmup(stage.model.loss_type, args)
    check_hub_strategy(args)
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


def publish(args: VSETrainingArguments) -> None:
    """The finished run in the place of what its stages pushed while they trained."""
    address = push_model(
        args.output_dir,
        args.hub_model_id,
        private=args.hub_private_repo,
        token=args.hub_token,
        revision=args.hub_revision,
    )
    print(f"published {address}")


def use_all_cores() -> None:
    """Undoes the single thread that `accelerate launch` gives to every process, which starves training on a CPU."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1" and not torch.accelerator.is_available():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def training_arguments(recipe: Recipe, output_dir: Path) -> VSETrainingArguments:
    named = {"hub_model_id": recipe.output_dir.resolve().name}  # not the name of a stage
    try:
        return VSETrainingArguments(**named | recipe.section("training") | {"output_dir": str(output_dir)})
    except Exception as error:  # transformers raises what it likes for an argument it cannot use
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"training arguments: {reason:.400}") from error


def run_stage(
    stage: Stage, previous: VSEModel | None, processor: VSEProcessor, splits: dict[str, Any]
) -> tuple[VSEModel, dict[str, Any]]:
    """Trains one stage, or loads what an earlier run made of it. Returns the model and the stage's record."""
    finished = stage.folder / STAGE_RECORD
    if finished.is_file():
        logger.info("stage %s was trained before: %s", stage.name, stage.folder)
        return load_stage(stage.folder), read_record(finished)
    set_seed(stage.seed)
    if previous is None:
        model = build_model(stage.model, processor, splits["train"])
    else:
        model = load_stage(Path(previous.name_or_path), **stage.model.config_options)
    check_output_folder("output_dir", stage.folder, bytes_needed(model, stage.args) - size_of(stage.folder))
    claim(stage.run)
    record = train_stage(stage, model, processor, splits)
    return load_stage(stage.folder).to(stage.args.device), record


def read_record(path: Path) -> dict[str, Any]:
    """The record of a stage that is done."""
    record = read_json(path, dict)
    missing = [key for key in ("name", "loss_type", "log") if key not in record]
    if missing or not isinstance(record["log"], list):
        raise ValueError(f"{path} is no record of a stage: remove it, and the stage is trained again")
    return record


def load_stage(folder: Path, **options: Any) -> VSEModel:
    """The model that a stage has made.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return VSEModel.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the model in {folder} is damaged ({' '.join(str(error).split()):.200}): remove {folder / STAGE_RECORD}, "
            "and the stage goes on from its last checkpoint"
        ) from error


def bytes_needed(model: VSEModel, args: VSETrainingArguments) -> int:
    """What a stage puts on the disk: its checkpoints with the two moments of Adam, its model, and that of the run."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    checkpoint = weights if args.save_only_model else 3 * weights
    kept = 0 if args.save_strategy == "no" else (args.save_total_limit or 1) + 1
    return kept * checkpoint + 2 * weights


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def train_stage(stage: Stage, model: VSEModel, processor: VSEProcessor, splits: dict[str, Any]) -> dict[str, Any]:
    """Trains a model into the folder of the stage; returns the record, whose file says that all of it is there."""
    args, folder = stage.args, stage.folder
    start = time.perf_counter()
    read = cache_frozen_towers(model, processor, splits, args)
    trainer = VSETrainer(
        model, args, train_dataset=read["train"], eval_dataset=read.get("validation"), processing_class=processor
    )
    before_training = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    record = {
        "name": stage.name,
        "loss_type": model.config.loss_type,
        "seconds": round(time.perf_counter() - start, 1),  # frozen towers included
        "seconds_before_training": round(before_training - start, 1),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "best_rsum": trainer.state.best_metric,
        "best_step": trainer.state.best_global_step,
        "log": trainer.state.log_history,
    }
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        write_json(folder / STAGE_RECORD, record)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    return record


def report(
    recipe: Recipe,
    model: VSEModel,
    processor: VSEProcessor,
    splits: dict[str, Any],
    stages: list[dict[str, Any]],
    where: dict[str, Any],
) -> dict[str, Any]:
    """Evaluates the finished model, writes numbers, pictures and the card."""
    main = PartialState().is_main_process
    model.to(PartialState().device)
    embedded: dict[str, PairEmbeddings] = {}
    records: dict[str, Any] = {}
    for name in (name for name in ("validation", "test") if name in splits):
        embedded[name] = embed_pairs(VSEEncoder(model, processor), splits[name], progress=main)
        records[name] = split_record(embedded[name], splits[name], recipe.data.dataset, name)
    result = {
        "dataset": recipe.data.dataset,
        "loss_type": model.config.loss_type,
        "metrics": records,
        "stages": [{key: value for key, value in stage.items() if key != "log"} for stage in stages],
        "environment": where,
        "recipe": recipe.public_values,
    }
    if main:
        write_json(recipe.output_dir / "metrics.json", result)
        with a_failure_is_a_remark("no pictures"):
            draw_pictures(recipe.output_dir, stages, splits, embedded)
        with a_failure_is_a_remark("no card"):
            leave_card(recipe.output_dir)
    return result


@contextmanager
def a_failure_is_a_remark(what: str) -> Iterator[None]:
    """Model and numbers are on the disk: what accompanies them must not end the run, whatever goes wrong with it."""
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s", what, " ".join(str(error).split()) or type(error).__name__)


def run_summary(output_dir: Path, result: dict[str, Any]) -> str:
    """What a person wants to know at the end of a run: the table of recalls, and where everything is."""
    records = result["metrics"]
    rows = {name: record["metrics"] for name, record in records.items()}
    for name, record in records.items():
        rows |= {f"{name} 5x1K": record["metrics_1k_folds"]} if "metrics_1k_folds" in record else {}
    lines = []
    if records:
        rows["chance"] = next(iter(records.values()))["chance"]
        lines = ["", result["loss_type"], recall_table(rows), ""]
    lines += [f"numbers   {output_dir / 'metrics.json'}", f"card      {output_dir / 'README.md'}"]
    lines += [f"picture   {picture}" for picture in sorted(output_dir.glob("*.png"))]
    return "\n".join([*lines, f'model     AutoModel.from_pretrained("{output_dir}", trust_remote_code=True)'])
