"""The model card: `card.md.j2`, filled from the configuration and from what a training run left behind."""

import inspect
import json
import re
from collections.abc import Collection
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig

from hf_vse.evaluation.tables import equal_captions_matter
from hf_vse.hub.exported import ON_HUB, Exported
from hf_vse.hub.private import is_hub_id
from hf_vse.hub.signature import written_card
from hf_vse.model.configuration_vse import FEATURES_MODEL_TYPE, GRU_MODEL_TYPE, VSEConfig
from hf_vse.model.losses_vse import OBJECTIVES, OWN, Objective

DATASETS = {
    "scenes": "the generated scenes built into hf_vse",
    "coco": "MS-COCO, Karpathy split",
    "flickr30k": "Flickr30K, Karpathy split",
    "flickr8k": "Flickr8k, Karpathy split",
    "precomp": "precomputed image features",
}
SHORT_NAMES = {"scenes": "Scenes", "coco": "MS-COCO", "flickr30k": "Flickr30K", "flickr8k": "Flickr8k"}
NO_SETTINGS = ("stages", "output_dir", "disable_tqdm", "push_to_hub", "hub_model_id", "hub_private_repo")
DIRECTIONS = {"i2t": "Image-to-text", "t2i": "Text-to-image"}
LEVELS = ("r1", "r5", "r10")
POOLING = {
    "mean": "the mean over positions",
    "max": "the maximum over positions",
    "last": "the state of the last word",
    "cls": "the first position",
    "gpo": "generalized pooling operator",
    "pooler": "the tower's own",
}
SIZES = {
    "hidden_size": "hidden size",
    "hidden_sizes": "sizes",
    "depths": "depths",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "image_size": "pixels",
    "patch_size": "patch",
    "vocab_size": "words",
}
PROJECTION = {
    "linear": "a linear map",
    "mlp": "a linear map and the paper's head Linear(d, 2d), ReLU, Linear(2d, d)",
    "residual": "a linear map and a residual head Linear(d, 2d), ReLU, Linear(2d, d)",
    "none": "that of the model it started from",
}


def model_card(
    config: VSEConfig,
    record: dict[str, Any],
    files: Collection[str],
    *,
    repo_id: str,
    num_parameters: int | None = None,
    license: str | None = None,
    tags: Collection[str] = (),
    exported: Exported | None = None,
) -> str:
    """The signed text of a model card.

    Args:
        config: of the model.
        record: what `read_record` found in the directory of a run; may be empty.
        files: names of the files that lie next to the card.
        repo_id: where the model is published.
        num_parameters: of the model.
        license: of the weights; None leaves it out.
        tags: further ones.
        exported: the format of another library in which it is published.
    """
    title, recipe = repo_id.rpartition("/")[2], record.get("recipe", {})
    objective = objective_facts(config.loss_type, record)
    return written_card(
        "card.md.j2",
        metadata(config, record, title=title, license=license, tags=tags, exported=exported),
        title=title,
        repo_id=repo_id,
        config=config,
        record=record,
        files=sorted(files),
        onnx=[name for name in sorted(files) if name.endswith(".onnx")],
        dataset=record.get("dataset") and dataset_words(record["dataset"]),
        exported=exported and exported.card_values(),
        reads_pixels=config.vision_config.model_type != FEATURES_MODEL_TYPE,
        towers={"image": tower_words(config.vision_config), "text": tower_words(config.text_config)},
        pooling=POOLING,
        projection=PROJECTION,
        num_parameters=num_parameters,
        objective=objective,
        symbols=re.findall(r"\w+", objective["formula"]),
        masks_same_image=masked("mask_same_image", recipe),
        masks_equal_captions=masked("mask_equal_captions", recipe),
        trained_on=record.get("training_data", {}),
        results=results(record),
        equal_captions={name: each["equal_captions"]["captions"] for name, each in equal_captions_of(record).items()},
        measured=measured(record),
        stages=stages(record),
        minutes=sum(stage["seconds"] for stage in record.get("stages", [])) / 60,
        environment={"device": None, "versions": {}} | record.get("environment", {}),
        emissions=record.get("co2_eq_emissions"),
        settings=settings(recipe),
        stage_settings=stage_settings(recipe) if len(stages(record)) > max(1, len(record.get("seeds", {}))) else [],
    )


