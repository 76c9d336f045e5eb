"""The records of a catalogue: a name, fields, texts, and one vector of photograph and texts together.

A catalogue is a folder of images with `metadata.jsonl`, as `hf-vse index` takes it; a JSON Lines file of the same
lines, of which some may lack `file_name` and be a text alone; a gallery in a folder or an engine, whose image vectors
are used as they are; or a split of a data set, see `data_sets.py`.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from hf_vse.data.decoding import decode_image
from hf_vse.data.images import MAX_BROKEN_SHARE, check_broken_share
from hf_vse.data.schema import CAPTIONS, IMAGE
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.embed.store import Store
from hf_vse.files import inside, read_json_lines
from hf_vse.link.data_sets import dataset_items, is_dataset, load_catalogue
from hf_vse.link.pooling import mean_of_texts, pooled_vectors
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.gallery_images import is_unicode, of_folder
from hf_vse.search.header import HEADER_FILE
from hf_vse.search.locations import is_engine, open_store
from hf_vse.search.pictures import SIDE, find_images
from hf_vse.search.segments import SegmentVectors
from hf_vse.search.store import GalleryStore, in_order

logger = logging.getLogger(__name__)

LINES = ".jsonl"
NAMES = ("file", "id", "image_id", "row")  # fields that name a record, the first that it has


@dataclass
class Records:
    """One catalogue. Without `embeds` it is what was found; `embed_records` adds them.

    Args:
        source: its folder, file, gallery or data set.
        names: unique, one for each record.
        items: the fields of each record.
        texts: the sentences of each record, may be none.
        files: the image of each record, a file or a row of `pictures`; None where it has none, or is in a gallery.
        gallery: which holds the image vectors.
        vectors: these, (records of the gallery, dim).
        pictures: the images of a data set, undecoded.
        embeds: (records, dim) float32 unit vectors.
        left_out: names of records that have neither a readable image nor a text.
    """

    source: Path | str
    names: list[str]
    items: list[Any]
    texts: list[list[str]]
    files: list[Path | int | None]
    gallery: GalleryIndex | GalleryStore | None = None
    vectors: np.ndarray | SegmentVectors | None = None
    pictures: Dataset | None = None
    embeds: np.ndarray | None = None
    left_out: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def values(self, name: str) -> list[Any]:
        """The values of a field, None where a record has none.

        Raises:
            ValueError: no record has one, or a value is a list or an object.
        """
        values = [item.get(name) if isinstance(item, dict) else None for item in self.items]
        if all(value is None for value in values):
            fields = sorted({key for item in self.items[:1000] if isinstance(item, dict) for key in item})
            raise ValueError(f"no record of {self.source} has {name!r}; there are {', '.join(fields)}")
        for value, record in zip(values, self.names, strict=True):
            if isinstance(value, list | dict):
                raise ValueError(f"{self.source}: {name} of {record} is {value!r:.60}: give a field of single values")
        return values

    @property
    def vectors_of_all(self) -> np.ndarray:
        """`embeds`; ValueError where there are none yet."""
        if self.embeds is None:
            raise ValueError(f"{self.source} has no vectors yet: call embed_records")
        return self.embeds

    def image(self, row: int) -> Image.Image | None:
        """The photograph of a record, to show it; None if it has none, or it cannot be read."""
        try:
            if self.gallery is not None:
                return find_images(self.gallery, [self.items[row]])[0]
            file = self.files[row]
            if isinstance(file, int):
                assert self.pictures is not None  # a number is a row of them
                return decode_image(self.pictures[file][IMAGE], needed=SIDE)
            return None if file is None else decode_image(str(file), needed=SIDE)
        except (OSError, ValueError) as error:
            logger.warning("%s of %s is not shown: %s", self.names[row], self.source, error)
            return None


def absolute_source(source: str) -> str:
    """What names the same catalogue for a process that runs in another folder, or later."""
    if is_engine(source):
        return source
    name, mark, split = (source, "", "") if Path(source).exists() else source.partition("#")
    return f"{Path(name).absolute()}{mark}{split}" if Path(name).exists() else source


def read_records(source: str | Path, name: str | None = None, text: str = CAPTIONS) -> Records:
    """What a catalogue holds; runs no model.

    Args:
        name: field that names a record; default: the first of `NAMES` that it has.
        text: field with the sentence or the sentences of a record.

    Raises:
        OSError: there is nothing of that name, or no record in it.
        ValueError: a line is wrong, two records have one name, or none has texts where a field for them is given.
    """
    gallery: GalleryIndex | GalleryStore | None = None
    vectors: np.ndarray | SegmentVectors | None = None
    pictures = None
    files: list[Path | int | None]
    folder = Path(source)
    if is_engine(source):
        gallery = open_store(source)
        items, vectors = rows_of_engine(gallery)
        files = [None] * len(items)
    elif is_dataset(source):
        items, pictures = dataset_items(load_catalogue(str(source)))
        files = list(range(len(items)))
    elif (folder / HEADER_FILE).is_file():
        gallery = index = GalleryIndex.load(folder)
        items, vectors = list(index.items), index.embeds
        files = [None] * len(items)
    elif folder.suffix == LINES:
        items, named = read_lines_of_records(folder)
        files = [*named]
    else:
        items = [image.item for image in of_folder(folder)[0]]
        files = [folder / item["file"] for item in items]
    names = [record_name(item, row, name) for row, item in enumerate(items)]
    repeated, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"{source}: {times} records are named {repeated!r:.60}: name a field that tells them with --name"
        )
    texts = [record_texts(item, text, f"{source}: {each}") for item, each in zip(items, names, strict=True)]
    if text != CAPTIONS and not any(texts):
        raise ValueError(f"no record of {source} has a text in {text!r}: name another field with --text")
    return Records(source, names, items, texts, files, gallery, vectors, pictures)


def rows_of_engine(store: GalleryStore) -> tuple[list[Any], np.ndarray]:
    """What a gallery in an engine holds, in the order that a folder has: its items, and (items, dim) vectors."""
    parts = list(store.rows())
    rows = [row for part, _ in parts for row in part]
    if not rows:
        raise ValueError(f"{store.location} holds no items: there is nothing to link")
    order = sorted(range(len(rows)), key=lambda place: in_order(rows[place]))
    return [rows[place].item for place in order], np.concatenate([embeds for _, embeds in parts])[order]


def read_lines_of_records(path: Path) -> tuple[list[dict[str, Any]], list[Path | None]]:
    """The records of a JSON Lines file, and their images, whose names are relative to it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder of images, a gallery, or a file of JSON lines")
    items: list[dict[str, Any]] = []
    files: list[Path | None] = []
    for number, fields in read_json_lines(path):
        file_name = fields.pop("file_name", None)
        if file_name is not None:
            files.append(inside(path.parent, file_name, f"{path}, line {number}: file_name"))
            fields["file"] = file_name
        else:
            files.append(None)
        items.append({"row": number} | fields)
    if not items:
        raise ValueError(f"{path} is empty: write a record in each line")
    return items, files


