"""One evaluation from start to end: load models and data, embed, judge, compare, record."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from datasets import Dataset, DatasetDict

from hf_vse.data.schema import CAPTIONS, IMAGE, flatten_captions
from hf_vse.data.sources import DEFAULT_SEED, VALIDATION_SHARE, load_pairs, with_validation
from hf_vse.encoders.load import load_encoder
from hf_vse.encoders.protocol import DualEncoder
from hf_vse.evaluation.composition.choice import OWN_FOILS, ask_own, ask_published, own_kind
from hf_vse.evaluation.corrected import corrected_results, training_bank
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.equal_captions import equal_caption_remark
from hf_vse.evaluation.given import holds_embeddings, judge_given
from hf_vse.evaluation.judge import Judgement, compare, judge
from hf_vse.evaluation.questions import check_classes_asked, check_foils_asked
from hf_vse.evaluation.record import recall_table, table_rows
from hf_vse.evaluation.zero_shot import TEMPLATES, load_labelled, zero_shot_classification

logger = logging.getLogger(__name__)

RECIPE_FILE = "recipe.yaml"
DATA_KEYS = (
    "data_dir", "split_file", "features", "image_column", "caption_column", "num_train", "num_eval", "difficulty",
    "image_size",
)  # fmt: skip


def read_recipe_file(model: str) -> dict[str, Any]:
    path = Path(model) / RECIPE_FILE
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def trained_on(model: str) -> dict[str, Any]:
    """The data settings in the recipe of a model folder; empty where there is none."""
    values = read_recipe_file(model)
    return {"dataset": values.get("dataset", "scenes")} | {key: values[key] for key in DATA_KEYS if key in values}


def held_out(model: str) -> dict[str, float]:
    """How the training run of a model folder chose its validation split, where the data have none."""
    recipe = read_recipe_file(model)
    return {"share": recipe.get("validation_share", VALIDATION_SHARE), "seed": recipe.get("seed", DEFAULT_SEED)}


def data_settings(model: str, dataset: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """What to evaluate on: the settings given, and for the data of training its remaining ones."""
    known = trained_on(model)
    given = {key: value for key, value in given.items() if value is not None}
    if dataset is not None and dataset != known["dataset"]:
        return {"dataset": dataset} | given
    return known | given


@dataclass(frozen=True)
class Questions:
    """What is asked of every model.

    Args:
        split: the split of the data that are judged.
        diagnostics: also look for the reasons.
        foils: false captions to tell from the true ones, see `composition.sources`; None for none.
        foils_dir, foils_images: where published files of foils and their photographs lie.
        correction: also the numbers with a correction of hubs at query time, apart from all others.
        labelled: folder of classes or data set for zero-shot classification, with `label_column`, `templates`.
        keep: folder for the embeddings.
    """

    split: str = "test"
    diagnostics: bool = False
    foils: str | None = None
    foils_dir: str | None = None
    foils_images: str | None = None
    correction: str | None = None
    labelled: str | None = None
    label_column: str | None = None
    templates: Sequence[str] | None = None
    batch_size: int = 128
    num_workers: int = 0
    keep: Path | None = None
    progress: bool = True

    @property
    def encoding(self) -> dict[str, Any]:
        """How sentences are encoded."""
        return {"batch_size": self.batch_size, "progress": self.progress}

    @property
    def reading(self) -> dict[str, Any]:
        """How images are, too."""
        return self.encoding | {"num_workers": self.num_workers}


@dataclass(frozen=True)
class Loading:
    """How models are opened, see `load_encoder`."""

    device: str | None = None
    dtype: str | None = None
    kind: str = "auto"
    trust_remote_code: bool = False


@dataclass
class Evaluation:
    """The result of `evaluate_models`: `record` is JSON; `pictures` the photographs of the split, where there are."""

    record: dict[str, Any]
    judgements: list[Judgement]
    pictures: Dataset | None = None

    @property
    def table(self) -> str:
        """What a person wants to know first."""
        return summary(self.judgements, self.record.get("comparisons", []))


def evaluate_models(
    models: Sequence[str],
    dataset: str | None = None,
    questions: Questions | None = None,
    loading: Loading | None = None,
    **data: Any,
) -> Evaluation | None:
    """Judges models, by their names, on the same split, and compares them.

    Args:
        models: whatever `load_encoder` opens.
        dataset, data: as for `load_pairs`; what is not given is taken from the recipe of each model.

    Returns:
        None on all processes but the main one.
    """
    questions, loading = questions or Questions(), loading or Loading()
    check_foils_asked(questions.foils, questions.foils_dir, questions.foils_images)
    check_classes_asked(questions.labelled, questions.label_column, questions.templates)
    state = PartialState(cpu=not torch.accelerator.is_available())
    judgements, opened, settings = [], {}, {}
    for name in models:
        if holds_embeddings(name) and dataset is None:
            judgements.append(judge_given(name, diagnostics=questions.diagnostics))
            continue
        settings = data_settings(name, dataset, data)
        splits = opened.get(repr(settings)) or load_splits(name, settings, questions.split, state)
        opened[repr(settings)] = splits
        judgements.append(ask(name, loading, splits, settings, questions))
    if not state.is_main_process:
        return None
    records = [judgement.record for judgement in judgements]
    record = records[0] if len(records) == 1 else {"models": records, "comparisons": compare(judgements)}
    record = record | {"environment": environment() | {"processes": state.num_processes}}
    return Evaluation(
        record, judgements, pictures_of(splits[questions.split], settings, questions) if opened else None
    )


def load_splits(model: str, settings: dict[str, Any], split: str, state: PartialState) -> DatasetDict:
    """The data of a model, with a validation split chosen as in its training where the data have none."""
    options = dict(settings)
    source = options.pop("dataset")
    with state.local_main_process_first():
        splits = load_pairs(source, **options)
    if split == "validation" and split not in splits:
        splits = with_validation(splits, **held_out(model))
    if split not in splits:
        raise ValueError(f"{source} has no split {split!r}; choose one of {', '.join(splits)} with --split")
    return splits


def ask(name: str, loading: Loading, splits: DatasetDict, settings: dict[str, Any], questions: Questions) -> Judgement:
    """Everything about one model, or about the embeddings in a file."""
    dataset = splits[questions.split]
    train = splits["train"] if "train" in splits and questions.split != "train" else None
    options = {
        "source": settings["dataset"],
        "split": questions.split,
        "diagnostics": questions.diagnostics,
        "train_captions": None if train is None else flatten_captions(captions_of(train))[0],
    }
    if holds_embeddings(name):
        return judge_given(name, dataset, **options)
    if questions.correction is not None and train is None:
        raise ValueError(f"correction={questions.correction!r} needs a training split to learn hubs from")
    encoder = load_encoder(name, **vars(loading))
    judgement = judge(encoder, dataset, keep=questions.keep, **options, **questions.reading)
    if questions.correction is not None:
        bank = training_bank(encoder, train, keep=questions.keep, **questions.reading)
        judgement.record["corrected"] = corrected_results(judgement.pairs, bank, questions.correction)
    if PartialState().is_main_process:
        judgement.record |= ask_further(encoder, judgement, dataset, settings, questions)
    return judgement


def ask_further(
    encoder: DualEncoder, judgement: Judgement, dataset: Dataset, settings: dict[str, Any], questions: Questions
) -> dict[str, Any]:
    """What one process asks alone: foils and classes."""
    found: dict[str, Any] = {}
    if questions.foils in OWN_FOILS:
        kind = own_kind(questions.foils, settings["dataset"])
        rows = captions_of(dataset), questions.split, settings
        found["composition"] = ask_own(encoder, kind, judgement.pairs, *rows, **questions.encoding)
    elif questions.foils is not None:
        where = questions.foils_dir, questions.foils_images
        found["composition"] = ask_published(encoder, questions.foils, *where, **questions.reading)
    if questions.labelled is not None:
        labelled = load_labelled(questions.labelled, label_column=questions.label_column)
        templates = questions.templates or TEMPLATES
        found["zero_shot"] = zero_shot_classification(encoder, labelled, templates, **questions.reading)
    return found


def captions_of(dataset: Dataset) -> list[list[str]]:
    return dataset.with_format(None)[CAPTIONS][:]


def pictures_of(dataset: Dataset, settings: dict[str, Any], questions: Questions) -> Dataset | None:
    """The split with its photographs, which data of precomputed features may have beside them."""
    if IMAGE in dataset.column_names:
        return dataset
    options = {key: value for key, value in settings.items() if key not in ("dataset", "features")}
    try:
        found = load_pairs(settings["dataset"], **options)[questions.split]
    except (ValueError, OSError, KeyError) as error:
        logger.info("no photographs for the report: %s", error)
        return None
    return found if IMAGE in found.column_names and len(found) == len(dataset) else None


def distinct_names(judgements: Sequence[Judgement]) -> list[str]:
    """The last parts of the models' names, or the whole names where these are the same."""
    whole = [judgement.record["model"] for judgement in judgements]
    short = [Path(name).name or name for name in whole]
    return short if len(set(short)) == len(short) else whole


