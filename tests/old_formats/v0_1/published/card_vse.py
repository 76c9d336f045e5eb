"""The model card: written from the configuration and from what a training run left behind, signed, never a person's.

A card ends with a comment that holds a digest of it. Where the digest fits, nobody has touched the card and it may be
written anew; where it does not, the card is a person's and stays. Tags and licence may be changed without that.
"""

import hashlib
import json
import re
from collections.abc import Collection
from typing import Any

from huggingface_hub import CardData, EvalResult, ModelCard, ModelCardData, RepoCard

from .card_text_vse import (
    CITATION,
    DIRECTIONS,
    LEVELS,
    LIMITS,
    SHORT_NAMES,
    architecture,
    data,
    introduction,
    is_hub_id,
    objective,
    results,
    rows_of,
    training,
    usage,
)
from .configuration_vse import VSEConfig

SIGNATURE = re.compile(r"\n*<!-- Written by hf_vse, digest ([0-9a-f]{16})\.[^>]*-->\s*$")
# What a person, the Hub or a library changes in the header without making the card their own.
UNSIGNED = ("tags", "license", "license_name", "license_link", "dataset_info", "configs", "size_categories")


def digest_of(card: RepoCard) -> str:
    header = {key: value for key, value in card.data.to_dict().items() if key not in UNSIGNED}
    body = "\n".join(SIGNATURE.sub("", card.text).split("\n")).strip()
    text = json.dumps(header, sort_keys=True, default=str) + body.replace("\r\n", "\n")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def signed(data: CardData, body: str, kind: type[RepoCard] = ModelCard) -> str:
    """The text of a card with its signature."""
    card = kind(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n")
    kept = "Changed by hand, it is left alone by later uploads."
    return f"{str(card).rstrip()}\n\n<!-- Written by hf_vse, digest {digest_of(card)}. {kept} -->\n"


def is_ours(text: str, kind: type[RepoCard] = ModelCard) -> bool:
    """Whether a card may be written anew: nobody has changed it since it was signed, or it says nothing yet."""
    try:
        card = kind(text, ignore_metadata_errors=True)
    except Exception:  # of whichever library reads YAML: a header that only a person can have written
        return False
    found = SIGNATURE.search(card.text)
    if found:
        return found[1] == digest_of(card)
    return not card.text.strip() or card.text.strip() == empty_template().text.strip()


def empty_template() -> ModelCard:
    """What transformers uploads where there is no card."""
    words = (
        "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
        "automatically generated."
    )
    return ModelCard.from_template(ModelCardData(library_name="transformers"), model_description=words)


def model_card(
    config: VSEConfig,
    record: dict[str, Any],
    files: Collection[str],
    *,
    repo_id: str,
    num_parameters: int | None = None,
    license: str | None = None,
    tags: Collection[str] = (),
) -> str:
    """The signed text of a model card.

    Args:
        config: of the model.
        record: what `read_record` found in the directory of a run; may be empty.
        files: names of the files that lie next to the card.
        repo_id: where the model is published.
        num_parameters: of the model.
        license: of the weights; left out where nobody gave one.
        tags: further ones.
    """
    title = repo_id.rpartition("/")[2]
    parts = [
        f"# {title}",
        introduction(config, record),
        *[
            f"![For some sentences the images that score best.]({name})"
            for name in sorted(files)
            if "retrieval" in name
        ],
        f"## How to use it\n\n{usage(config, files, repo_id)}",
        f"## Results\n\n{results(record)}" if record.get("metrics") else "",
        f"## Model\n\n{architecture(config, num_parameters)}",
        f"## Objective\n\n{objective(config, record)}",
        f"## Data\n\n{data(record)}" if record.get("dataset") else "",
        f"## Training\n\n{training(record, files)}" if record else "",
        f"## Limits\n\n{LIMITS}",
        f"## Citation\n\n{CITATION}",
    ]
    header = metadata(config, record, title=title, license=license, tags=tags)
    return signed(header, "\n\n".join(part for part in parts if part))


def metadata(
    config: VSEConfig, record: dict[str, Any], *, title: str, license: str | None, tags: Collection[str]
) -> ModelCardData:
    dataset = record.get("dataset", "")
    own = ["image-text-retrieval", "visual-semantic-embedding", "dual-encoder", config.loss_type, "hf_vse"]
    found = eval_results(record)
    more = {"co2_eq_emissions": record["co2_eq_emissions"]} if "co2_eq_emissions" in record else {}
    return ModelCardData(
        language="en",
        license=license,
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        tags=[*own, *(tag for tag in tags if tag not in own)],
        base_model=base_models(config, record) or None,
        datasets=[dataset] if is_hub_id(dataset) else None,
        metrics=["recall"] if found else None,
        model_name=title if found else None,
        eval_results=found or None,
        **more,
    )


def base_models(config: VSEConfig, record: dict[str, Any]) -> list[str]:
    """Towers, or a whole model, that come from the Hub; what was loaded from a local file has no name there."""
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
        where = {
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


__all__ = ["is_ours", "model_card", "signed"]
