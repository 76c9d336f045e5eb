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

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from transformers import set_seed
from transformers.trainer import TRAINER_STATE_NAME

from hf_vse.encoders.vse import VSEEncoder
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.evaluator import PairEmbeddings, embed_pairs
from hf_vse.evaluation.record import recall_table, split_record
from hf_vse.hub.push import leave_card, push_model
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.build import build_model, build_processor, load_splits
from hf_vse.training.frozen import cache_frozen_towers
from hf_vse.training.pictures import draw_pictures
from hf_vse.training.recipe import Recipe
from hf_vse.training.trainer import VSETrainer

logger = logging.getLogger(__name__)

STAGE_RECORD = "stage.json"


def run_recipe(recipe: Recipe) -> dict[str, Any]:
    """Trains, evaluates and saves what a recipe describes.

    Returns:
        What is written to `metrics.json`: `metrics` of the validation split and of the test split, if there is one,
        and the record of every stage.
    """
    use_all_cores()
    common = training_arguments(recipe, recipe.output_dir)
    PartialState(cpu=common.use_cpu)
    claim(recipe)
    where = environment() | {"processes": PartialState().num_processes}  # of the code that runs, not of later edits
    set_seed(common.seed)
    splits = load_splits(recipe.data, common.max_broken_share, common.seed)
    processor = build_processor(recipe.model, splits["train"])
    model, records = None, []
    for overrides in recipe.stages:
        model, record = run_stage(recipe.stage(overrides), overrides["name"], model, processor, splits)
        records.append(record)
    if PartialState().is_main_process:
        model.save_pretrained(recipe.output_dir)
        processor.save_pretrained(recipe.output_dir)
    result = report(recipe, model, processor, splits, records, where)
    if common.push_to_hub and PartialState().is_main_process:
        publish(common)
    return result


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
    except (ValueError, TypeError) as error:
        raise ValueError(f"training arguments: {' '.join(str(error).split())}") from error


def claim(recipe: Recipe) -> None:
    """Writes the recipe into the output directory, or makes sure that what was trained there had the same.

    Raises:
        ValueError: the directory holds a run of another recipe; the message names the keys that differ.
    """
    path = recipe.output_dir / "recipe.yaml"
    asked = yaml.safe_load(recipe.to_yaml())
    with PartialState().main_process_first():
        trained = path.is_file() and (recipe.output_dir / "stages").is_dir()
        there = yaml.safe_load(path.read_text(encoding="utf-8")) if trained else asked
        different = sorted(key for key in there.keys() | asked.keys() if there.get(key) != asked.get(key))
        if different:
            raise ValueError(
                f"{recipe.output_dir} holds a run with another {', '.join(different)} (see {path}); "
                "give another --output_dir, or remove the directory to start anew"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(recipe.to_yaml(), encoding="utf-8")


def run_stage(
    stage: Recipe, name: str, previous: VSEModel | None, processor: VSEProcessor, splits: dict[str, Any]
) -> tuple[VSEModel, dict[str, Any]]:
    """Trains one stage, or loads what an earlier run made of it. Returns the model and the stage's record."""
    folder = stage.output_dir / "stages" / name
    finished = folder / STAGE_RECORD
    if finished.is_file():
        logger.info("stage %s was trained before: %s", name, folder)
        return VSEModel.from_pretrained(folder), json.loads(finished.read_text(encoding="utf-8"))
    args = training_arguments(stage, folder)
    set_seed(args.seed)  # fresh weights are the same whether the stage before was trained in this run or an earlier
    if previous is None:
        model = build_model(stage.model, processor, splits["train"])
    else:
        model = VSEModel.from_pretrained(previous.name_or_path, **stage.model.config_options)
    start = time.perf_counter()
    read = cache_frozen_towers(model, processor, splits, args)
    trainer = VSETrainer(
        model, args, train_dataset=read["train"], eval_dataset=read.get("validation"), processing_class=processor
    )
    before_training = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    record = {
        "name": name,
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
        finished.write_text(json.dumps(record, indent=1), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    trained = VSEModel.from_pretrained(folder).to(args.device)
    trainer.accelerator.free_memory()
    return trained, record


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; one that was being written when the run was killed lacks its last file."""
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    newest = max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
    if newest is not None:
        logger.info("continuing from %s", newest)
    return None if newest is None else str(newest)


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
        "recipe": recipe.values | {"stages": list(recipe.stages)},
    }
    if main:
        (recipe.output_dir / "metrics.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
        draw_pictures(recipe.output_dir, stages, splits, embedded)
        leave_card(recipe.output_dir)
    return result


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