def metadata(
    config: VSEConfig,
    record: dict[str, Any],
    *,
    title: str,
    license: str | None,
    tags: Collection[str],
    exported: Exported | None,
) -> ModelCardData:
    dataset = record.get("dataset", "")
    of_file = OWN.fullmatch(config.loss_type)
    loss = of_file["function"] if of_file else config.loss_type
    own = ["image-text-retrieval", "visual-semantic-embedding", "dual-encoder", loss, "hf_vse"]
    found = eval_results(record)
    usual = "transformers", "zero-shot-image-classification"
    library, task = usual if exported is None else ON_HUB.get(exported.format, usual)
    more = {"co2_eq_emissions": record["co2_eq_emissions"]} if "co2_eq_emissions" in record else {}
    return ModelCardData(
        language="en",
        license=license,
        library_name=library,
        pipeline_tag=task,
        tags=[*own, *(tag for tag in tags if tag not in own)],
        base_model=base_models(config, record) or None,
        datasets=[dataset] if is_hub_id(dataset) else None,
        metrics=["recall"] if found else None,
        model_name=title if found else None,
        eval_results=found or None,
        **more,
    )


def base_models(config: VSEConfig, record: dict[str, Any]) -> list[str]:
    """Pretrained towers, or a whole model, from the Hub; local files are not named."""
    recipe = record.get("recipe", {})
    given = [recipe.get("init_from"), recipe.get("text_tower")]
    given += [] if recipe.get("image_tower_weights") else [recipe.get("image_tower")]
    given += [tower.name_or_path for tower in (config.vision_config, config.text_config)]
    return list(dict.fromkeys(name for name in given if is_hub_id(name)))


def eval_results(record: dict[str, Any]) -> list[EvalResult]:
    """The recalls in the form of the model index."""
    dataset = record.get("dataset") or "unknown"
    name = SHORT_NAMES.get(dataset, dataset)
    found = []
    for row, (split, metrics) in rows_of(record).items():
        where: dict[str, Any] = {
            "task_type": "image-text-retrieval",
            "task_name": "Image-text retrieval",
            "dataset_type": dataset,
            "dataset_name": f"{name} ({row})",
            "dataset_config": "1k_folds" if row != split else "default",
            "dataset_split": split,
        }
        for side, direction in DIRECTIONS.items():
            for level in LEVELS:
                found.append(
                    EvalResult(
                        metric_type=f"{side}_{level}",
                        metric_name=f"{direction} R@{level[1:]}",
                        metric_value=round(metrics[f"{side}_{level}"], 4),
                        **where,
                    )
                )
        found.append(
            EvalResult(metric_type="rsum", metric_name="rsum", metric_value=round(metrics["rsum"], 4), **where)
        )
    return found


def rows_of(record: dict[str, Any]) -> dict[str, tuple[str, dict[str, float]]]:
    """What was measured: a name for each row -> (split, metrics); COCO's folds of 1,000 are a row of their own."""
    rows = {}
    for split, measured in record.get("metrics", {}).items():
        rows[split] = split, measured["metrics"]
        if "metrics_1k_folds" in measured:
            rows[f"{split} 1K, mean of five folds"] = split, measured["metrics_1k_folds"]
    return rows


