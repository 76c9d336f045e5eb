"""What a model card says, section by section, in words and tables."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from .configuration_vse import FEATURES_MODEL_TYPE, GRU_MODEL_TYPE, VSEConfig

PAPER = "https://arxiv.org/abs/2110.08872"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")

# name -> what it is known as, the row loss, the symbols in it, in words
LOSSES = {
    "nce": (
        "ConVSE, the first loss of the paper",
        "-log( e^{p/t} / sum_j e^{s_j/t} )",
        "s p t",
        "all candidates of the batch are contrasted with an anchor's own one",
    ),
    "hardnce": (
        "ConVSE++, the second loss of the paper as its authors' code has it",
        "max(0, (n + m - p) / t)",
        "p n t m",
        "only the hardest negative counts. It is `hinge_max / (t * batch)`: the published code computes VSE++'s hinge "
        "in another unit",
    ),
    "hardnce_smooth": (
        "ConVSE++ with the positive in the normaliser",
        "-log( e^{p/t} / (e^{p/t} + e^{(n+m)/t}) )",
        "p n t m",
        "only the hardest negative counts, and the loss never is exactly zero",
    ),
    "hinge_sum": (
        "VSE0 or UVS, https://arxiv.org/abs/1411.2539",
        "sum_j max(0, m + s_j - p)",
        "s p m",
        "every negative that comes closer than the margin counts",
    ),
    "hinge_max": (
        "VSE++, https://arxiv.org/abs/1707.05612",
        "max(0, m + n - p)",
        "p n m",
        "only the hardest negative counts, where it comes closer than the margin",
    ),
    "clip": (
        "CLIP, https://arxiv.org/abs/2103.00020",
        "-log( e^{p/t} / sum_j e^{s_j/t} )",
        "s p t",
        "as `nce`, with a temperature that is learned and the two directions averaged",
    ),
    "siglip": (
        "SigLIP, https://arxiv.org/abs/2303.15343",
        "-log sig(p/t + b) - sum_j log sig(-s_j/t - b)",
        "s p t b",
        "every pair of the batch is a decision of its own, with learned scale and bias",
    ),
}
REDUCTION = {"hinge_sum": "summed over the batch, the two directions added",
             "hinge_max": "summed over the batch, the two directions added",
             "clip": "the mean over the batch, the two directions averaged",
             "siglip": "the mean over the batch, the two directions averaged"}  # fmt: skip
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
}


def is_hub_id(name: str | None) -> bool:
    """Whether a name may be one of the Hub, and is no path here."""
    return bool(name and HUB_ID.fullmatch(name)) and not Path(name).exists()


def rows_of(record: dict[str, Any]) -> dict[str, tuple[str, dict[str, float]]]:
    """What was measured: a name for each row -> (split, metrics); COCO's folds of 1,000 are a row of their own."""
    rows = {}
    for split, measured in record.get("metrics", {}).items():
        rows[split] = split, measured["metrics"]
        if "metrics_1k_folds" in measured:
            rows[f"{split} 1K, mean of five folds"] = split, measured["metrics_1k_folds"]
    return rows


def introduction(config: VSEConfig, record: dict[str, Any]) -> str:
    known = LOSSES[config.loss_type][0].split(",")[0]
    on = f", trained on {dataset_words(record['dataset'])}" if record.get("dataset") else ""
    return (
        f"A visual-semantic embedding{on} with the objective `{config.loss_type}` ({known}): an image tower and a "
        f"text tower map to one space of {config.projection_dim} dimensions, so that a sentence finds its photograph "
        f"and a photograph its sentence. After [Jain & Verma, *Contrastive Learning of Visual-Semantic "
        f"Embeddings*]({PAPER})."
    )


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


def table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def architecture(config: VSEConfig, num_parameters: int | None) -> str:
    rows = [
        ["part", "what it is"],
        ["image tower", tower_words(config.vision_config)],
        ["pooled by", POOLING[config.vision_pooling]],
        ["text tower", tower_words(config.text_config)],
        ["pooled by", POOLING[config.text_pooling]],
        ["projection", f"{PROJECTION[config.projection_type]}, to unit vectors of {config.projection_dim} numbers"],
    ]
    return table(rows + ([["parameters", f"{num_parameters:,}"]] if num_parameters else []))


