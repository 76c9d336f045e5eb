"""One evaluation from start to end: load models and data, embed, judge, compare, record."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, DatasetDict

from hf_vse.data.schema import CAPTIONS, IMAGE, data_fingerprint, flatten_captions
from hf_vse.data.spec import DataSpec, recorded
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.hub_correction import Correction
from hf_vse.embed.load import load_encoder
from hf_vse.evaluation.by_field import check_fields_asked, recalls_by_field
from hf_vse.evaluation.composition.choice import OWN_FOILS, ask_own, ask_published, own_kind
from hf_vse.evaluation.corrected import corrected_results, training_bank
from hf_vse.evaluation.environment import environment
from hf_vse.evaluation.given import holds_embeddings, judge_given
from hf_vse.evaluation.judge import Judgement, compare_judgements, judge
from hf_vse.evaluation.questions import check_classes_asked, check_foils_asked
from hf_vse.evaluation.record import evaluation_of
from hf_vse.evaluation.things import (
    ENTITY,
    check_column_of_things,
    check_things_asked,
    distractor_vectors,
    things_of_labelled,
    things_of_split,
)
from hf_vse.evaluation.zero_shot import TEMPLATES, load_labelled, zero_shot_classification
from hf_vse.files import check_output_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Questions:
    """The questions asked of every model.

    Args:
        split: the split of the data that are judged.
        diagnostics: also run the diagnostics.
        foils: false captions to tell from the true ones, see `composition.choice`; None for none.
        foils_dir, foils_images: where the published files of foils and their images are.
        by: fields of the data; recalls are also told for each of their values, see `by_field.py`.
        correction: also measure with this hub correction at query time, see `corrected.py`.
        labelled: folder of classes or data set for zero-shot classification, with `label_column`, `templates`.
        identify: recognise things with `references` examples of each, among `distractors`, a folder of images: the
            classes of `labelled`, else the values of the column `entity`; see `identification.py`.
        keep: folder for the embeddings.
    """

    split: str = "test"
    diagnostics: bool = False
    by: Sequence[str] = ()
    foils: str | None = None
    foils_dir: str | None = None
    foils_images: str | None = None
    correction: Correction | None = None
    labelled: str | None = None
    label_column: str | None = None
    templates: Sequence[str] | None = None
    identify: bool = False
    entity: str | None = None
    references: int | None = None
    distractors: str | None = None
    batch_size: int = 128
    num_workers: int = 0
    keep: Path | None = None
    progress: bool = True

    @property
    def encoding(self) -> dict[str, Any]:
        """Options for encoding sentences."""
        return {"batch_size": self.batch_size, "progress": self.progress}

    @property
    def reading(self) -> dict[str, Any]:
        """Options for encoding images."""
        return self.encoding | {"num_workers": self.num_workers}


@dataclass(frozen=True)
class Loading:
    """Options of `load_encoder`."""

    device: str | None = None
    dtype: str | None = None
    kind: str = "auto"
    trust_remote_code: bool = False


@dataclass
class Evaluation:
    """The result of `evaluate_models`.

    Args:
        document: the evaluation, JSON as it stands, see `record.py`.
        images: the split with its column `image`, where there is one.
    """

    document: dict[str, Any]
    judgements: list[Judgement]
    images: Dataset | None = None


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
        dataset, data: as for `load_pairs`; what is not given is taken from the record of each model's training.

    Returns:
        None on all processes but the main one.
    """
    questions, loading = questions or Questions(), loading or Loading()
    if twice := [name for name, times in Counter(models).items() if times > 1]:
        raise ValueError(f"models: {twice[0]} is given twice; give each model once")
    if questions.keep is not None:
        check_output_folder("embeddings", questions.keep)
    check_foils_asked(questions.foils, questions.foils_dir, questions.foils_images)
    check_classes_asked(questions.labelled, questions.label_column, questions.templates)
    check_things_asked(questions.identify, questions.entity, questions.references, questions.distractors)
    state = PartialState(cpu=not torch.accelerator.is_available())
    with state.local_main_process_first():
        data_of = open_data(models, dataset, questions.split, data)
    for each, parts in data_of.values():
        check_fields_asked(parts[questions.split], questions.by)
        if questions.identify and questions.labelled is None:
            check_column_of_things(parts[questions.split], column_of_things(questions, each))
    judgements: list[Judgement] = []
    spec: DataSpec | None = None
    for name in models:
        if name not in data_of:
            if questions.identify:
                raise ValueError(f"identify: {name} holds embeddings, but no data say what they show: give --dataset")
            judgements.append(judge_given(name, diagnostics=questions.diagnostics))
            continue
        spec, splits = data_of[name]
        judgements.append(ask(name, loading, splits, spec, questions))
        judgements[-1].record |= told_by_field(judgements[-1], splits[questions.split], questions.by)
    if not state.is_main_process:
        return None
    if len({judgement.record["model"] for judgement in judgements}) < len(judgements):
        for name, judgement in zip(models, judgements, strict=True):  # the names that adapters chose are equal
            judgement.record["model"] = name
    records = {judgement.record["model"]: judgement.record for judgement in judgements}
    where = environment() | {"processes": state.num_processes}
    document = evaluation_of(records, where, compare_judgements(judgements))
    images = None if spec is None else with_images(splits[questions.split], spec)
    return Evaluation(document, judgements, images)


