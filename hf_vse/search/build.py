"""A gallery from photographs: encoded once, in parts, and only what is new or changed the next time.

Vectors that an earlier gallery in the folder, or the parts of an interrupted run, hold for the key of an image are
taken over; the rest is encoded by all processes, part by part, each part whole or absent. Another encoder makes
everything new. Where nothing has changed, nothing is written.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm

from hf_vse.data.images import check_broken_share
from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_FEATURES
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.files import read_json
from hf_vse.search.gallery import GalleryIndex, recipe_of
from hf_vse.search.header import HEADER_FILE, KEYS_FILE, VECTORS_FILE, read_header
from hf_vse.search.model import model_facts
from hf_vse.search.parts import Vectors, read_parts, write_part
from hf_vse.search.photographs import DatasetImage, Photograph, of_dataset, of_folder
from hf_vse.search.plan import bytes_on_disk, choose_plan
from hf_vse.search.storage import check_listed_files, check_place, locked, remove_leftovers, version_folder
from hf_vse.search.vectors import MEASURED_QUERIES, TARGET_RECALL, check_unit

logger = logging.getLogger(__name__)

PART = 1024  # images


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

    Raises:
        OSError, ValueError: the source or the folder is not what it should be, see `of_folder` and `check_place`; or
            the encoder has no digest.
    """
    folder = Path(folder)
    if encoder.digest is None:
        raise ValueError(
            f"{encoder.name} has no digest: nobody could tell later whether a query or a new image fits the gallery; "
            "define its class in a file, or give it a digest that changes with weights and preparation"
        )
    if isinstance(source, Dataset):
        root, photographs, facts = None, of_dataset(source, encoder), {}
    else:
        root = Path(source)
        photographs, facts = of_folder(root)
    shape = len(photographs), encoder.dim
    check_place(folder, root, bytes_on_disk(choose_plan(*shape, kind), *shape))
    facts |= {"root": root and str(root.absolute()), "origin": origin} | model_facts(encoder)
    options = {"kind": kind, "recall": recall, "query_bank": list(query_bank)}
    state = PartialState(cpu=not torch.accelerator.is_available())
    with locked(folder) if state.is_main_process else nullcontext():
        known = list(known_vectors(folder, encoder))
        missing = without_vectors(photographs, known)
        state.wait_for_everyone()  # nobody writes before everybody has looked
        own = missing[state.process_index :: state.num_processes]
        encode_missing(own, encoder, folder, batch_size, num_workers, progress and state.is_main_process)
        state.wait_for_everyone()
        if state.is_main_process:
            known += read_parts(folder, encoder.digest, encoder.dim)
            found, facts["broken"] = with_vectors(photographs, known, max_broken_share)
            write_gallery(found, known, encoder, folder, facts, progress, **options)
        state.wait_for_everyone()
    return GalleryIndex.load(folder)


def write_gallery(
    found: Sequence[Photograph],
    known: Sequence[Vectors],
    encoder: Encoder,
    folder: Path,
    facts: dict[str, Any],
    progress: bool,
    *,
    kind: str,
    recall: float,
    query_bank: list[str],
) -> None:
    """Indexes the vectors of the photographs, unless the gallery in the folder is just that."""
    keys, items = [each.key for each in found], [each.item for each in found]
    recipe = recipe_of(keys, items, facts, kind, recall, query_bank)
    if GalleryIndex.unchanged(folder, recipe) is None:
        embeds = gathered(keys, known, encoder)
        gallery = GalleryIndex.without_index(embeds, items, facts, choose_plan(*embeds.shape, kind))
        gallery.vectors.build(sample_queries(items, encoder), recall, progress)
        if query_bank:
            gallery.learn_hubs(encode_texts(encoder, query_bank).numpy())
        gallery.write(folder, recipe, keys)
    remove_leftovers(folder)


