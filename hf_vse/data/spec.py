"""Which images and captions: everything that decides it, in one value.

Training, evaluation, galleries and the demo page load their data through a `DataSpec`. It is saved with a run and with
a gallery and read again, so that all of them see the same images under the same name, and no model is tested on
images that it was trained on.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from inspect import signature
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDatasetDict

from hf_vse.data.groups import SIMILAR, unit_features, with_groups, with_streamed_groups
from hf_vse.data.karpathy import HUB_DATASETS
from hf_vse.data.plain_yaml import parse_yaml
from hf_vse.data.schema import IMAGE, IMAGE_FEATURES, data_fingerprint
from hf_vse.data.sources import DEFAULT_SEED, SOURCES, VALIDATION_SHARE, load_pairs, with_validation
from hf_vse.files import read_json, read_text

logger = logging.getLogger(__name__)

RECORD_FILE, RECIPE_FILE = "metrics.json", "recipe.yaml"  # what a run leaves beside its model
OPTIONS = signature(load_pairs).parameters.keys() - {"source", "revision", "cache_dir"}
PATHS = ("data_dir", "split_file", "features")
NEAR_DUPLICATES = ("auto", "hash", "vectors", "none")
NO_DUPLICATES = ("scenes", *HUB_DATASETS)  # generated, or with official splits


@dataclass(frozen=True)
class DataSpec:
    """Images and captions that anybody who has the data finds again.

    Args:
        source: see `load_pairs`.
        options: those of `load_pairs`, without `revision` and `cache_dir`.
        revision: branch or commit of a Hub data set.
        split: the split that is meant; None for all of them.
        validation_share: share of `train` that is held out as `validation` where the source has no such split.
        seed: decides which images are held out; validation_seed or seed of the training run.
        fingerprint: of the held-out images and captions, so that others are refused; None if it is not known.
        near_duplicates: how near-duplicate images are found, one of `NEAR_DUPLICATES`, so that they are held out
            together; see `groups.py`. auto is hash for users' own photographs.
        group_column: column with equal values for images that are held out together.
    """

    source: str = "scenes"
    options: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    split: str | None = None
    validation_share: float = VALIDATION_SHARE
    seed: int = DEFAULT_SEED
    fingerprint: str | None = None
    near_duplicates: str = "none"
    group_column: str | None = None

    @classmethod
    def of_recipe(cls, values: Mapping[str, Any], where: str = RECIPE_FILE) -> "DataSpec":
        """The data of the flat keys of a recipe, of which nothing is held out where they are a stream.

        Raises:
            ValueError: a value that the key cannot have.
        """
        check_scalars({key: values.get(key) for key in ("dataset", "revision", *OPTIONS)}, where)
        share, seed = values.get("validation_share", VALIDATION_SHARE), values.get("validation_seed")
        seed = values.get("seed", DEFAULT_SEED) if seed is None else seed
        check_held_out(share, seed, where)
        options = {name: values[name] for name in OPTIONS - {"seed"} if values.get(name) is not None}
        share = 0 if options.get("streaming") else share
        source, groups = values.get("dataset", "scenes"), check_groups(values, "auto", where)
        return cls(source, options, values.get("revision"), None, share, seed, None, *groups)

    @classmethod
    def of_dict(cls, values: Mapping[str, Any], where: str) -> "DataSpec":
        """What `to_dict` gave; also the flat settings that a gallery of version 0.1 holds.

        Raises:
            ValueError: it is something else.
        """
        if "source" not in values and "dataset" in values:
            values = from_settings(values)
        if unknown := sorted(values.keys() - cls.__dataclass_fields__):
            raise ValueError(f"{where} has the unknown field {unknown[0]!r:.60}: remove it")
        spec = cls(**values)
        if not isinstance(spec.options, Mapping) or not isinstance(spec.source, str):
            raise ValueError(f"{where} does not say where the data are: source must be text, options an object")
        if unknown := sorted(spec.options.keys() - OPTIONS):
            raise ValueError(f"{where}: {spec.source} has no setting {unknown[0]!r:.60}: remove it")
        others = {"revision": spec.revision, "split": spec.split, "fingerprint": spec.fingerprint}
        check_scalars(others | dict(spec.options), where)
        check_held_out(spec.validation_share, spec.seed, where)
        check_groups(values, "none", where)
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        options = {name: os.fspath(value) if name in PATHS else value for name, value in sorted(self.options.items())}
        return asdict(self) | {"options": options}

    @classmethod
    def of_model(
        cls, model: str | Path, source: str | None = None, split: str | None = None, **given: Any
    ) -> "DataSpec":
        """The data that a model was trained on, or other data with the same held-out share and seed.

        Args:
            model: a folder in which a run left its record, or any other name.
            source: other data; by default those of training, and the scenes where nothing says.
            given: options of `load_pairs`, which win over those of training.

        Raises:
            ValueError: what the run left is damaged.
        """
        known = recorded(Path(model)) or cls()
        given = {name: value for name, value in given.items() if value is not None}
        if source is not None and not is_same(source, known.source):
            others: dict[str, Any] = {"fingerprint": None, "near_duplicates": "none", "group_column": None}
            known = replace(known, source=source, options={}, revision=None, **others)
        options = {name: value for name, value in known.options.items() if name != "streaming"} | given
        revision = options.pop("revision", known.revision)
        fingerprint = None if given else known.fingerprint
        return replace(known, options=options, revision=revision, split=split, fingerprint=fingerprint)

    def load(self) -> DatasetDict | IterableDatasetDict:
        """All splits; `validation` is held out of `train` where the source has none and no other split is meant.

        Raises:
            ValueError: there is no split as the one that is meant, or other images would be held out than in training.
        """
        splits = self.with_groups(load_pairs(self.source, revision=self.revision, **self.options))
        without = self.split in (None, "validation") and "train" in splits and "validation" not in splits
        if without and self.validation_share:
            splits = type(splits)(with_validation(splits, self.validation_share, self.seed))
            if self.fingerprint and data_fingerprint(splits["validation"]) != self.fingerprint:
                raise ValueError(
                    f"{self.source} has changed since training: other images would be held out, among them some that "
                    "the model was trained on; restore the data, or give others with --dataset or --data_dir"
                )
        if self.split is not None and self.split not in splits:
            raise ValueError(
                f"{self.source} has no split {self.split!r}; choose one of {', '.join(splits)} with --split"
            )
        return splits

    def with_groups(self, splits: DatasetDict | IterableDatasetDict) -> DatasetDict | IterableDatasetDict:
        """The splits with the groups of their images, where `near_duplicates` or `group_column` asks for any."""
        if isinstance(splits, IterableDatasetDict):
            return self.with_streamed_groups(splits)
        kind = self.near_duplicates
        images = all(IMAGE in split.column_names for split in splits.values())
        if kind == "auto":
            kind = "hash" if images and self.source not in NO_DUPLICATES else "none"
        if kind == "hash" and not images:
            raise ValueError(f"near_duplicates=hash looks at all photographs, and {self.source} has none: remove it")
        features = all(IMAGE_FEATURES in split.column_names for split in splits.values())
        if kind == "vectors" and not features:
            raise ValueError(
                f"near_duplicates=vectors compares precomputed features, and {self.source} has none: compute them "
                "with hf-vse features, or use hash"
            )
        if kind == "none":
            return splits if self.group_column is None else with_groups(splits, self.group_column)
        if kind == "vectors":
            return with_groups(splits, self.group_column, [unit_features(split) for split in splits.values()], SIMILAR)
        from hf_vse.data.image_hashes import NEAR, image_hashes  # imports torch

        return with_groups(splits, self.group_column, [image_hashes(split) for split in splits.values()], NEAR)

    def with_streamed_groups(self, streams: IterableDatasetDict) -> IterableDatasetDict:
        """The streams with the groups of `group_column`."""
        if self.near_duplicates in ("hash", "vectors"):
            raise ValueError(
                f"near_duplicates={self.near_duplicates} compares all images, which a stream does not have at once: "
                "use streaming=False, or group_column, or near_duplicates=none"
            )
        if self.group_column is not None:
            return with_streamed_groups(streams, self.group_column)
        if self.near_duplicates == "auto" and self.source not in NO_DUPLICATES:
            logger.info(
                "near-duplicates are not looked for in a stream and are negatives of each other: use "
                "streaming=False, or group_column"
            )
        return streams

    def load_split(self) -> Dataset:
        """The split that is meant."""
        return self.load()[self.split]

    def absolute(self) -> "DataSpec":
        """The same for somebody who works in another folder."""
        options = {name: whole_path(value) if name in PATHS else value for name, value in self.options.items()}
        return replace(
            self, source=self.source if self.source in SOURCES else whole_path(self.source), options=options
        )


def whole_path(name: str | Path) -> str:
    """The absolute path of a file or folder that exists, else the name as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else os.fspath(name)