def open_data(
    models: Sequence[str], dataset: str | None, split: str, given: dict[str, Any]
) -> dict[str, tuple[DataSpec, DatasetDict]]:
    """For each model its data and their splits; none for embeddings that come with their own captions.

    A model without a record of its training, a pretrained one, is judged on what the first with a record held out.

    Raises:
        ValueError: the models are to be judged on different images.
    """
    opened: dict[str, DatasetDict] = {}
    found = {}
    trained = [name for name in models if recorded(Path(name)) is not None]
    for name in models:
        if holds_embeddings(name) and dataset is None:
            continue
        spec = DataSpec.of_model(name if name in trained else next(iter(trained), name), dataset, split, **given)
        key = repr(spec if split == "validation" else replace(spec, seed=0, validation_share=0))
        if key not in opened:
            opened[key] = spec.load()
        found[name] = spec, opened[key]
    images = {name: data_fingerprint(splits[split]) for name, (_, splits) in found.items()}
    first = next(iter(images), "")
    for name in images:
        if images[name] != images[first]:
            raise ValueError(
                f"{first} and {name} would be judged on different images of {split!r}, as each was trained on "
                "other data or held out other images: give --dataset and a split that the data have, such as test"
            )
    return found


def ask(name: str, loading: Loading, splits: DatasetDict, spec: DataSpec, questions: Questions) -> Judgement:
    """Judges one model, or the embeddings in a file."""
    dataset = splits[questions.split]
    train = splits["train"] if "train" in splits and questions.split != "train" else None
    options: dict[str, Any] = {
        "source": spec.source,
        "split": questions.split,
        "diagnostics": questions.diagnostics,
        "train_captions": None if train is None else flatten_captions(captions_by_image(train))[0],
    }
    if holds_embeddings(name):
        judgement = judge_given(name, dataset, **options)
        judgement.record |= ask_things(None, judgement, dataset, train, spec, questions)
        return judgement
    if questions.correction is not None and train is None:
        raise ValueError(f"correction={questions.correction!r} needs a training split to learn hubs from")
    encoder = load_encoder(name, **vars(loading))
    judgement = judge(encoder, dataset, keep=questions.keep, **options, **questions.reading)
    if questions.correction is not None:
        bank = training_bank(encoder, train, keep=questions.keep, **questions.reading)
        judgement.record["corrected"] = corrected_results(judgement.pairs, bank, questions.correction)
    if PartialState().is_main_process:
        judgement.record |= ask_further(encoder, judgement, dataset, spec, questions)
        judgement.record |= ask_things(encoder, judgement, dataset, train, spec, questions)
    return judgement


def told_by_field(judgement: Judgement, dataset: Dataset, fields: Sequence[str]) -> dict[str, Any]:
    """The entry `by_field` of a record, on the main process and where it was asked for."""
    if not fields or not PartialState().is_main_process:
        return {}
    pairs = judgement.pairs
    known = pairs.image_rows, pairs.text_to_image, judgement.ranks
    return {"by_field": {field: recalls_by_field(dataset, field, *known) for field in fields}}


def ask_further(
    encoder: Encoder, judgement: Judgement, dataset: Dataset, spec: DataSpec, questions: Questions
) -> dict[str, Any]:
    """Asks foils and classes, on one process."""
    found: dict[str, Any] = {}
    if questions.foils in OWN_FOILS:
        kind = own_kind(questions.foils, spec.source)
        rows = captions_by_image(dataset), questions.split, spec.options
        found["composition"] = ask_own(encoder, kind, judgement.pairs, *rows, **questions.encoding)
    elif questions.foils is not None:
        assert questions.foils_dir is not None  # see `check_foils_asked`
        where = questions.foils_dir, questions.foils_images
        found["composition"] = ask_published(encoder, questions.foils, *where, **questions.reading)
    if questions.labelled is not None:
        labelled = load_labelled(questions.labelled, label_column=questions.label_column)
        templates = questions.templates or TEMPLATES
        found["zero_shot"] = zero_shot_classification(encoder, labelled, templates, **questions.reading)
    return found


def column_of_things(questions: Questions, spec: DataSpec) -> str:
    return questions.entity or spec.group_column or ENTITY


def ask_things(
    encoder: Encoder | None,
    judgement: Judgement,
    dataset: Dataset,
    train: Dataset | None,
    spec: DataSpec,
    questions: Questions,
) -> dict[str, Any]:
    """The entry `identification` of a record, on the main process and where it was asked for."""
    if not questions.identify or not PartialState().is_main_process:
        return {}
    asked: dict[str, Any] = {"references": questions.references or 1, "progress": questions.progress}
    if encoder is None:
        if questions.distractors is not None or questions.labelled is not None:
            raise ValueError("identify: embeddings have no model that could read distractors or labelled images")
    elif questions.distractors is not None:
        asked["distractors"] = distractor_vectors(encoder, questions.distractors, questions.reading)
    column = column_of_things(questions, spec)
    if encoder is not None and questions.labelled is not None:
        labelled = load_labelled(questions.labelled, label_column=questions.label_column)
        return {"identification": things_of_labelled(encoder, labelled, train, column, questions.reading, **asked)}
    pairs = judgement.pairs
    found = things_of_split(pairs.image_embeds.numpy(), pairs.image_rows.tolist(), dataset, train, column, **asked)
    return {"identification": found}


def captions_by_image(dataset: Dataset) -> list[list[str]]:
    return dataset.with_format(None)[CAPTIONS][:]


def with_images(dataset: Dataset, spec: DataSpec) -> Dataset | None:
    """The split with its images, which data of precomputed features may also have; None without any."""
    if IMAGE in dataset.column_names:
        return dataset
    options = {name: value for name, value in spec.options.items() if name != "features"}
    try:
        found = replace(spec, options=options).load_split()
    except (ValueError, OSError) as error:
        logger.info("no images for the report: %s", error)
        return None
    same = IMAGE in found.column_names and data_fingerprint(found) == data_fingerprint(dataset)
    return found if same else None
