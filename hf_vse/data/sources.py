"""`load_pairs` opens any source of images and captions and returns it in the columns of `schema.py`.

A source is the generated scenes, a Karpathy folder, precomputed arrays, files in a common format, a saved data set, or
a data set of the Hub.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
from datasets import Dataset, DatasetDict, IterableDatasetDict

from hf_vse.data.columns import SPLITS, to_pairs
from hf_vse.data.features import load_precomp
from hf_vse.data.folders import check_image_folder, check_json_files
from hf_vse.data.groups import hold_out
from hf_vse.data.images import MAX_BROKEN_SHARE
from hf_vse.data.karpathy import CAPTIONS_PER_IMAGE, HUB_DATASETS, load_from_hub, load_karpathy, report_official_sizes
from hf_vse.data.scenes import load_scenes
from hf_vse.data.schema import CAPTIONS
from hf_vse.files import checked_name

logger = logging.getLogger(__name__)

VALIDATION_SHARE = 0.05
DEFAULT_SEED = 42  # the same as of transformers.TrainingArguments

FILE_SUFFIXES = {"parquet": (".parquet",), "webdataset": (".tar",), "json": (".jsonl", ".json")}
SOURCES = ("scenes", *HUB_DATASETS, "precomp", "imagefolder", *FILE_SUFFIXES)

# The options that each kind of source has; any other is an error.
_COLUMN_OPTIONS = {"data_dir", "image_column", "caption_column"}
_OPTIONS = {
    "scenes": {"num_train", "num_eval", "seed", "difficulty", "image_size"},
    "karpathy": {"data_dir", "split_file", "features", "restval"},
    "precomp": {"data_dir"},
    "saved": _COLUMN_OPTIONS,
    "hub": _COLUMN_OPTIONS | {"streaming", "revision"},
} | dict.fromkeys(("imagefolder", *FILE_SUFFIXES), _COLUMN_OPTIONS | {"streaming"})


def load_pairs(
    source: str,
    *,
    data_dir: str | Path | None = None,
    split_file: str | Path | None = None,
    features: str | Path | None = None,
    restval: bool = True,
    image_column: str | None = None,
    caption_column: str | None = None,
    streaming: bool = False,
    max_broken_share: float = MAX_BROKEN_SHARE,
    check_images: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    num_train: int | None = None,
    num_eval: int | None = None,
    seed: int | None = None,
    difficulty: str | None = None,
    image_size: int | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Images with their captions from any source, in the columns of `schema.py`, with the splits of the source.

    An option that has no effect on a source is an error. Recipes and commands take their options, the defaults and
    these texts from here.

    Args:
        source: where the data are: `scenes` (generated); `coco`, `flickr30k` or `flickr8k` (from data_dir, or else the
            Hub); `precomp`, `imagefolder`, `parquet`, `webdataset` or `json`, with data_dir; a local path; or a data
            set of the Hub, `org/name`.
        data_dir: folder with the images and the captions file; for parquet, webdataset and json also one file.
        split_file: Karpathy's split JSON, where it is not in data_dir.
        features: array (npy, safetensors) that takes the place of the images.
        restval: train on the restval images of coco too.
        image_column: column of the images, where its name does not tell.
        caption_column: column of the captions, where its name does not tell.
        streaming: read the training split as a stream, from files or the Hub; training then needs max_steps.
        max_broken_share: stop where a larger share of the images cannot be read.
        check_images: look for broken files before anything else.
        revision: branch or commit of a Hub data set.
        cache_dir: where `datasets` keeps what it reads.
        num_train: number of training images of the scenes.
        num_eval: number of images of the scenes' validation split, and of their test split.
        seed: seed of the scenes.
        difficulty: how hard the scenes are: easy, medium or hard.
        image_size: pixels of a side of the scenes' images.
    """
    given: dict[str, Any] = dict(data_dir=data_dir, split_file=split_file, features=features, revision=revision)
    given |= dict(image_column=image_column, caption_column=caption_column, streaming=streaming or None)
    given |= dict(num_train=num_train, num_eval=num_eval, seed=seed, difficulty=difficulty, image_size=image_size)
    given = {name: value for name, value in given.items() if value is not None}
    kind, path = _resolve(source, data_dir or (split_file and Path(split_file).parent))
    _check_options(source, kind, list(given) if restval else [*given, "restval"])
    checks: dict[str, Any] = dict(max_broken_share=max_broken_share, check_images=check_images)
    if kind == "scenes":
        return load_scenes(**given, cache_dir=cache_dir)
    of_tables = checks | dict(
        image_column=image_column, caption_column=caption_column, places=_places(path, cache_dir)
    )
    reading: dict[str, Any] = dict(streaming=streaming, cache_dir=cache_dir and str(cache_dir))
    if path is None:  # of the Hub
        with clear_errors(source):
            official = source in HUB_DATASETS
            loaded = load_from_hub(source, revision, data_dir, **reading)
            pairs = to_pairs(loaded, max_captions=CAPTIONS_PER_IMAGE if official else None, **of_tables)
            if official and isinstance(pairs, DatasetDict):  # the sizes of a stream are unknown
                report_official_sizes(source, {split: [len(c) for c in pairs[split][CAPTIONS]] for split in pairs})
            return pairs
    if kind == "karpathy":
        return load_karpathy(source, path, split_file=split_file, features=features, restval=restval, **checks)
    if kind == "precomp":
        return load_precomp(path)
    with clear_errors(path):
        return to_pairs(_load_files(kind, path, **reading), root=path, **of_tables)