def objective(config: VSEConfig, record: dict[str, Any]) -> str:
    known, formula, symbols, words = LOSSES[config.loss_type]
    learned = "learned, from " if config.loss_type in ("clip", "siglip") else ""
    meaning = {
        "s": "s_j the cosine similarity of an anchor to candidate j",
        "p": "p its similarity to its own candidate",
        "n": "n that to the hardest negative",
        "t": f"t the temperature ({learned}{config.temperature:g})",
        "m": f"m the margin ({config.margin:g})",
        "b": f"b a bias (learned, from {config.logit_bias_init:g})",
    }
    masked = " Other captions of the same image are no negatives."
    if not record.get("recipe", {}).get("mask_same_image", True):
        masked = ""
    explained = ", ".join(meaning[each] for each in symbols.split())
    batch = REDUCTION.get(config.loss_type, "the mean over the batch, the two directions added")
    return (
        f"`{config.loss_type}` ({known}): {words}. For each anchor, image or sentence, with {explained}:\n\n"
        f"```\n{formula}\n```\n\nThe loss is {batch}.{masked}"
    )


def results(record: dict[str, Any]) -> str:
    columns = [f"{side}_{level}" for side in DIRECTIONS for level in (*LEVELS, "medr")]
    titles = [f"{side} {level}" for side in ("i→t", "t→i") for level in ("R@1", "R@5", "R@10", "MedR")]
    rows = [["split", *titles, "rsum"]]

    def add(name: str, metrics: dict[str, float]) -> None:
        rows.append([name, *(f"{metrics[each]:.1f}" if each in metrics else "" for each in columns)])
        rows[-1].append(f"{metrics['rsum']:.1f}" if "rsum" in metrics else "")

    for name, (_, metrics) in rows_of(record).items():
        add(name, metrics)
    shared = {name: each for name, each in record["metrics"].items() if "metrics_equal_captions" in each}
    for name, measured in shared.items():
        add(f"{name}, equal captions", measured["metrics_equal_captions"])
    chances = {name: each["chance"] for name, each in record["metrics"].items() if each.get("chance")}
    same = all(each == next(iter(chances.values())) for each in chances.values())
    for name, chance in {"chance" if same else f"chance, {name}": each for name, each in chances.items()}.items():
        add(name, chance)
    protocol = (
        "Recalls in percent, image to text (i→t) and back. R@K: a correct answer is among the first K; MedR: median "
        "rank of the first correct one; equal scores count against the query."
    )
    if shared:
        concerned = ", ".join(f"{each['equal_captions']['captions']:,} of {name}" for name, each in shared.items())
        protocol += (
            f" Some captions are word for word captions of other images too ({concerned}): they count as wrong there, "
            "and as right in the rows of equal captions."
        )
    return f"{table(rows)}\n\n{protocol}"


def data(record: dict[str, Any]) -> str:
    words = dataset_words(record["dataset"])
    rows = [["split", "images", "captions", "unreadable images", "fingerprint"]]
    for split, measured in record.get("metrics", {}).items():
        cells = [measured.get(name, "") for name in ("images", "captions", "broken_images", "fingerprint")]
        rows.append(
            [split, *(f"{cell:,}" if isinstance(cell, int) else f"`{cell}`" if cell else "" for cell in cells)]
        )
    text = f"Trained on the `train` split of {words}."
    if len(rows) > 1:
        text += f" Measured on:\n\n{table(rows)}"
    if record["dataset"] == "scenes":
        return text
    return f"{text}\n\nPhotographs and captions belong to their owners; their licence is separate from this one."