def record_name(item: Any, row: int, field_name: str | None) -> str:
    if not isinstance(item, dict):
        return str(item)
    if field_name is None:
        return str(next((item[each] for each in NAMES if item.get(each) is not None), row))
    if not isinstance(item.get(field_name), str | int):
        raise ValueError(f"record {row} has {field_name} {item.get(field_name)!r:.60}, no name: choose another --name")
    return str(item[field_name])


def record_texts(item: Any, field_name: str, where: str) -> list[str]:
    """The sentences of a record that are not empty."""
    value = item.get(field_name) if isinstance(item, dict) else None
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and is_unicode(text) for text in texts):
        raise ValueError(f"{where}: {field_name} is {value!r:.60}, no sentence and no list of sentences")
    return [text for text in texts if text.strip()]


def embed_records(
    records: Records,
    encoder: Encoder,
    image_weight: float = 0.5,
    **options: Any,
) -> Records:
    """The records with pooled vectors, see `pooled_vectors`; those that have nothing to pool are left out.

    Args:
        options: see `vectors_of_records`, which also says what is raised.
    """
    images, of_texts = vectors_of_records(records, encoder, image_weight, **options)
    kept = np.flatnonzero(images.any(axis=1) | of_texts.any(axis=1))
    embeds = pooled_vectors(images[kept], of_texts[kept], image_weight)
    return replace(some_records(records, kept), embeds=embeds)


def some_records(records: Records, kept: np.ndarray) -> Records:
    """These rows alone; the names of the others are in `left_out`."""
    names = ("names", "items", "texts", "files")
    lists: dict[str, Any] = {name: [getattr(records, name)[row] for row in kept] for name in names}
    left_out = [records.names[row] for row in np.setdiff1d(np.arange(len(records)), kept)]
    if left_out:
        logger.warning(
            "%s: %d records without image and text are left out (%s)", records.source, len(left_out), left_out[0]
        )
    return replace(records, **lists, vectors=None, left_out=left_out)


def vectors_of_records(
    records: Records,
    encoder: Encoder,
    image_weight: float = 0.5,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    max_broken_share: float = MAX_BROKEN_SHARE,
    stores: tuple[Store | None, Store | None] = (None, None),
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of images, and the unit mean of the texts, of each record, (records, dim); zeros where there are
    none, or where `image_weight` leaves nothing for them.

    Args:
        stores: keep vectors of images and of texts, so that an interrupted call goes on.

    Raises:
        ValueError: the encoder did not make the gallery, too many images cannot be read, or no record has a vector.
    """
    every_text = all(records.texts)
    counts = np.array([len(texts) for texts in records.texts])
    images = None
    unreadable: Sequence[int] = []
    if image_weight > 0 or not every_text:
        options = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress, "store": stores[0]}
        images, unreadable = image_vectors(records, encoder, **options)
        broken = {records.names[row]: "cannot be read" for row in unreadable}
        check_broken_share(broken, len(records), max_broken_share)
    sentences = [text for texts in records.texts for text in texts]
    every_image = images is not None and images.any(axis=1).all()
    if sentences and (image_weight < 1 or not every_image):
        embeds = encode_texts(encoder, sentences, progress=progress, store=stores[1]).numpy()
        of_texts = mean_of_texts(embeds, counts)
    else:
        of_texts = np.zeros_like(images)
    images = np.zeros_like(of_texts) if images is None else images
    if not images.any() and not of_texts.any():
        raise ValueError(
            f"no record of {records.source} has an image that can be read, or a text: there is nothing to compare"
        )
    return images, of_texts


def image_vectors(records: Records, encoder: Encoder, **options: Any) -> tuple[np.ndarray, Sequence[int]]:
    """(records, dim), zero where a record has no image or one that cannot be read, and the rows of these latter."""
    if records.gallery is not None:
        records.gallery.check_model(encoder)
        return np.asarray(records.vectors, np.float32), []
    rows = [row for row, file in enumerate(records.files) if file is not None]
    images = np.zeros((len(records), encoder.dim), np.float32)
    if not rows:
        return images, []
    pictures = records.pictures
    pictures = [{IMAGE: str(records.files[row])} for row in rows] if pictures is None else pictures
    found = encode_images(encoder, pictures, **options)
    readable = found.readable.numpy()
    images[np.array(rows)[readable]] = found.embeds.numpy()[readable]
    return images, np.array(rows)[~readable].tolist()
