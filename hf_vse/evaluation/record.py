"""What an evaluation leaves behind: one form for `judge`, for a training run, and for `hf-vse evaluate`.

A **record** is what is known of one model on one split (`judge(...).record`). An **evaluation** holds records by
name, and is what `hf-vse evaluate` writes, for one model or several, and a run as its `metrics.json`:

    {"format": 2, "metrics": {NAME: RECORD, ...}, "comparisons": [...], "environment": {...}}

- `metrics`: NAME is the model's name in what `hf-vse evaluate` writes, and the split's in what a run writes.
- `comparisons`: of every two models `first`, `second` and `metrics`: for each metric what `compare_models` returns and
  `adjusted_p_value`, see `compare_judgements`. Absent where there is one model.
- `environment`: `versions`, `device`, `threads`, `commit` (None outside a checkout) and the number of `processes`.
- A run adds its `dataset`, its `data` as a `DataSpec`, `training_data` (how many `images` and `captions` it learned
  from, and their `equal_captions` and `groups` as in a record; nothing of a stream), `loss_type`, `stages` and
  `recipe`; one with `init_from` also
  `start`: the `model` that it started from, its records by split as `metrics`, and by split the `comparisons` of the
  result with it, see `compare_models`. One with `control_dataset` adds `interpolation`: the data as `control`, and
  what `training.interpolation.choose_weights` returns. One with `joined_seeds` adds `seeds`: by seed and split the
  `metrics` of that seed alone.

Entries of a record:

- `model`: its name; `model_facts`: what `Encoder.facts` says of it.
- `dataset`, `split`: their names, empty where they are not known.
- `title`: the name that the numbers may bear; `official`: whether it is a split of the field in full, null where
  nothing but its size says so (earlier versions wrote true there).
- `protocol`: a sentence on what `metrics` are.
- `images`, `captions`: how many were embedded; `broken_images`: how many could not be read and are left out.
- `fingerprint`: of the ids of the images and the captions; None where embeddings came without their data.
- `metrics`: what `retrieval_metrics` returns: recalls in percent, ranks from 1, and `rsum`, from 0 to 600.
- `chance`: the recalls of guessing in percent.
- `metrics_1k_folds`: the same as `metrics`, the mean of five folds; only for 5,000 images of COCO.
- `equal_captions`, `metrics_equal_captions`, `chance_equal_captions`: see `equal_caption_record`; absent where the
  captions are not known, the last two also where no caption belongs to several images.
- `groups`: how many groups of near-duplicate images there are in the split, the `images` in them, and how many the
  `largest` has; absent where nobody looked for any.
- `intervals`: of the recalls, mean ranks and `rsum` the 95 % interval `[low, high]`, see `recall_intervals`.
- `protocols`: by name `title`, `note` and `metrics`, see `protocol_results`.
- `diagnostics`, `composition`, `zero_shot`, `corrected`: see `diagnose`, `choice.py`, `zero_shot_classification` and
  `corrected_results`; each absent where it was not asked for.
- `identification`: where it was asked for, see `identification_metrics`; `of` which column, or `labelled`; how many
  images are `left_out`, those of things that the training split shows (`trained_on`) among them.
- `by_field`: for each field that was asked for the recalls of its values, see `recalls_by_field`.

A `VSETrainer` without a recipe knows its logged metrics only: it leaves everything from `equal_captions` on out.
`evaluate_retrieval` and `compute_retrieval_metrics` return the numbers of `metrics` flat, as a `Trainer` logs them,
with `images` and `texts` (the `captions` of a record).
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vse.evaluation.metrics import RECALLS
from hf_vse.evaluation.protocols import split_title
from hf_vse.files import read_json

FORMAT = 2

Record = Mapping[str, Any]


def plain_record(
    metrics: Mapping[str, float],
    chance: Mapping[str, float],
    *,
    images: int,
    captions: int,
    broken_images: int = 0,
    source: str = "",
    split: str = "",
    model: str = "",
    facts: Mapping[str, Any] | None = None,
    fingerprint: str | None = None,
    digests: Collection[str] | None = None,
) -> dict[str, Any]:
    """The entries that every record has; see above. `digests`: see `split_title`."""
    title, official = split_title(source, split, images, captions, broken_images, digests)
    return {
        "model": model,
        "model_facts": dict(facts or {}),
        "dataset": source,
        "split": split,
        "title": title,
        "official": official,
        "protocol": f"{images:,} images, {captions:,} captions, hit rate, ties against the query",
        "images": images,
        "captions": captions,
        "broken_images": broken_images,
        "fingerprint": fingerprint,
        "metrics": dict(metrics),
        "chance": dict(chance),
    }


def evaluation_of(
    records: Mapping[str, Record], environment: Mapping[str, Any], comparisons: Sequence[Record] = ()
) -> dict[str, Any]:
    """An evaluation, JSON as it stands; see above."""
    compared = {"comparisons": list(comparisons)} if comparisons else {}
    return {"format": FORMAT, "metrics": dict(records)} | compared | {"environment": dict(environment)}


def read_evaluation(path: str | Path) -> dict[str, Any]:
    """Reads an evaluation, also one that version 0.1 wrote: of one model, of several, or of a run.

    Raises:
        OSError, ValueError: the file cannot be read, or holds something else.
    """
    found = read_json(path, dict)
    known = found.get("format", 1)
    if known not in (1, FORMAT):
        raise ValueError(f"{path}: format {known!r:.20} is not known; 1 and {FORMAT} are: evaluate again, or update")
    evaluation = from_first_format(found) if known == 1 else found
    check_records(path, evaluation.get("metrics"))
    return evaluation


def from_first_format(found: dict[str, Any]) -> dict[str, Any]:
    """A run's file differed by names that its records lacked; `models` was a list, and one record stood alone."""
    metrics, models = found.get("metrics"), found.get("models")
    records: Any
    if isinstance(models, list) and all(isinstance(each, dict) and "model" in each for each in models):
        records = {str(each["model"]): each for each in models}
        rest = {key: value for key, value in found.items() if key != "models"}
    elif isinstance(metrics, dict) and "rsum" in metrics:
        record = {key: value for key, value in found.items() if key != "environment"}
        records = {str(found.get("model", "")): record}
        rest = {"environment": found.get("environment", {})}
    else:
        names = {"dataset": found.get("dataset", "")}
        records = metrics
        if isinstance(metrics, dict):
            records = {split: names | {"split": split} | each for split, each in metrics.items() if type(each) is dict}
        rest = found
    return rest | {"format": FORMAT, "metrics": records}


def check_records(path: str | Path, records: Any) -> None:
    """Raises ValueError where these are not records by name."""
    remedy = "write one with hf-vse evaluate"
    if not isinstance(records, dict):
        raise ValueError(f"{path} holds no evaluation: it lacks metrics, records by name; {remedy}")
    for name, record in records.items():
        metrics = record.get("metrics") if isinstance(record, dict) else None
        wrong = [key for key in (*RECALLS, "rsum") if type((metrics or {}).get(key)) not in (int, float)]
        if wrong:
            raise ValueError(f"{path}: metrics of {name!r:.60} lack the number {wrong[0]}; {remedy}")