def summary(judgements: Sequence[Judgement], comparisons: Sequence[dict[str, Any]]) -> str:
    """Recalls, how sure they are, and whether the models differ."""
    names = distinct_names(judgements)
    lines = [evaluation_table(judgements, names), ""]
    for name, judgement in zip(names, judgements, strict=True):
        low, high = judgement.record["intervals"]["rsum"]
        rsum = judgement.record["metrics"]["rsum"]
        lines.append(f"{name}: rsum {rsum:.1f}, 95 % interval {low:.1f} to {high:.1f}")
    called = dict(zip((judgement.record["model"] for judgement in judgements), names, strict=True))
    for each in comparisons:
        found = each["metrics"]["rsum"]
        p_value = "< 0.001" if found["p_value"] < 0.001 else f"= {found['p_value']:.3f}"
        pair = f"{called[each['second']]} less {called[each['first']]}"
        lines.append(f"{pair}: rsum {found['difference']:+.1f}, p {p_value}")
    return "\n".join(lines)


def evaluation_table(judgements: Sequence[Judgement], names: Sequence[str]) -> str:
    """A line for each model and protocol of the field, and chance."""
    records = [judgement.record for judgement in judgements]
    titles = names if len(names) > 1 else [records[0]["split"] or "all"]
    rows = table_rows(dict(zip(titles, records, strict=True)))
    remark = equal_caption_remark(records[0])
    return "\n\n".join([records[0]["title"], recall_table(rows), *([remark] if remark else [])])