def _places(path: Path | None, cache_dir: str | Path | None) -> list[Path]:
    """Folders that may hold the images of a data set: its own, and the caches for downloads and archives."""
    own = [] if path is None else [path.parent if path.is_file() else path]
    caches = [cache_dir or datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH]
    return [*own, *map(Path, caches), Path(huggingface_hub.constants.HF_HUB_CACHE)]


@contextmanager
def clear_errors(source: str | Path) -> Iterator[None]:
    """Turns errors of Arrow about a damaged table into one line."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, OverflowError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source} cannot be read: {reason:.200}; write the file again") from error


def with_validation(
    splits: dict[str, Any], share: float = VALIDATION_SHARE, seed: int = DEFAULT_SEED
) -> dict[str, Any]:
    """The splits with a part of `train` held out as `validation` if there is none; the seed decides which part."""
    splits = dict(splits)
    if "validation" in splits or not share:
        return splits
    if "train" not in splits:
        raise ValueError(
            f"there is no train split but {', '.join(splits)}: name the files or folders train, val, test"
        )
    if len(splits["train"]) < 2:
        raise ValueError(
            "the train split has one image and none can be held out: give more images, or a validation split"
        )
    parts = hold_out(splits["train"], share, seed)
    held_out, whole = len(parts["validation"]), len(splits["train"])
    logger.info("no validation split: %d of %d images are held out (validation_share=%g)", held_out, whole, share)
    return splits | parts


def _resolve(source: str, data_dir: str | Path | None) -> tuple[str, Path | None]:
    """The kind of source (a key of `_OPTIONS`) and the local path to read, if any."""
    if source == "scenes":
        return "scenes", None
    if source in HUB_DATASETS:
        return ("hub", None) if data_dir is None else ("karpathy", _existing(data_dir))
    if source in SOURCES:
        if data_dir is None:
            raise ValueError(f"source={source!r} needs data_dir: the folder to read")
        return source, _existing(data_dir, may_be_file=source in FILE_SUFFIXES)
    path = checked_name("source", Path(os.path.expanduser(source)).absolute())
    if path.exists():
        return _kind_of(path), path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return "hub", None
    names = ", ".join(SOURCES)
    error = FileNotFoundError if "/" in source else ValueError
    raise error(f"source={source!r} is not an existing path: give one, a Hub id like 'org/name', or one of {names}")


def _existing(data_dir: str | Path, may_be_file: bool = False) -> Path:
    path = checked_name("data_dir", Path(os.path.expanduser(data_dir)).absolute())
    if not path.exists():
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} does not exist: give the folder that holds the data")
    if path.is_file() and not may_be_file:
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} is a file: give the folder that holds the data")
    if path.is_dir() and not any(path.iterdir()):
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} is empty: put the data there or give another folder")
    return path


def _kind_of(path: Path) -> str:
    """The kind of the data set at a local path."""
    patterns = {"saved": ("dataset_dict.json", "state.json"), "precomp": ("*_ims.npy",)}
    patterns |= {"imagefolder": ("metadata.*", "*/metadata.*")}
    patterns |= {kind: tuple(f"**/*{suffix}" for suffix in suffixes) for kind, suffixes in FILE_SUFFIXES.items()}
    for kind, of_kind in patterns.items():
        if path.suffix in FILE_SUFFIXES.get(kind, ()) if path.is_file() else any(any(path.glob(p)) for p in of_kind):
            return kind
    raise ValueError(f"source={str(path)!r} is not recognised as a data set: name its kind and give it as data_dir")


def _check_options(source: str, kind: str, given: Sequence[str]) -> None:
    if wrong := ", ".join(name for name in given if name not in _OPTIONS[kind]):
        remedy = "give data_dir too" if kind == "hub" and source in HUB_DATASETS else "leave it out"
        options = ", ".join(sorted(_OPTIONS[kind]))
        raise ValueError(f"source={source!r} cannot be used with {wrong} but with {options}: {remedy}")


def _load_files(kind: str, path: Path, **options: Any) -> Dataset | DatasetDict | IterableDatasetDict:
    files = _data_files(path, FILE_SUFFIXES[kind]) if kind in FILE_SUFFIXES else {}
    if kind == "imagefolder":
        check_image_folder(path)
    if kind == "json":
        check_json_files([file for of_split in files.values() for file in of_split])
    try:
        if kind == "saved":
            return datasets.load_from_disk(str(path))
        if files:
            return datasets.load_dataset(kind, data_files=files, **options)
        return datasets.load_dataset(kind, data_dir=str(path), **options)
    except Exception as error:  # builders raise many types and wrap them
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read {path} as {kind}: {reason:.200}") from error


def _data_files(path: Path, suffixes: Sequence[str]) -> dict[str, list[str]]:
    """split -> files. The split is a word of the file's name ("val-00000.tar") or of a folder's, or else train."""
    root = path.parent if path.is_file() else path
    files: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix in suffixes:
            words = [w for part in reversed(file.relative_to(root).parts) for w in re.split("[^a-z]+", part.lower())]
            split = next((SPLITS[word] for word in words if word in SPLITS), "train")
            files.setdefault(split, []).append(str(file))
    if not files:
        raise FileNotFoundError(f"{path} holds no {' or '.join(suffixes)} file: give such a file or its folder")
    return files
