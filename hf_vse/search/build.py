"""A gallery from photographs: encoded once, in parts, and only what is new or changed the next time.

Every image has a key that changes with it: name, size and time of a file, or the digest of its bytes. Vectors that
an earlier gallery in the folder, or the parts of an interrupted run, hold for a key are taken over; the rest is
encoded by all processes, part by part, each part complete or absent. Other weights make everything new.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from hf_vse.data.features import read_array
from hf_vse.data.images import check_broken_share
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_FEATURES
from hf_vse.search.encoder import Encoder
from hf_vse.search.gallery import HEADER_FILE, VECTORS_FILE, GalleryIndex, read_header
from hf_vse.search.plan import choose_plan
from hf_vse.search.vectors import MEASURED_QUERIES, TARGET_RECALL

logger = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
METADATA_FILE = "metadata.jsonl"
KEYS_FILE = "keys.json"
PARTS_FOLDER = "parts"
PART = 1024  # images


@dataclass
class Photograph:
    """One image of a source: `value` is what `decode_image` reads, `item` what the gallery says of it."""

    key: str
    value: Any
    item: dict[str, Any]


@dataclass
class Vectors:
    """Vectors that are there already: `embeds[rows[key]]`."""

    embeds: np.ndarray
    rows: dict[str, int]


def build_gallery(
    source: str | Path | Dataset,
    encoder: Encoder,
    folder: str | Path,
    *,
    kind: str = "auto",
    recall: float = TARGET_RECALL,
    batch_size: int = 64,
    num_workers: int = 0,
    max_broken_share: float = 0.01,
    progress: bool = True,
    origin: dict[str, Any] | None = None,
    query_bank: Sequence[str] = (),
) -> GalleryIndex:
    """Encodes the images of a source and indexes them in `folder`.

    Args:
        source: a folder, searched with its subfolders, whose `metadata.jsonl` may say more of a `file_name`; or a data
            set with a column `image` (or `image_features`), whose other columns become the items.
        kind, recall: see `GalleryIndex`; captions of the source serve to tune and measure it.
        num_workers: processes that decode images.
        max_broken_share: more unreadable images than this share are an error; fewer are left out and recorded.
        origin: how `load_pairs` finds the data set again, to show its photographs.
        query_bank: sentences such as will be asked, to learn hubs from; see `GalleryIndex.search`.

    Returns:
        The gallery, saved. Run by several processes, each encodes a share.
    """
    folder = Path(folder)
    photographs = of_dataset(source, encoder) if isinstance(source, Dataset) else of_folder(Path(source))
    state = PartialState(cpu=not torch.accelerator.is_available())
    known = list(known_vectors(folder, encoder))
    there = set().union(*(vectors.rows for vectors in known))
    missing = [photograph for photograph in photographs if photograph.key not in there]
    if there:
        logger.info("%d of %d images are encoded already", len(photographs) - len(missing), len(photographs))
    state.wait_for_everyone()  # nobody writes before everybody has looked
    own = missing[state.process_index :: state.num_processes]
    encode_missing(own, encoder, folder, batch_size, num_workers, progress and state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        gallery, keys = assemble(photographs, encoder, folder, max_broken_share, kind)
        root = str(Path(source).absolute()) if isinstance(source, str | Path) else None
        gallery.facts |= {"root": root, "origin": origin}
        gallery.vectors.build(sample_queries(gallery.items, encoder), recall, progress)
        if query_bank:
            gallery.learn_hubs(encoder.texts(query_bank))
        gallery.save(folder)
        (folder / KEYS_FILE).write_text(json.dumps(keys), encoding="utf-8")
        remove_parts(folder / PARTS_FOLDER)
    state.wait_for_everyone()
    return GalleryIndex.load(folder)


def of_folder(root: Path) -> list[Photograph]:
    """The image files under a folder, in the order of their names."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: give one with images")
    known = read_metadata(root / METADATA_FILE)
    found = []
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()):
        name = path.relative_to(root).as_posix()
        status = path.stat()
        key = f"{name} {status.st_size} {status.st_mtime_ns}"
        found.append(Photograph(key, str(path), {"file": name} | known.get(name, {})))
    if not found:
        raise FileNotFoundError(f"{root} holds no image ({', '.join(sorted(SUFFIXES))})")
    return found


def read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """file_name -> the other fields of its line."""
    if not path.is_file():
        return {}
    known = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            known[fields.pop("file_name")] = fields
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no JSON object with file_name: {line:.60}") from error
    return known


class DatasetImage:
    """An image in a data set, read when it is decoded."""

    def __init__(self, images: Dataset, row: int):
        self.images, self.row = images, row

    def read(self) -> Any:
        return next(iter(self.images[self.row].values()))


