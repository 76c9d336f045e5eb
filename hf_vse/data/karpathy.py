"""COCO, Flickr30K and Flickr8k: a folder of images and a Karpathy split JSON become a DatasetDict.

Results are compared on the splits of Karpathy & Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image
Descriptions" (CVPR 2015), published as `dataset_{coco,flickr30k,flickr8k}.json`: `images[]` with `filename`, `split`,
`sentences[].raw`, `sentids`, and for COCO `cocoid` and `filepath`. Only the first five captions of an image
are used, and COCO trains on `train` and `restval` together. A split that has not the official size is reported,
because numbers on it are not comparable.
"""

import gzip
import logging
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, IterableDatasetDict, load_dataset

from hf_vse.data.features import features_dataset, read_array
from hf_vse.data.fields import TEXT_FEATURES
from hf_vse.data.images import MAX_BROKEN_SHARE, check_broken_share, find_broken_images
from hf_vse.data.schema import CAPTION_IDS, CAPTIONS, IMAGE, IMAGE_ID, is_id, repeated_captions, report_repeated
from hf_vse.files import inside, parse_json

logger = logging.getLogger(__name__)

CAPTIONS_PER_IMAGE = 5

# Images per split, five captions each (COCO train: 566,435): Karpathy & Fei-Fei (2015), Faghri et al., "VSE++" (2018).
OFFICIAL_IMAGES = {
    "coco": {"train": 113_287, "validation": 5_000, "test": 5_000},
    "flickr30k": {"train": 29_000, "validation": 1_014, "test": 1_000},
    "flickr8k": {"train": 6_000, "validation": 1_000, "test": 1_000},
}
COCO_TRAIN_WITHOUT_RESTVAL = 82_783

# Copies on the Hub: data set and revision (flickr30k's own is a loading script, so its parquet conversion).
HUB_DATASETS: dict[str, tuple[str, str | None]] = {
    "coco": ("undefined443/coco-karpathy-wds", None),
    "flickr30k": ("nlphuji/flickr30k", "refs/convert/parquet"),
    "flickr8k": ("jxie/flickr8k", None),
}

_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}
_READERS: dict[str, Callable[..., Any]] = {".json": open, ".gz": gzip.open, ".xz": lzma.open}
_NO_SPLIT_FILE = "is not a Karpathy split JSON with a list 'images'"
# Where the images lie in the archives as they are distributed. COCO's own `filepath` is tried besides these.
_IMAGE_FOLDERS = (
    *("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "Flickr8k_Dataset/Flicker8k_Dataset"),
    *("flickr30k-images", "flickr30k_images", "flickr30k_images/flickr30k_images"),
    *("train2014", "val2014", "images/train2014", "images/val2014"),
)


@dataclass
class Entry:
    """One image of the split file: `row` is its place in `images[]`, `filepath` the subfolder COCO names."""

    row: int
    split: str
    filename: str
    filepath: str
    image_id: int
    captions: list[str]
    caption_ids: list[int]


def load_karpathy(
    name: str,
    data_dir: str | Path,
    *,
    split_file: str | Path | None = None,
    features: str | Path | None = None,
    restval: bool = True,
    max_broken_share: float = MAX_BROKEN_SHARE,
    check_images: bool = True,
) -> DatasetDict:
    """The data set `name` ("coco", "flickr30k" or "flickr8k") from local files.

    Args:
        data_dir: folder of the split file, with the images in it or in one of the customary subfolders.
        split_file: the split JSON (plain, .gz or .xz) if it is not the only `dataset_{name}*.json` in `data_dir`.
        features: array file (see `read_array`) that takes the place of the images, row i for `images[i]` of the JSON;
            as given or next to the split file.
        restval: whether COCO's restval images join train.
        max_broken_share: share of missing and broken images up to which they are left out with a warning.
        check_images: whether to look for broken files first (`find_broken_images`).
    """
    data_dir = Path(data_dir).absolute()  # the paths stay valid when the working directory changes
    path = _find_split_file(name, data_dir, split_file)
    entries, num_rows = read_split_file(path, restval=restval)
    if features is None:
        files = _sound_images(data_dir, entries, max_broken_share, check_images)
        entries = [entry for entry in entries if entry.row in files]
    of_splits = {split: [each for each in entries if each.split == split] for split in ("train", "validation", "test")}
    groups = {split: group for split, group in of_splits.items() if group}
    if not groups:
        raise ValueError(f"{path} has no image with a caption in train, val or test: give another split_file")
    for split, group in groups.items():
        twice = repeated_captions(each.captions for each in group)
        report_repeated(f"{path.name}, {split}", twice, [each.image_id for each in group])
    counts = {split: [len(entry.captions) for entry in group] for split, group in groups.items()}
    report_official_sizes(name, counts, restval=restval)
    if features is None:
        return DatasetDict({split: _with_images(group, files) for split, group in groups.items()})
    whole = _with_features(entries, features, num_rows, path)
    return DatasetDict({split: whole.select([entry.row for entry in group]) for split, group in groups.items()})


def image_files(name: str, data_dir: str | Path, split_file: str | Path | None = None) -> list[str]:
    """The file of every image of the split JSON, in its order, also of missing images: `--features` has their rows."""
    data_dir = Path(data_dir).absolute()
    entries, num_rows = read_split_file(_find_split_file(name, data_dir, split_file))
    found = _find_images(data_dir, entries)
    files = [""] * num_rows
    for entry in entries:
        files[entry.row] = found.get(entry.row, str(data_dir / entry.filename))
    return files


def _find_split_file(name: str, data_dir: Path, split_file: str | Path | None) -> Path:
    if split_file is not None:
        for path in (Path(split_file), data_dir / split_file):
            if path.is_file():
                return path
        raise FileNotFoundError(f"split_file={str(split_file)!r} is not a file, neither as given nor in {data_dir}")
    if not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} is not a folder: give the one with dataset_{name}.json")
    exact = [data_dir / f"dataset_{name}{ending}" for ending in (".json", ".json.gz", ".json.xz")]
    found = [path for path in exact if path.is_file()][:1] or sorted(
        path for path in data_dir.glob(f"dataset_{name}*.json*") if path.suffix in _READERS
    )
    if not found:
        there = sorted(path.name for path in data_dir.iterdir())[:8]
        raise FileNotFoundError(
            f"no dataset_{name}*.json (or .json.gz, .json.xz) in {data_dir}, which holds {there or 'nothing'}: "
            "put the Karpathy split file there or name it with split_file"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"several split files in {data_dir}: {names}: choose one with split_file")
    return found[0]