def is_same(source: str, other: str) -> bool:
    """Whether two names stand for one source; a folder has many."""
    own = {source, other} & {*SOURCES}
    return source == other or (not own and os.path.exists(source) and whole_path(source) == whole_path(other))


def recorded(folder: Path) -> DataSpec | None:
    """The data in the record of a finished run, or of an older or unfinished one in its recipe; None without either.

    Raises:
        ValueError: one of the files is damaged.
    """
    record, recipe = folder / RECORD_FILE, folder / RECIPE_FILE
    values = read_json(record, dict) if record.is_file() else {}
    values = values if "stages" in values else {}  # an evaluation has none
    if isinstance(values.get("data"), dict):
        spec = DataSpec.of_dict(values["data"], f"{record}: data")
    elif recipe.is_file():
        written = parse_yaml(read_text(recipe), str(recipe))
        if not isinstance(written, dict):
            what = f"{recipe} holds {type(written).__name__}, no recipe"
            raise ValueError(f"{what}: repair it, or remove it and give --dataset")
        older = {"near_duplicates": "none"} if values else {}  # of a finished run
        spec = DataSpec.of_recipe(older | written, str(recipe))
    else:
        return None
    for name in ("metrics", "validation"):
        inner = values.get(name)
        values = inner if isinstance(inner, dict) else {}
    fingerprint = values.get("fingerprint")
    return replace(spec, fingerprint=fingerprint if isinstance(fingerprint, str) else None)