def of_dataset(dataset: Dataset, encoder: Encoder) -> list[Photograph]:
    """The rows of a data set; they keep their other columns, as far as JSON can hold them."""
    column = next((name for name in (IMAGE_FEATURES, IMAGE) if name in dataset.column_names), None)
    if column is None:
        raise ValueError(f"the data set has no column image among {', '.join(dataset.column_names)}")
    if (column == IMAGE) != encoder.reads_photographs:
        reads = "photographs" if encoder.reads_photographs else "precomputed features"
        raise ValueError(
            f"{encoder.name} reads {reads}, the data set has {column}: use a model or a data set that fits"
        )
    images = undecoded_images(dataset)
    plain = dataset.with_format(None)
    simple = [
        name
        for name, feature in dataset.features.items()
        if is_simple(feature) and not name.startswith(IMAGE_FEATURES)
    ]
    facts = plain.select_columns(simple) if simple else None
    found = []
    for row in range(len(dataset)):
        value = DatasetImage(images, row)
        raw = value.read()
        item = {"row": row} | ({} if facts is None else facts[row])
        if isinstance(raw, dict) and raw.get("path") and raw.get("bytes") is None:
            item = {"file": raw["path"]} | item
        found.append(Photograph(content_key(raw), value, item))
    return found


def is_simple(feature: Any) -> bool:
    """Whether values of a column are strings, numbers, or lists of them."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "dtype", "").startswith(("string", "int", "uint", "float", "bool", "large_string"))


def content_key(value: Any) -> str:
    """Of embedded bytes and arrays their digest; of a file name, size and time."""
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        path = Path(value["path"])
        status = path.stat() if path.is_file() else None
        return f"{path} {status and (status.st_size, status.st_mtime_ns)}"
    data = value["bytes"] if isinstance(value, dict) else np.ascontiguousarray(value).tobytes()
    return blake2b(data or b"", digest_size=16).hexdigest()


def known_vectors(folder: Path, encoder: Encoder) -> Iterator[Vectors]:
    """What was encoded with the same weights before: the gallery in `folder`, and parts of interrupted runs."""
    if (folder / HEADER_FILE).is_file() and (folder / KEYS_FILE).is_file():
        if read_header(folder).get("digest") == encoder.digest:
            yield with_keys(folder / VECTORS_FILE, json.loads((folder / KEYS_FILE).read_text(encoding="utf-8")))
        else:
            logger.info("%s was made with other weights: everything is encoded anew", folder)
    for path in sorted((folder / PARTS_FOLDER / encoder.digest).glob("*.json")):
        yield with_keys(path.with_suffix(".safetensors"), json.loads(path.read_text(encoding="utf-8")))


def with_keys(path: Path, keys: Sequence[str]) -> Vectors:
    return Vectors(read_array(path, "embeds"), {key: row for row, key in enumerate(keys)})


def encode_missing(
    photographs: Sequence[Photograph],
    encoder: Encoder,
    folder: Path,
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> None:
    """Writes parts: vectors, and beside them, last, their keys. What cannot be read has no vector."""
    parts = folder / PARTS_FOLDER / encoder.digest
    with tqdm(
        total=len(photographs), desc="encoding images", unit="image", disable=not (photographs and progress)
    ) as bar:
        for start in range(0, len(photographs), PART):
            part = photographs[start : start + PART]
            values = [each.value.read() if isinstance(each.value, DatasetImage) else each.value for each in part]
            embeds = encoder.images(values, batch_size, num_workers)
            readable = encoder.readable(embeds)
            if readable.any():
                keys = [each.key for each, good in zip(part, readable, strict=True) if good]
                write_part(parts / blake2b(keys[0].encode(), digest_size=8).hexdigest(), embeds[readable], keys)
            bar.update(len(part))


def write_part(path: Path, embeds: np.ndarray, keys: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"embeds": embeds}, path.with_suffix(".safetensors"))
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(keys), encoding="utf-8")
    unfinished.replace(path.with_suffix(".json"))


def assemble(
    photographs: Sequence[Photograph], encoder: Encoder, folder: Path, max_broken_share: float, kind: str
) -> tuple[GalleryIndex, list[str]]:
    """The gallery in the order of the source, not yet indexed, and the keys of its items."""
    place = {key: (known, row) for known in known_vectors(folder, encoder) for key, row in known.rows.items()}
    found = [photograph for photograph in photographs if photograph.key in place]
    lost = [photograph.item for photograph in photographs if photograph.key not in place]
    broken = {str(item.get("file", f"row {item.get('row')}")): "cannot be read" for item in lost}
    check_broken_share(broken, len(photographs), max_broken_share)
    if not found:
        raise ValueError(f"none of the {len(photographs)} images can be read: there is nothing to search")
    embeds = np.empty((len(found), encoder.dim), np.float32)
    for number, photograph in enumerate(found):
        known, row = place[photograph.key]
        embeds[number] = known.embeds[row]
    facts = {"model": encoder.name, "digest": encoder.digest, "broken": sorted(broken)}
    items = [photograph.item for photograph in found]
    gallery = GalleryIndex.without_index(embeds, items, facts, choose_plan(*embeds.shape, kind))
    return gallery, [photograph.key for photograph in found]


def sample_queries(items: Iterable[dict[str, Any]], encoder: Encoder) -> np.ndarray | None:
    """Captions of the gallery, evenly spread, as sentences that a person might ask."""
    captions = [item[CAPTIONS][0] for item in items if item.get(CAPTIONS)]
    some = captions[:: max(1, len(captions) // MEASURED_QUERIES)]
    return encoder.texts(some) if some else None


def remove_parts(parts: Path) -> None:
    for path in sorted(parts.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if parts.is_dir():
        parts.rmdir()
