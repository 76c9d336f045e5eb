"""The one door to data: `load_pairs` opens any source and brings it to the columns of `schema.py`.

Opening: the generated scenes, a Karpathy folder, precomputed arrays, files in a common format, a saved data set, or
the Hub. Mapping (`to_pairs`): find the image, caption and id columns by type and customary name, make every row one
image with all its captions, and name the splits train, validation and test. Images are neither copied nor decoded.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, Image, IterableDataset, IterableDatasetDict, List, Value

from .features import load_precomp
from .images import find_broken_rows, image_keys
from .karpathy import CAPTIONS_PER_IMAGE, HUB_DATASETS, load_from_hub, load_karpathy, report_official_sizes
from .scenes import load_scenes
from .schema import CAPTION_IDS, CAPTIONS, IMAGE, IMAGE_FEATURES, IMAGE_ID

logger = logging.getLogger(__name__)

FILE_SUFFIXES = {"parquet": (".parquet",), "webdataset": (".tar",), "json": (".jsonl", ".json")}
SOURCES = ("scenes", *HUB_DATASETS, "precomp", "imagefolder", *FILE_SUFFIXES)

# The options that mean something to each kind of source; any other is an error rather than silently ignored.
_COLUMN_OPTIONS = {"data_dir", "image_column", "caption_column"}
_OPTIONS = {
    "scenes": {"num_train", "num_eval", "seed", "difficulty", "image_size"},
    "karpathy": {"data_dir", "split_file", "features", "restval"},
    "precomp": {"data_dir"},
    "saved": _COLUMN_OPTIONS,
    "hub": _COLUMN_OPTIONS | {"streaming", "revision"},
} | dict.fromkeys(("imagefolder", *FILE_SUFFIXES), _COLUMN_OPTIONS | {"streaming"})

_SPLITS = {"train": "train", "restval": "train", "test": "test"}
_SPLITS |= dict.fromkeys(["validation", "valid", "val", "dev"], "validation")

_IMAGE_NAMES = ("image", "img", "jpg", "png", "jpeg", "photo", "picture")
_CAPTION_NAMES = ("captions", "caption", "text", "texts", "sentences", "raw", "txt")
_IMAGE_ID_NAMES = ("cocoid", "image_id", "img_id", "imgid")
_CAPTION_ID_NAMES = ("sentids", "caption_ids", "sentid", "caption_id")
_FILE_NAMES = ("filename", "file_name", "image_path")
_TEXT_FEATURES = {IMAGE_ID: Value("int64"), CAPTIONS: List(Value("string")), CAPTION_IDS: List(Value("int64"))}


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
    max_broken_share: float = 0.01,
    check_images: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    num_train: int | None = None,
    num_eval: int | None = None,
    seed: int | None = None,
    difficulty: str | None = None,
    image_size: int | None = None,
) -> DatasetDict | IterableDatasetDict:
    """Images with their captions from any source, in the columns of `schema.py` and the splits that there are.

    Args:
        source: "scenes"; "coco", "flickr30k", "flickr8k" (from `data_dir` or else the Hub); "precomp", "imagefolder",
            "parquet", "webdataset", "json" with `data_dir`; a local path; or a data set of the Hub, "org/name".
        data_dir: the folder to read, or for parquet, webdataset and json also the file.
        image_column, caption_column: the columns to use where type and customary names do not tell.
        streaming: read while training, not before; from files or the Hub.
        split_file, features, restval, max_broken_share, check_images: see `load_karpathy`; for `num_train` to
            `image_size` see `load_scenes`.
    """
    given: dict[str, Any] = dict(data_dir=data_dir, split_file=split_file, features=features, revision=revision)
    given |= dict(image_column=image_column, caption_column=caption_column, streaming=streaming or None)
    given |= dict(num_train=num_train, num_eval=num_eval, seed=seed, difficulty=difficulty, image_size=image_size)
    given = {name: value for name, value in given.items() if value is not None}
    kind, path = _resolve(source, data_dir or (split_file and Path(split_file).parent))
    _check_options(source, kind, given if restval else [*given, "restval"])
    checks: dict[str, Any] = dict(max_broken_share=max_broken_share, check_images=check_images)
    if kind == "scenes":
        return load_scenes(**given, cache_dir=cache_dir)
    if kind == "karpathy":
        return load_karpathy(source, path, split_file=split_file, features=features, restval=restval, **checks)
    if kind == "precomp":
        return load_precomp(path)
    checks |= dict(image_column=image_column, caption_column=caption_column)
    reading: dict[str, Any] = dict(streaming=streaming, cache_dir=cache_dir and str(cache_dir))
    if kind == "hub":
        return _hub_pairs(source, load_from_hub(source, revision, data_dir, **reading), **checks)
    return to_pairs(_load_files(kind, path, **reading), root=path, **checks)


def _hub_pairs(source: str, loaded: DatasetDict | IterableDatasetDict, **options: Any) -> Any:
    official = source in HUB_DATASETS
    pairs = to_pairs(loaded, max_captions=CAPTIONS_PER_IMAGE if official else None, **options)
    if official and isinstance(pairs, DatasetDict):  # of a stream the sizes are unknown
        report_official_sizes(source, {split: [len(c) for c in pairs[split][CAPTIONS]] for split in pairs})
    return pairs


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
    path = Path(source).expanduser()
    if path.exists():
        return _kind_of(path), path.absolute()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return "hub", None
    names = ", ".join(SOURCES)
    error = FileNotFoundError if "/" in source else ValueError
    raise error(f"source={source!r} is no path that exists: give one, a Hub id like 'org/name', or one of {names}")


def _existing(data_dir: str | Path, may_be_file: bool = False) -> Path:
    path = Path(data_dir).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} does not exist: give the folder that holds the data")
    if path.is_file() and not may_be_file:
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} is a file: give the folder that holds the data")
    if path.is_dir() and not any(path.iterdir()):
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} is empty: put the data there or give another folder")
    return path


def _kind_of(path: Path) -> str:
    """What kind of data set lies at a local path that was given as the source."""
    patterns = {"saved": ("dataset_dict.json", "state.json"), "precomp": ("*_ims.npy",)}
    patterns |= {"imagefolder": ("metadata.*", "*/metadata.*")}
    patterns |= {kind: tuple(f"**/*{suffix}" for suffix in suffixes) for kind, suffixes in FILE_SUFFIXES.items()}
    for kind, of_kind in patterns.items():
        if path.suffix in FILE_SUFFIXES.get(kind, ()) if path.is_file() else any(any(path.glob(p)) for p in of_kind):
            return kind
    raise ValueError(f"source={str(path)!r} is no data set that is recognised: name its kind and give it as data_dir")


def _check_options(source: str, kind: str, given: Sequence[str]) -> None:
    if wrong := ", ".join(name for name in given if name not in _OPTIONS[kind]):
        remedy = "give data_dir too" if kind == "hub" and source in HUB_DATASETS else "leave it out"
        options = ", ".join(sorted(_OPTIONS[kind]))
        raise ValueError(f"source={source!r} cannot be used with {wrong} but with {options}: {remedy}")


def _load_files(kind: str, path: Path, **options: Any) -> Dataset | DatasetDict | IterableDatasetDict:
    if kind == "imagefolder" and next(path.rglob("metadata.*"), None) is None:
        raise FileNotFoundError(f"{path} has no metadata.jsonl or metadata.csv: add one with file_name and captions")
    files = _data_files(path, FILE_SUFFIXES[kind]) if kind in FILE_SUFFIXES else None
    try:
        if kind == "saved":
            return datasets.load_from_disk(str(path))
        if files is None:
            return datasets.load_dataset(kind, data_dir=str(path), **options)
        return datasets.load_dataset(kind, data_files=files, **options)
    except Exception as error:  # builders raise many types and wrap them
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot read {path} as {kind}: {reason}") from error


def _data_files(path: Path, suffixes: Sequence[str]) -> dict[str, list[str]]:
    """split -> files. The split is a word of the file's name ("val-00000.tar") or of a folder's, or else train."""
    root = path.parent if path.is_file() else path
    files: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix in suffixes:
            words = [w for part in reversed(file.relative_to(root).parts) for w in re.split("[^a-z]+", part.lower())]
            split = next((_SPLITS[word] for word in words if word in _SPLITS), "train")
            files.setdefault(split, []).append(str(file))
    if not files:
        raise FileNotFoundError(f"{path} holds no {' or '.join(suffixes)} file: give such a file or its folder")
    return files


@dataclass(frozen=True)
class Layout:
    """Where a source keeps what; a name stands for a column, or for a field of the column `json` (webdataset)."""

    image: str
    captions: tuple[str, ...]
    image_id: str | None
    caption_ids: str | None
    file_name: str | None


def find_layout(features: Features | None, image_column: str | None, caption_column: str | None) -> Layout:
    """The columns to read: the ones named, or else by type and customary name."""
    if features is None:
        raise ValueError("the columns of this streamed data set are unknown before it is read: use streaming=False")
    nested = features.get("json")
    available = {**(nested if isinstance(nested, dict) else {}), **features}

    def first(names: Sequence[str]) -> str | None:
        return next((name for name in names if name in available), None)

    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if not images and IMAGE_FEATURES in features:
        images = [IMAGE_FEATURES]
    if len(images) != 1:
        images = [name for name in _IMAGE_NAMES if name in (images or features)][:1]
    numbered = [name for name in features if re.fullmatch(r"caption_\d+", name)]
    captions = [name] if (name := first(_CAPTION_NAMES)) else sorted(numbered, key=lambda name: int(name[8:]))
    images, captions = [image_column] if image_column else images, [caption_column] if caption_column else captions
    for what, names, known in (("image", images, features), ("caption", captions, available)):
        if not names or names[0] not in known:
            problem = f"{what}_column={names[0]!r} is not" if names else f"no {what} column is recognised"
            raise ValueError(f"{problem} among the columns {', '.join(known)}: name it with {what}_column")
    return Layout(images[0], tuple(captions), first(_IMAGE_ID_NAMES), first(_CAPTION_ID_NAMES), first(_FILE_NAMES))


def _field(row: Mapping[str, Any], name: str | None) -> Any:
    return row[name] if name in row else (row.get("json") or {}).get(name)


@dataclass
class RowText:
    """One row without its image; ids are None or [] where there are none, `key` is equal for rows of one image."""

    captions: list[str]
    caption_ids: list[int]
    image_id: int | None
    key: Any
    split: str | None
    num_empty: int


def read_row(row: Mapping[str, Any], layout: Layout) -> RowText:
    """What a row says about its image; empty captions are left out."""
    values = [_field(row, name) for name in layout.captions]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    for text in texts:
        if not isinstance(text, str | None):
            raise ValueError(f"column {layout.captions[0]!r} holds {text!r:.60}, no caption: give caption_column")
    ids = _field(row, layout.caption_ids)
    ids = ids if isinstance(ids, list) else [ids]
    known = len(ids) == len(texts) and all(isinstance(caption_id, int) for caption_id in ids)
    kept = [place for place, text in enumerate(texts) if text and text.strip()]
    image_id = _field(row, layout.image_id)
    return RowText(
        captions=[texts[place].strip() for place in kept],
        caption_ids=[ids[place] for place in kept] if known else [],
        image_id=image_id if isinstance(image_id, int) else None,
        key=_field(row, layout.file_name) if image_id is None else image_id,
        split=_SPLITS.get(str(row.get("split"))),
        num_empty=len(texts) - len(kept),
    )


def to_pairs(
    dataset: Dataset | DatasetDict | IterableDataset | IterableDatasetDict,
    image_column: str | None = None,
    caption_column: str | None = None,
    *,
    root: Path | None = None,
    max_captions: int | None = None,
    max_broken_share: float = 0.01,
    check_images: bool = True,
) -> DatasetDict | IterableDatasetDict:
    """Any data set with images and captions, in the columns of `schema.py`.

    Where a row has one caption, rows of the same image (same id, file name or path) become one. A single split is
    divided by its column `split`, if it has one.

    Args:
        root: the folder (or a file in it) that relative paths in an image column of strings start from.
        max_captions: how many captions of an image to keep; all by default.
    """
    groups: dict[str, list] = {}
    for name, part in dataset.items() if isinstance(dataset, dict) else [("train", dataset)]:
        groups.setdefault(_SPLITS.get(name, name), []).append(part)
    parts = {name: datasets.concatenate_datasets(g) if len(g) > 1 else g[0] for name, g in groups.items()}
    first = next(iter(parts.values()))
    layout = find_layout(first.features, image_column, caption_column)
    root = root.parent if root and root.is_file() else root or Path()
    divide = len(parts) == 1 and "split" in first.features
    if isinstance(first, IterableDataset):
        if divide:
            raise ValueError("a column 'split' divides this data set, which streaming cannot do: use streaming=False")
        return IterableDatasetDict({name: _stream(part, layout, root, max_captions) for name, part in parts.items()})
    splits: dict[str, Dataset] = {}
    for name, part in parts.items():
        images = _image_column(part.with_format(None), layout, root)
        broken = find_broken_rows(images, max_broken_share) if check_images else set()
        rows = _read_rows(name, part.with_format(None), layout, broken)
        if not divide or not all(row.split for row in rows):
            rows = [replace(row, split=name) for row in rows]
        _join_rows_of_one_image(rows, images)
        splits |= _assemble(images, rows, max_captions)
    return DatasetDict(splits)


def _image_column(part: Dataset, layout: Layout, root: Path) -> Dataset:
    """The image column alone and under its final name, decoded lazily; a column of features stays as it is."""
    feature = part.features[layout.image]
    if layout.image == IMAGE_FEATURES:
        return part.select_columns([IMAGE_FEATURES])
    if feature in (Value("string"), Value("large_string")):
        paths = [path and str(root / path) for path in part[layout.image]]
        return Dataset.from_dict({IMAGE: paths}, features=Features({IMAGE: Image()}))
    images = part.select_columns([layout.image]).rename_columns({layout.image: IMAGE})
    return images if feature == Image() else images.cast_column(IMAGE, Image())


def _read_rows(name: str, part: Dataset, layout: Layout, broken: set[int]) -> list[RowText]:
    """All rows, so that they stay next to their images; those to leave out have no captions."""
    used = {*layout.captions, layout.image_id, layout.caption_ids, layout.file_name, "json", "split"}
    rows = [read_row(row, layout) for row in part.select_columns([c for c in part.column_names if c in used])]
    if empty := sum(row.num_empty for row in rows):
        logger.warning("split %s: %s empty captions left out", name, f"{empty:,}")
    if without := sum(not row.captions for row in rows):
        logger.warning("split %s: %s images without any caption left out", name, f"{without:,}")
    rows = [replace(row, captions=[], caption_ids=[]) if n in broken else row for n, row in enumerate(rows)]
    if not any(row.captions for row in rows):
        where = ", ".join(layout.captions)
        raise ValueError(f"split {name}: none of {len(rows):,} rows has a caption in {where}: give caption_column")
    return rows


def _join_rows_of_one_image(rows: Sequence[RowText], images: Dataset) -> None:
    """Where every row has one caption, those of an image go to its first row."""
    if any(len(row.captions) + row.num_empty > 1 for row in rows):
        return
    keys = [row.key for row in rows]
    if all(key is None for key in keys):
        keys = image_keys(images)
    first: dict[Any, RowText] = {}
    for row, key in zip(rows, keys, strict=True):
        leader = row if key is None else first.setdefault((row.split, key), row)
        if leader is not row:
            leader.captions += row.captions
            leader.caption_ids += row.caption_ids
            row.captions, row.caption_ids = [], []


def _assemble(images: Dataset, rows: Sequence[RowText], max_captions: int | None) -> dict[str, Dataset]:
    captions = [row.captions[:max_captions] for row in rows]
    caption_ids = [row.caption_ids[:max_captions] for row in rows]
    if list(map(len, caption_ids)) != list(map(len, captions)):  # not all are known
        running = count()
        caption_ids = [[next(running) for _ in texts] for texts in captions]
    image_ids = [row.image_id for row in rows]
    if None in image_ids:
        image_ids = list(range(len(rows)))
    columns = {IMAGE_ID: image_ids, CAPTIONS: captions, CAPTION_IDS: caption_ids}
    texts = Dataset.from_dict(columns, features=Features(_TEXT_FEATURES))
    pairs = datasets.concatenate_datasets([images, texts], axis=1)
    kept: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if row.captions:
            kept.setdefault(row.split, []).append(number)
    return {split: pairs.select(numbers) for split, numbers in kept.items()}


def _stream(part: IterableDataset, layout: Layout, root: Path, max_captions: int | None) -> IterableDataset:
    feature = part.features[layout.image]
    undecoded = part.cast_column(layout.image, Image(decode=False)) if isinstance(feature, Image) else part
    read = partial(_stream_batch, layout=layout, root=root, max_captions=max_captions)
    pairs = undecoded.map(read, batched=True, batch_size=32, remove_columns=list(part.features))
    # cast, not map(features=...): under that the images would stay undecoded for ever
    image = {IMAGE_FEATURES: feature} if layout.image == IMAGE_FEATURES else {IMAGE: Image()}
    return pairs.cast(Features(image | _TEXT_FEATURES))


def _stream_batch(batch: dict[str, list], layout: Layout, root: Path, max_captions: int | None) -> dict[str, list]:
    rows = []
    for values in zip(*batch.values(), strict=True):
        row = dict(zip(batch, values, strict=True))
        text = read_row(row, layout)
        if text.captions:
            image = row[layout.image]
            image = str(root / image) if isinstance(image, str) else image
            image_id = _identity(image) if text.image_id is None else text.image_id
            caption_ids = text.caption_ids or [_identity((image_id, caption)) for caption in text.captions]
            rows.append((image, image_id, text.captions[:max_captions], caption_ids[:max_captions]))
    target = IMAGE_FEATURES if layout.image == IMAGE_FEATURES else IMAGE
    names = (target, IMAGE_ID, CAPTIONS, CAPTION_IDS)
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _identity(value: Any) -> int:
    """A number that stands for the content: row numbers would repeat, because every process and worker counts anew."""
    content = (value["bytes"] or value["path"]) if isinstance(value, dict) else value
    digest = blake2b(content if isinstance(content, bytes) else repr(content).encode(), digest_size=8)
    return int.from_bytes(digest.digest()) >> 1  # fits int64