def known_vectors(folder: Path, encoder: Encoder) -> Iterator[Vectors]:
    """What the same encoder made before: the gallery in `folder`, and parts of interrupted runs."""
    if (folder / HEADER_FILE).is_file():
        try:
            yield from vectors_of_gallery(folder, encoder)
        except (OSError, ValueError) as error:
            logger.warning("the gallery in %s is not used (%s): its images are encoded anew", folder, error)
    yield from read_parts(folder, encoder.digest, encoder.dim)


def vectors_of_gallery(folder: Path, encoder: Encoder) -> Iterator[Vectors]:
    header = read_header(folder)
    if header.get("digest") != encoder.digest:
        logger.info("%s was made by another model, or with other weights: everything is encoded anew", folder)
    elif KEYS_FILE in header["files"]:
        check_listed_files(folder, header, (VECTORS_FILE, KEYS_FILE), whole=True)
        version = version_folder(folder, header["version"])
        yield Vectors.with_keys(version / VECTORS_FILE, read_json(version / KEYS_FILE, list), encoder.dim)


def without_vectors(photographs: Sequence[Photograph], known: Sequence[Vectors]) -> list[Photograph]:
    """Those that have to be encoded."""
    there = set().union(*(vectors.rows for vectors in known))
    missing = [photograph for photograph in photographs if photograph.key not in there]
    if there:
        logger.info("%d of %d images are encoded already", len(photographs) - len(missing), len(photographs))
    return missing


def encode_missing(
    photographs: Sequence[Photograph],
    encoder: Encoder,
    folder: Path,
    batch_size: int,
    num_workers: int,
    progress: bool,
) -> None:
    """Writes parts. An image that cannot be read gets no vector."""
    column = IMAGE if encoder.reads_photographs else IMAGE_FEATURES
    with tqdm(
        total=len(photographs), desc="encoding images", unit="image", disable=not (photographs and progress)
    ) as bar:
        for start in range(0, len(photographs), PART):
            part = photographs[start : start + PART]
            values = [each.value.read() if isinstance(each.value, DatasetImage) else each.value for each in part]
            found = encode_images(encoder, [{column: value} for value in values], batch_size, num_workers)
            embeds, readable = found.embeds.numpy(), found.readable.numpy()
            check_unit(embeds[readable], f"the vectors that {encoder.name} makes")
            if readable.any():
                keys = [each.key for each, good in zip(part, readable, strict=True) if good]
                write_part(folder, encoder.digest, embeds[readable], keys)
            bar.update(len(part))


def with_vectors(
    photographs: Sequence[Photograph], known: Sequence[Vectors], max_broken_share: float
) -> tuple[list[Photograph], list[str]]:
    """Those that could be encoded, and the names of the others.

    Raises:
        ValueError: too many of them, or all.
    """
    there = set().union(*(vectors.rows for vectors in known))
    found = [photograph for photograph in photographs if photograph.key in there]
    lost = [photograph.item for photograph in photographs if photograph.key not in there]
    broken = {str(item.get("file", f"row {item.get('row')}")): "cannot be read" for item in lost}
    check_broken_share(broken, len(photographs), max_broken_share)
    if not found:
        raise ValueError(f"none of the {len(photographs)} images can be read: there is nothing to search")
    return found, sorted(broken)


def gathered(keys: Sequence[str], known: Sequence[Vectors], encoder: Encoder) -> np.ndarray:
    """The vectors of these keys, in their order: (keys, dim) float32."""
    place = {key: (vectors, row) for vectors in known for key, row in vectors.rows.items()}
    embeds = np.empty((len(keys), encoder.dim), np.float32)
    for number, key in enumerate(keys):
        vectors, row = place[key]
        embeds[number] = vectors.embeds[row]
    return embeds


def sample_queries(items: Iterable[dict[str, Any]], encoder: Encoder) -> np.ndarray | None:
    """Captions of the gallery, evenly spread, as sentences that a person might ask."""
    captions = [caption for item in items if (caption := next(filter(str.strip, item.get(CAPTIONS) or []), None))]
    some = captions[:: max(1, len(captions) // MEASURED_QUERIES)]
    return encode_texts(encoder, some).numpy() if some else None