def read_split_file(path: Path, *, restval: bool = True) -> tuple[list[Entry], int]:
    """The images of a split file that have a caption, and the number of all its images; logs what is left out."""
    if path.suffix not in _READERS:
        raise ValueError(f"split_file={str(path)!r} must end with .json, .json.gz or .json.xz")
    images = _read_images(path)
    counts: Counter[str] = Counter()
    entries = []
    for row, image in enumerate(images):
        entry = _entry(row, image, path, counts)
        if not entry.captions:
            counts["images without any caption left out"] += 1
        elif restval or image["split"] != "restval":
            entries.append(entry)
    for what, number in counts.items():
        if number:
            logger.warning("%s: %s %s", path.name, f"{number:,}", what)
    return entries, len(images)


def _read_images(path: Path) -> list[Any]:
    try:
        with _READERS[path.suffix](path, "rb") as file:
            content = parse_json(file.read().decode("utf-8-sig"), path, dict)
    except (ValueError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} {_NO_SPLIT_FILE}: {error!r:.300}") from error
    if not isinstance(content.get("images"), list):
        raise ValueError(f"{path} {_NO_SPLIT_FILE}: it has {type(content.get('images')).__name__} there")
    return content["images"]


def _number(value: Any, field: str) -> int:
    number = value if isinstance(value, int) else int(value)
    if not is_id(number) or (isinstance(value, float) and value != number):
        raise ValueError(f"{field} is {value!r:.40}, no whole number of 64 bits")
    return number


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{field} is {type(value).__name__}, no text")
    if not value.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{field} holds half a character: {value!r:.60}")
    return value


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{field} is {type(value).__name__}, no list")
    return value[:CAPTIONS_PER_IMAGE]


