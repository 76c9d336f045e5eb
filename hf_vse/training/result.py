"""What a finished run leaves beside its model: numbers, pictures, the card, and a summary for the terminal."""

import os
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.evaluation.judge import judge
from hf_vse.evaluation.record import evaluation_of
from hf_vse.evaluation.tables import equal_caption_remark, group_remark, recall_table, table_rows
from hf_vse.files import write_json
from hf_vse.hub.card import objective_record
from hf_vse.hub.push import leave_card
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.before_after import compare_with_start, difference_lines
from hf_vse.training.frozen import with_kept_outputs
from hf_vse.training.interpolation import interpolation_lines
from hf_vse.training.pictures import draw_interpolation, draw_pictures, failure_as_warning
from hf_vse.training.recipe import Recipe
from hf_vse.training.training_data import training_data


def report_run(
    recipe: Recipe,
    model: VSEModel,
    processor: VSEProcessor,
    splits: dict[str, Any],
    stages: list[dict[str, Any]],
    where: dict[str, Any],
    more: dict[str, Any],
    args: VSETrainingArguments,
) -> dict[str, Any]:
    """Evaluates the finished model, writes numbers, pictures and the card; `more` is added to `metrics.json`."""
    main = PartialState().is_main_process
    model.to(PartialState().device)
    encoder = VSEEncoder(model, processor, Path(os.path.abspath(recipe.output_dir)).name)
    read = {name: splits[name] for name in ("validation", "test") if name in splits}
    if "validation" in read:  # training has read it too, through the same cache
        read["validation"] = with_kept_outputs(model, processor, read["validation"], args)
    judged = {
        name: judge(encoder, split, source=recipe.data.source, split=name, progress=main)
        for name, split in read.items()
    }
    result = evaluation_of({name: each.record for name, each in judged.items()}, where) | {
        "dataset": recipe.data.source,
        "data": recipe.data.to_dict(),
        "training_data": training_data(splits["train"]),
        "loss_type": model.config.loss_type,
        **objective_record(model.config.loss_type),
        "stages": [{key: value for key, value in stage.items() if key != "log"} for stage in stages],
        "recipe": recipe.public_values,
        **more,
    }
    if recipe.model.init_from is not None:
        result["start"] = compare_with_start(recipe.model.init_from, judged, splits, recipe.data.source)
    if main:
        write_json(recipe.output_dir / "metrics.json", result)
        with failure_as_warning("no pictures"):
            draw_pictures(recipe.output_dir, stages, splits, {name: each.pairs for name, each in judged.items()})
            draw_interpolation(recipe.output_dir, more.get("interpolation"))
        with failure_as_warning("no card"):
            leave_card(recipe.output_dir)
    return result


def run_summary(output_dir: Path, result: dict[str, Any]) -> str:
    """The table of recalls and the place of every file, for the terminal."""
    records = result["metrics"]
    lines = []
    if records:
        start = result.get("start", {}).get("metrics", {})
        before = {f"{name} before": each["metrics"] for name, each in start.items()}
        for seed, splits in result.get("seeds", {}).items():
            before |= {f"{name} seed {seed}": metrics for name, metrics in splits.items()}
        lines = ["", result["loss_type"], recall_table(before | table_rows(records)), ""]
        for remark_of in (equal_caption_remark, group_remark):
            lines += [f"{name}: {remark}" for name, each in records.items() if (remark := remark_of(each))]
        lines += interpolation_lines(result.get("interpolation")) + difference_lines(result)
        for stage in (each for each in result.get("stages", []) if each.get("best_entity_r1") is not None):
            found = f"{stage['best_entity_r1']:.1f} at step {stage['best_step']}, which is kept"
            lines += [f"stage {stage['name']}: entity R@1 of validation records {found}", ""]
    lines += [f"numbers   {output_dir / 'metrics.json'}", f"card      {output_dir / 'README.md'}"]
    lines += [f"picture   {picture}" for picture in sorted(output_dir.glob("*.png"))]
    return "\n".join([*lines, f'model     AutoModel.from_pretrained("{output_dir}", trust_remote_code=True)'])
