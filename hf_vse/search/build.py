"""A gallery from images: encoded once, in parts, and only what is new or changed the next time.

Vectors that an earlier gallery in the folder or an interrupted run holds for the key of an image are taken over; the
others are computed by all processes together and kept in a store until the gallery is complete. Another encoder makes
everything new. Where nothing has changed, nothing is written.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from hf_vse.data.images import MAX_BROKEN_SHARE, check_broken_share
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTIONS, IMAGE
from hf_vse.embed.batches import Images
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts, placed
from hf_vse.embed.store import Store
from hf_vse.search.change import GalleryChange, index_settings
from hf_vse.search.gallery import GalleryIndex, recipe_of
from hf_vse.search.gallery_images import GalleryImage, Listed, of_dataset, of_folder
from hf_vse.search.header import HEADER_FILE, read_header
from hf_vse.search.model import model_facts
from hf_vse.search.parts import interrupted_parts
from hf_vse.search.plan import bytes_on_disk, choose_plan
from hf_vse.search.segments import SEGMENT_ROWS, SegmentVectors
from hf_vse.search.storage import check_listed_files, check_place, locked, remove_leftovers
from hf_vse.search.store import GalleryRow, named_rows
from hf_vse.search.vectors import MEASURED_QUERIES, TARGET_RECALL, check_unit

logger = logging.getLogger(__name__)

TOLD_AT_ONCE = 10_000  # images, by the main process


def build_gallery(
    source: str | Path | Dataset,
    encoder: Encoder,
    folder: str | Path,
    *,
    kind: str = "auto",
    recall: float = TARGET_RECALL,
    batch_size: int = 64,
    num_workers: int = 0,
    max_broken_share: float = MAX_BROKEN_SHARE,
    progress: bool = True,
    origin: dict[str, Any] | None = None,
    query_bank: Sequence[str] = (),
    listed: Listed | None = None,
) -> GalleryIndex:
    """Encodes the images of a source and indexes them in `folder`.

    Args:
        source: a folder, searched with its subfolders, whose `metadata.jsonl` may say more of a `file_name`; or a data
            set with a column `image` (or `image_features`), whose other columns become the items.
        kind, recall: see `GalleryIndex`; captions of the source serve to tune and measure it.
        num_workers: processes that decode images.
        max_broken_share: more unreadable images than this share are an error; fewer are left out and recorded.
        origin: how `load_pairs` finds the data set again, to show its images.
        query_bank: sentences such as will be asked, to learn hubs from; see `GalleryIndex.search`.
        listed: what `of_folder` found in the source, where it was looked through already.

    Returns:
        The gallery, saved. Run by several processes, each encodes a share.

    Raises:
        OSError, ValueError: the source or the folder is not what it should be, see `of_folder` and `check_place`; or
            the encoder has no digest.
    """
    folder = Path(folder)
    state = PartialState(cpu=not torch.accelerator.is_available())
    images, facts = listed_images(source, encoder, origin, listed)
    shape = len(images), encoder.dim
    images_folder = None if isinstance(source, Dataset) else source
    check_place(folder, images_folder, bytes_on_disk(choose_plan(*shape, kind), *shape))
    options: dict[str, Any] = {"kind": kind, "recall": recall, "query_bank": list(query_bank)}
    with locked(folder) if state.is_main_process else nullcontext():
        store = known_vectors(folder, encoder)
        missing = store.missing([each.key for each in images])
        if len(missing) < len(images):
            logger.info("%d of %d images are encoded already", len(images) - len(missing), len(images))
        state.wait_for_everyone()  # nobody writes before everybody has looked
        if own := missing[state.process_index :: state.num_processes]:
            if state.num_processes > 1:
                who = f"process {state.process_index + 1} of {state.num_processes}"
                logger.info("%s encodes %d of %d images", who, len(own), len(missing))
            rows, keys = undecoded_rows(source, images, own), [images[row].key for row in own]
            encode_images(encoder, rows, batch_size, num_workers, progress and state.is_main_process, store, keys)
        state.wait_for_everyone()
        if state.is_main_process:
            found, facts["broken"] = with_vectors(images, store, max_broken_share)
            write_gallery(found, store, encoder, folder, facts, progress, **options)
        state.wait_for_everyone()
    return GalleryIndex.load(folder)


def listed_images(
    source: str | Path | Dataset, encoder: Encoder, origin: dict[str, Any] | None, listed: Listed | None = None
) -> Listed:
    """The images of a source, and what a gallery of them records.

    Raises:
        OSError, ValueError: as `build_gallery`.
    """
    check_digest(encoder)
    if isinstance(source, Dataset):
        return of_dataset(source, encoder), {"root": None, "origin": origin} | model_facts(encoder)
    images, facts = listed or told_to_all(lambda: of_folder(Path(source)))
    return images, facts | {"root": str(Path(source).absolute()), "origin": origin} | model_facts(encoder)


def check_digest(encoder: Encoder) -> None:
    """Raises ValueError for an encoder whose vectors could not be told from those of another."""
    if encoder.digest is None:
        raise ValueError(
            f"{encoder.name} has no digest, so queries and new images could not be checked against the gallery later; "
            "define its class in a file, or give it a digest that changes with weights and preparation"
        )


def told_to_all(find: Callable[[], Listed]) -> Listed:
    """What the main process finds, in every process, so that one reads the folder and all have the same list.

    Raises:
        OSError, ValueError: what it raises.
    """
    state = PartialState()
    if state.num_processes == 1:
        return find()
    images: list[GalleryImage] = []
    told: list[Any] = [None]
    if state.is_main_process:
        try:
            images, facts = find()
            told = [(len(images), facts)]
        except (OSError, ValueError) as error:
            told = [error]
    (told,) = broadcast_object_list(told)
    if isinstance(told, Exception):
        raise told
    count, facts = told
    for start in range(0, count, TOLD_AT_ONCE):
        (some,) = broadcast_object_list([images[start : start + TOLD_AT_ONCE]])
        if not state.is_main_process:
            images += some
    return images, facts


def build_of_vectors(
    embeds: np.ndarray,
    items: Sequence[Any] | None,
    encoder: Encoder,
    folder: Path,
    made_of: str,
    *,
    kind: str = "auto",
    recall: float = TARGET_RECALL,
    progress: bool = True,
    query_bank: Sequence[str] = (),
) -> GalleryIndex:
    """Indexes vectors that were computed elsewhere, (items, dim), with the model that queries will use.

    Args:
        made_of: digest of the vectors.
    """
    count, dim = embeds.shape
    check_place(folder, needed=bytes_on_disk(choose_plan(count, dim, kind), count, dim))
    recipe = recipe_of(made_of, items, model_facts(encoder), {"kind": kind, "recall": recall}, list(query_bank))
    with locked(folder):
        if GalleryIndex.unchanged(folder, recipe) is None:
            gallery = GalleryIndex(embeds, items, encoder.name, kind=kind, recall=recall, progress=progress)
            gallery.facts |= model_facts(encoder)
            if query_bank:
                gallery.learn_hubs(encode_texts(encoder, list(query_bank)).numpy())
            gallery.write(folder, recipe)
        remove_leftovers(folder)
    return GalleryIndex.load(folder)


def undecoded_rows(source: str | Path | Dataset, images: Sequence[GalleryImage], rows: list[int]) -> Images:
    """Some images of a source, as `encode_images` reads them."""
    if isinstance(source, Dataset):
        return undecoded_images(source).select(rows)
    return [{IMAGE: str(Path(source, images[row].item["file"]))} for row in rows]


def write_gallery(
    found: Sequence[GalleryImage],
    store: Store,
    encoder: Encoder,
    folder: Path,
    facts: dict[str, Any],
    progress: bool,
    *,
    kind: str,
    recall: float,
    query_bank: list[str],
) -> None:
    """Indexes the vectors of the images, unless the gallery in the folder is just that."""
    keys, items = [each.key for each in found], [each.item for each in found]
    options = {"kind": kind, "recall": recall}
    change = GalleryChange(folder, facts, encoder.dim, options, is_locked=True)
    if change.base is not None and not query_bank:
        change_gallery(change, named_rows(keys, items), store, facts)
        return
    recipe = recipe_of(keys, items, facts, kind, recall, query_bank)
    if GalleryIndex.unchanged(folder, recipe) is None:
        embeds, _ = placed(len(keys), store.read(keys))
        check_unit(embeds, f"the vectors that {encoder.name} makes")
        plan = choose_plan(len(embeds), embeds.shape[1], kind)
        gallery = GalleryIndex.without_index(embeds, items, facts, plan)
        gallery.vectors.build(sample_queries(items, encoder), recall, progress)
        if query_bank:
            gallery.learn_hubs(encode_texts(encoder, query_bank).numpy())
        gallery.write(folder, recipe, keys, index_settings(options))
    remove_leftovers(folder)


def change_gallery(change: GalleryChange, rows: Sequence[GalleryRow], store: Store, facts: dict[str, Any]) -> None:
    """Writes what is new or changed, and that others are gone."""
    there = change.versions()
    changed = [row for row in rows if there.get(row.name) != row.version()]
    for start in range(0, len(changed), SEGMENT_ROWS):
        some = changed[start : start + SEGMENT_ROWS]
        change.upsert(some, placed(len(some), store.read([row.key for row in some]))[0])
    change.delete(list(there.keys() - {row.name for row in rows}))
    change.finish(facts)


def known_vectors(folder: Path, encoder: Encoder) -> Store:
    """What the same encoder made before: the gallery in `folder`, and parts of interrupted runs."""
    assert encoder.digest is not None  # see `check_digest`
    store = interrupted_parts(folder, encoder.digest)
    if (folder / HEADER_FILE).is_file():
        try:
            store.add(*vectors_of_gallery(folder, encoder))
        except (OSError, ValueError) as error:
            logger.warning("the gallery in %s is not used (%s): its images are encoded again", folder, error)
    return store


def vectors_of_gallery(folder: Path, encoder: Encoder) -> tuple[list[str], np.ndarray | SegmentVectors]:
    """Keys and vectors of the images of a gallery; none where another encoder made it.

    Raises:
        OSError, ValueError: a file is damaged, or keys and vectors do not belong together.
    """
    header = read_header(folder)
    if header.get("digest") != encoder.digest:
        logger.info("%s was made by another model, or with other weights: everything is encoded again", folder)
        return [], np.empty((0, encoder.dim), np.float32)
    check_listed_files(folder, header, header["files"], whole=True)
    gallery = GalleryIndex.of_version(folder, header)
    keys = [row.key for rows, _ in gallery.stored() for row in rows]
    if not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{folder} has keys that are no text")
    if gallery.embeds.shape != (len(keys), encoder.dim):
        raise ValueError(f"{folder} has vectors {gallery.embeds.shape}, not {(len(keys), encoder.dim)}")
    return keys, gallery.embeds


def with_vectors(
    images: Sequence[GalleryImage], store: Store, max_broken_share: float
) -> tuple[list[GalleryImage], list[str]]:
    """Those that could be encoded, and the names of the others.

    Raises:
        ValueError: too many of them, or all.
    """
    lost = set(store.missing([each.key for each in images]))
    items = [images[row].item for row in sorted(lost)]
    broken = {str(item.get("file", f"row {item.get('row')}")): "cannot be read" for item in items}
    check_broken_share(broken, len(images), max_broken_share)
    if len(lost) == len(images):
        raise ValueError(f"none of the {len(images)} images can be read: there is nothing to search")
    return [each for row, each in enumerate(images) if row not in lost], sorted(broken)


def sample_queries(items: Iterable[dict[str, Any]], encoder: Encoder) -> np.ndarray | None:
    """Captions of the gallery, evenly spread, as sentences that a person might ask."""
    captions = [caption for item in items if (caption := next(filter(str.strip, item.get(CAPTIONS) or []), None))]
    some = captions[:: max(1, len(captions) // MEASURED_QUERIES)]
    return encode_texts(encoder, some).numpy() if some else None