def _entry(row: int, image: dict[str, Any], path: Path, counts: Counter[str]) -> Entry:
    try:
        raws = [_text(sentence["raw"], "raw").strip() for sentence in _list(image["sentences"], "sentences")]
        sentids = [_number(sentid, "sentids") for sentid in _list(image["sentids"], "sentids")]
        captions = [(raw, sentid) for raw, sentid in zip(raws, sentids, strict=True) if raw]
        counts["empty captions left out"] += sum(not raw for raw in raws)
        counts["images with fewer than five captions"] += 0 < len(captions) < CAPTIONS_PER_IMAGE
        folder = image.get("filepath")
        return Entry(
            row=row,
            split=_SPLITS[image["split"]],
            filename=_inside(image["filename"], "filename", path.parent),
            filepath="" if folder in ("", None) else _inside(folder, "filepath", path.parent),
            image_id=_number(image["cocoid"] if "cocoid" in image else image["imgid"], "imgid or cocoid"),
            captions=[raw for raw, _ in captions],
            caption_ids=[sentid for _, sentid in captions],
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{path}: images[{row}] is not as in a Karpathy split JSON ({error!r:.200}): it needs split (one of "
            f"{', '.join(_SPLITS)}), filename, imgid, sentids and sentences with raw"
        ) from error


def _inside(name: Any, field: str, folder: Path) -> str:
    inside(folder, _text(name, field), field)
    return Path(name).as_posix()


def _sound_images(data_dir: Path, entries: Sequence[Entry], max_broken_share: float, check: bool) -> dict[int, str]:
    """row -> path of the existing images; if `check`, without broken ones."""
    found = _find_images(data_dir, entries)
    missing: dict[str | Path, str] = {str(each.filename): "not found" for each in entries if each.row not in found}
    broken = find_broken_images(found.values()) if check else {}
    check_broken_share(missing | broken, len(entries), max_broken_share)
    if twice := [path for path, times in Counter(found.values()).items() if times > 1]:
        logger.warning("%s images are named by several entries (first: %s)", f"{len(twice):,}", twice[0])
    return {row: path for row, path in found.items() if path not in broken}


def _find_images(data_dir: Path, entries: Sequence[Entry]) -> dict[int, str]:
    """row -> path of the existing images: in the folder that the entry names, or else in a customary one.

    Every folder is listed once, because a stat per file is slow.
    """
    filepaths = sorted({entry.filepath for entry in entries if entry.filepath})
    folders = list(dict.fromkeys([*_IMAGE_FOLDERS, *filepaths, *(f"images/{filepath}" for filepath in filepaths)]))
    listed: dict[str, dict[str, str]] = {}
    files: dict[str, str] = {}
    for name in folders:
        if (data_dir / name).is_dir():
            listed[name] = {entry.name: entry.path for entry in os.scandir(data_dir / name)}
            files = listed[name] | files  # the first folder has precedence
    found: dict[int, str] = {}
    for entry in entries:
        own = (listed.get(name, {}) for name in (entry.filepath, f"images/{entry.filepath}") if entry.filepath)
        path = next((of[entry.filename] for of in own if entry.filename in of), files.get(entry.filename))
        if path is not None:
            found[entry.row] = path
    if entries and not found:
        tried = ", ".join(repr(name) for name in folders[:20] if name)
        raise FileNotFoundError(
            f"none of the {len(entries):,} images (first: {entries[0].filename}) is in data_dir={str(data_dir)!r} or "
            f"its folders {tried}: put the images there or give precomputed features"
        )
    return found


def _with_images(entries: Sequence[Entry], files: dict[int, str]) -> Dataset:
    columns = {
        IMAGE: [files[entry.row] for entry in entries],
        IMAGE_ID: [entry.image_id for entry in entries],
        CAPTIONS: [entry.captions for entry in entries],
        CAPTION_IDS: [entry.caption_ids for entry in entries],
    }
    return Dataset.from_dict(columns, features=Features({IMAGE: Image()} | TEXT_FEATURES))


def _with_features(entries: Sequence[Entry], features: str | Path, num_rows: int, split_file: Path) -> Dataset:
    """All rows of the array, without copying it; rows without an entry have no captions."""
    array = read_array(features if Path(features).is_file() else split_file.parent / features)
    if len(array) != num_rows:
        raise ValueError(
            f"features={str(features)!r} has {len(array):,} rows but {split_file} has {num_rows:,} images: "
            "row i must belong to images[i]"
        )
    by_row = {entry.row: entry for entry in entries}
    in_order = [by_row.get(row) for row in range(num_rows)]
    return features_dataset(
        array,
        image_ids=[entry.image_id if entry else -1 for entry in in_order],
        captions=[entry.captions if entry else [] for entry in in_order],
        caption_ids=[entry.caption_ids if entry else [] for entry in in_order],
    )


def report_official_sizes(name: str, captions_per_image: dict[str, list[int]], *, restval: bool = True) -> None:
    """Warns about every split whose number of images or captions is not the official one."""
    official = dict(OFFICIAL_IMAGES[name])
    if name == "coco" and not restval:
        official["train"] = COCO_TRAIN_WITHOUT_RESTVAL
    for split, images in official.items():
        counts = captions_per_image.get(split, [])
        text = f"{name}: split {split} has"
        if len(counts) != images:
            text += f" {len(counts):,} images, official {images:,}"
        elif sum(counts) != images * CAPTIONS_PER_IMAGE:
            text += f" {sum(counts):,} captions, official {images * CAPTIONS_PER_IMAGE:,}"
        else:
            continue
        logger.warning("%s: numbers on it are not comparable", text)


def load_from_hub(
    name: str, revision: str | None = None, data_dir: str | Path | None = None, **options: Any
) -> DatasetDict | IterableDatasetDict:
    """The Hub data set `name`, or the copy of "coco", "flickr30k" or "flickr8k" on the Hub, in its own columns."""
    hub_name, hub_revision = HUB_DATASETS.get(name, (name, None))
    options |= {"revision": revision or hub_revision, "data_dir": data_dir and str(data_dir)}
    try:
        return load_dataset(hub_name, **options)
    except Exception as error:  # network, Hub client and builders raise many types; the remedy is the same
        remedy = "check the name and the connection, or give the path of a local copy"
        if name in HUB_DATASETS:
            remedy = "give --data_dir DIR with the images and the Karpathy JSON"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"cannot load {hub_name!r} from the Hub ({reason}): {remedy}") from error