def from_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `DataSpec` from the origin of a gallery of version 0.1: options beside `dataset` and `split`."""
    held_out = values.get("held_out") or {}
    fields = {"source": values["dataset"], "revision": values.get("revision"), "split": values.get("split")}
    fields |= {"validation_share": held_out.get("share", VALIDATION_SHARE), "seed": held_out.get("seed", DEFAULT_SEED)}
    others = ("dataset", "revision", "split", "held_out")
    return fields | {"options": {name: value for name, value in values.items() if name not in others}}


def check_scalars(values: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for a value that is not a single text or number."""
    for name, value in values.items():
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{where}: {name} is {value!r:.60}, no single text or number: repair it")


def check_groups(values: Mapping[str, Any], default: str, where: str) -> tuple[str, str | None]:
    """`near_duplicates` and `group_column` of a file; raises ValueError where they are something else."""
    kind, column = values.get("near_duplicates", default), values.get("group_column")
    if kind not in NEAR_DUPLICATES:
        raise ValueError(
            f"{where}: near_duplicates is {kind!r:.60}, not one of {', '.join(NEAR_DUPLICATES)}: repair it"
        )
    if not isinstance(column, str | None):
        raise ValueError(f"{where}: group_column is {column!r:.60}, no name of a column: repair it")
    return kind, column


def check_held_out(share: Any, seed: Any, where: str) -> None:
    """Raises ValueError where a file says something else than a share and a seed."""
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise ValueError(f"{where}: validation_share is {share!r:.60}, no share from 0 to below 1: repair it")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"{where}: seed is {seed!r:.60}, no whole number from 0 on: repair it")