def equal_captions_of(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The splits on which equal captions change a recall."""
    return {split: each for split, each in record.get("metrics", {}).items() if equal_captions_matter(each)}


def results(record: dict[str, Any]) -> list[list[str]]:
    """The cells of the table of recalls: the model that a fine-tuning started from, splits, joined seeds, equal
    captions, chance."""
    measured, before = record.get("metrics", {}), record.get("start", {}).get("metrics", {})
    rows = {f"{name}, before fine-tuning": each["metrics"] for name, each in before.items()}
    rows |= {name: metrics for name, (_, metrics) in rows_of(record).items()}
    seeds = record.get("seeds", {}).items()
    rows |= {f"{name}, seed {seed} alone": each for seed, splits in seeds for name, each in splits.items()}
    equal = equal_captions_of(record)
    rows |= {f"{name}, equal captions": each["metrics_equal_captions"] for name, each in equal.items()}
    chances = {name: each["chance"] for name, each in measured.items() if each.get("chance")}
    same = all(each == next(iter(chances.values())) for each in chances.values())
    rows |= {"chance" if same else f"chance, {name}": each for name, each in chances.items()}
    columns = [*(f"{side}_{level}" for side in DIRECTIONS for level in (*LEVELS, "medr")), "rsum"]
    return [
        [name, *(f"{metrics[column]:.1f}" if column in metrics else "" for column in columns)]
        for name, metrics in rows.items()
    ]


def measured(record: dict[str, Any]) -> list[list[str]]:
    """The cells of the table of data: sizes and fingerprint of each split that was measured."""
    rows = []
    for split, each in record.get("metrics", {}).items():
        sizes = [each.get(name, "") for name in ("images", "captions", "broken_images")]
        digest = f"`{each['fingerprint']}`" if each.get("fingerprint") else ""
        rows.append([split, *(f"{size:,}" if isinstance(size, int) else size for size in sizes), digest])
    return rows


def stages(record: dict[str, Any]) -> list[list[str]]:
    return [
        [stage["name"], f"`{stage['loss_type']}`", f"{stage['epochs'] or 0:g}", f"{stage['steps']:,}",
         f"{stage['seconds'] / 60:.1f}"] for stage in record.get("stages", [])
    ]  # fmt: skip


def masked(field: str, recipe: dict[str, Any]) -> bool:
    """Whether a field of the training arguments that is on unless said otherwise was on in all stages."""
    return all((recipe | stage).get(field, True) for stage in recipe.get("stages") or [{}])


def settings(recipe: dict[str, Any]) -> list[list[str]]:
    known = {key: value for key, value in recipe.items() if key not in NO_SETTINGS}
    return [[f"`{key}`", f"`{json.dumps(value)}`"] for key, value in sorted(known.items())]


def stage_settings(recipe: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"`{stage['name']}`",
            ", ".join(f"`{key}={json.dumps(value)}`" for key, value in stage.items() if key != "name"),
        ]
        for stage in recipe.get("stages", [])
    ]


def objective_facts(loss_type: str, record: dict[str, Any]) -> dict[str, Any]:
    """What the table of objectives says; for a function in a file that is not loaded, what the run recorded."""
    if loss_type not in OBJECTIVES and "objective" in record:
        return record["objective"]
    chosen = OBJECTIVES.get(loss_type, Objective(lambda scores: scores, known_as="a function in a file"))
    formula, _, words = (inspect.getdoc(chosen.row_loss) or "").partition("\n\n")
    facts = {"known_as": chosen.known_as, "formula": formula, "words": " ".join(words.split())}
    return facts | {
        "reduction": chosen.reduction, "directions": chosen.directions, "learned": list(chosen.learned)
    }  # fmt: skip


def objective_record(loss_type: str) -> dict[str, Any]:
    """What the record of a run says of a function in a file; nothing of the objectives of the table."""
    return {"objective": objective_facts(loss_type, {})} if OWN.fullmatch(loss_type) else {}


def dataset_words(dataset: str) -> str:
    if is_hub_id(dataset):
        return f"[{dataset}](https://huggingface.co/datasets/{dataset})"
    return DATASETS.get(dataset, f"a collection of images and captions (`{dataset}`)")


def tower_words(config: PreTrainedConfig) -> str:
    """A tower in words, with its sizes."""
    values, kind = config.to_dict(), config.model_type
    if kind == FEATURES_MODEL_TYPE:
        return f"precomputed features of {values['hidden_size']:,} numbers; photographs are not read"
    if kind == GRU_MODEL_TYPE:
        ways = "bidirectional " if values["bidirectional"] else ""
        layers = "" if values["num_layers"] == 1 else f", {values['num_layers']} layers"
        return (
            f"{values['vocab_size']:,} words of {values['word_dim']} numbers, then a {ways}GRU of "
            f"{values['hidden_size']:,}{layers}"
        )
    if values.get("architecture"):
        return f"`{values['architecture']}` of timm"
    told = [f"{words} {plain(values[name])}" for name, words in SIZES.items() if values.get(name)]
    origin = f", from `{config.name_or_path}`" if is_hub_id(config.name_or_path) else ""
    return f"{kind} ({', '.join(told)}){origin}" if told else f"{kind}{origin}"


def plain(value: Any) -> str:
    return " ".join(map(plain, value)) if isinstance(value, list | tuple) else str(value)
