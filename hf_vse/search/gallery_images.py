"""The images of a gallery, from a folder or a data set. Each has a key that changes when the image changes.

The key of a file are its name, size and time and a digest of samples of its content, which tells images that have
changed places; of bytes and arrays in a data set it is `item_key`.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hf_vse.data.digests import BLOCK, item_key, sampled
from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_FEATURES
from hf_vse.files import inside, read_json_lines

if TYPE_CHECKING:  # a folder is read without them
    from datasets import Dataset

    from hf_vse.embed.encoder import Encoder

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
OTHER_PICTURES = set(
    ".heic .heif .avif .jxl .jp2 .j2k .jfif .jpe .svg .psd .tga .ico .pgm .pbm .pnm .hdr .exr .dng .cr2 .cr3 .nef "
    ".arw .orf .rw2 .raf .raw .mpo .eps .apng .dib".split()
)
METADATA_FILE = "metadata.jsonl"
OTHER_METADATA = ("metadata.csv", "metadata.parquet")
NAMED = 10  # files that a warning names


@dataclass(slots=True)
class GalleryImage:
    """One image of a source: `key` changes with its content, `item` is what the gallery says of it."""

    key: str
    item: dict[str, Any]


Listed = tuple[list[GalleryImage], dict[str, Any]]  # images, and facts about what was left out


def of_folder(root: Path) -> Listed:
    """The image files under a folder, sorted by name, and facts about the files that were left out.

    Raises:
        OSError: it is not a folder, or holds no image.
        ValueError: a line of its metadata is wrong.
    """
    known, repeated = read_metadata(root)
    found, passed_over = [], []
    for name in files_below(root):
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES:
            item = {"file": name} | known.pop(name, {}) | {"file": name}
            found.append(GalleryImage(file_key(name, root / name), item))
        elif suffix in OTHER_PICTURES:
            passed_over.append(name)
    facts = {}
    for name in OTHER_METADATA:
        if (root / name).is_file():
            logger.warning("%s is not read: fields and captions come from %s", root / name, METADATA_FILE)
    if repeated:
        facts["repeated"] = counted_names(repeated, f"{root / METADATA_FILE}: %s named again; the last line counts")
    if passed_over:
        facts["passed_over"] = counted_names(passed_over, f"{root}: %s are pictures of a kind that is not read")
    if not found:
        raise FileNotFoundError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))})")
    if known:
        facts["unmatched"] = counted_names(list(known), f"{root / METADATA_FILE}: %s name no image in the folder")
    return found, facts


def files_below(folder: Path, before: str = "") -> Iterator[str]:
    """Names of all files, in the order of paths; one folder is held at a time. Links to folders are not followed."""
    try:
        with os.scandir(folder) as entries:
            there = sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in there:
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(folder / entry.name, f"{before}{entry.name}/")
        elif entry.is_file():
            yield before + entry.name


def counted_names(names: list[str], remark: str) -> dict[str, Any]:
    """The count and the first few names, which are also logged."""
    first = names[:NAMED]
    logger.warning(remark, f"{len(names):,} ({', '.join(first)}{', ...' if len(names) > NAMED else ''})")
    return {"count": len(names), "first": first}


def read_metadata(root: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The contents of `metadata.jsonl` in a folder, if it exists.

    Returns:
        file_name -> the other fields of its line, the last one if there are several; and the names that have several.

    Raises:
        FileNotFoundError: it is not a folder.
        ValueError: a line is not an object, names no file in the folder, or has captions that are no text.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: give one with images, or an array (.npy, .safetensors)")
    path = root / METADATA_FILE
    known: dict[str, dict[str, Any]] = {}
    repeated = []
    for number, fields in read_json_lines(path) if path.is_file() else ():
        where = f"{path}, line {number}"
        if "file_name" not in fields:
            raise ValueError(f"{where} has no file_name: name the image it is about")
        given = fields.pop("file_name")
        inside(root, given, f"{where}: file_name")
        if CAPTIONS in fields:
            fields[CAPTIONS] = captions_of(fields[CAPTIONS], where)
        name = PurePosixPath(given.replace("\\", "/")).as_posix()
        if name in known:
            repeated.append(name)
        known[name] = fields
    return known, repeated


def captions_of(value: Any, where: str) -> list[str]:
    """One sentence or several, as a list."""
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{where}: captions is {value!r:.60}, no list of sentences")
    for caption in captions:
        if not is_unicode(caption):
            raise ValueError(f"{where}: captions holds {caption!r:.60} with half a character: save it as UTF-8")
    return captions


def is_unicode(text: str) -> bool:
    """False if the text has a lone surrogate (half a character), which tokenizers reject."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def file_key(name: str, path: Path) -> str:
    """A key that changes with a file, without reading all of it. A file that cannot be read gets a random key."""
    try:
        status = path.stat()
        content = b"".join(sampled(path, status.st_size, 3 * BLOCK))
        digest = blake2b(content, digest_size=16).hexdigest()
        return f"{name} {status.st_size} {status.st_mtime_ns} {digest}"
    except OSError:
        return f"{name} {uuid4().hex}"


def of_dataset(dataset: "Dataset", encoder: "Encoder") -> list[GalleryImage]:
    """The rows of a data set, with those of their other columns that JSON can represent."""
    from hf_vse.data.fields import is_field
    from hf_vse.data.pairs import undecoded_images

    column = next((name for name in (IMAGE_FEATURES, IMAGE) if name in dataset.column_names), None)
    if column is None:
        raise ValueError(f"the data set has no column image among {', '.join(dataset.column_names)}")
    if (column == IMAGE) != encoder.reads_images:
        reads = "photographs" if encoder.reads_images else "precomputed features"
        raise ValueError(
            f"{encoder.name} reads {reads}, the data set has {column}: use a model or a data set that fits"
        )
    images = undecoded_images(dataset)
    plain = dataset.with_format(None)
    simple = [
        name for name, feature in dataset.features.items() if is_field(feature) and not name.startswith(IMAGE_FEATURES)
    ]
    facts = plain.select_columns(simple) if simple else None
    found = []
    for row in range(len(dataset)):
        raw = next(iter(images[row].values()))
        item = {"row": row} | ({} if facts is None else facts[row]) | {"row": row}
        if isinstance(raw, dict) and raw.get("path") and raw.get("bytes") is None:
            item = {"file": raw["path"]} | item | {"file": raw["path"]}
            key = file_key(raw["path"], Path(raw["path"]))
        else:
            key = item_key(raw)
        found.append(GalleryImage(key, item))
    return found