def training(record: dict[str, Any], files: Collection[str]) -> str:
    curves = [
        f"![Loss and validation recall.]({name})" for name in sorted(files) if name.startswith("training_curves")
    ]
    stages = record.get("stages", [])
    parts = [*curves]
    if stages:
        rows = [["stage", "objective", "epochs", "steps", "minutes"]]
        rows += [
            [stage["name"], f"`{stage['loss_type']}`", f"{stage['epochs'] or 0:g}", f"{stage['steps']:,}",
             f"{stage['seconds'] / 60:.1f}"] for stage in stages
        ]  # fmt: skip
        parts.append(table(rows))
    where = record.get("environment", {})
    if where.get("device"):
        minutes = sum(stage["seconds"] for stage in stages) / 60
        parts.append(f"{minutes:.1f} minutes in all on {where.get('processes', 1)} × {where['device']}.")
    if "co2_eq_emissions" in record:
        parts.append(
            f"Emissions: {record['co2_eq_emissions']['emissions']:g} g CO₂ equivalents, as codecarbon has it."
        )
    settings = {key: value for key, value in record.get("recipe", {}).items() if key not in NO_SETTINGS}
    if settings:
        rows = [[f"`{key}`", f"`{json.dumps(value)}`"] for key, value in sorted(settings.items())]
        parts.append(f"### Hyper-parameters\n\n{table([['field', 'value'], *rows])}")
        parts += [stage_settings(record["recipe"])] if len(stages) > 1 else []
    if where.get("versions"):
        parts.append("### Versions\n\n" + ", ".join(f"{name} {each}" for name, each in where["versions"].items()))
    return "\n\n".join(part for part in parts if part)


def stage_settings(recipe: dict[str, Any]) -> str:
    rows = [
        [
            f"`{stage['name']}`",
            ", ".join(f"`{key}={json.dumps(value)}`" for key, value in stage.items() if key != "name"),
        ]
        for stage in recipe.get("stages", [])
    ]
    return table([["stage", "its own settings"], *rows]) if rows else ""


def usage(config: VSEConfig, files: Collection[str], repo_id: str) -> str:
    pixels = config.vision_config.model_type != FEATURES_MODEL_TYPE
    given = "PIL images" if pixels else "arrays (dim,) or (regions, dim) of the network used in training"
    call = "images=photos" if pixels else "images=features"
    blocks = [
        f'''from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
outputs = model(**processor({call}, text=["a red circle", "two blue stars"]))  # {given}
outputs.logits_per_text.argmax(dim=1)  # for each sentence the best image
model.get_text_features(**processor(text="a red circle")).pooler_output  # unit vectors (1, {config.projection_dim})'''
    ]
    if pixels:
        blocks.append(
            f'''from transformers import pipeline

classify = pipeline("zero-shot-image-classification", model="{repo_id}", trust_remote_code=True)
classify("photo.jpg", candidate_labels=["a red circle", "two blue stars"], hypothesis_template="{{}}")'''
        )
    if "modules.json" in files:
        blocks.append(
            f'''from sentence_transformers import SentenceTransformer

SentenceTransformer("{repo_id}", trust_remote_code=True).encode(["a red circle", "two blue stars"])'''
        )
    text = "\n\n".join(f"```python\n{block}\n```" for block in blocks)
    exported = [name for name in sorted(files) if name.endswith(".onnx")]
    return text + (f"\n\nAlso as ONNX: {', '.join(f'`{name}`' for name in exported)}." if exported else "")


LIMITS = """- Captions are English, and words that training did not hold are unknown to a vocabulary learned from it.
- It ranks what it is given; it writes no captions and draws no pictures. A best match exists even where nothing fits.
- It repeats the biases of the photographs and captions it learned from. Do not use it to judge people.
- Numbers are those of the data named here; other photographs, captions or galleries give other ones.
- The licence of the data, and that of pretrained towers, is separate from that of these weights."""

CITATION = """```bibtex
@inproceedings{jain2022contrastive,
  title     = {Cross-modal Retrieval Using Contrastive Learning of Visual-Semantic Embeddings},
  author    = {Jain, Anurag and Verma, Yashaswi},
  booktitle = {26th International Conference on Pattern Recognition (ICPR)},
  year      = {2022},
  doi       = {10.1109/ICPR56361.2022.9956317},
  note      = {arXiv 2110.08872}
}
```"""
