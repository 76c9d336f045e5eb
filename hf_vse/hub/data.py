"""Publishes image-caption data as parquet with the images in it, and a data set card.

from hf_vse import load_pairs
from hf_vse.hub.data import push_data
push_data(load_pairs("scenes"), "org/scenes", source="scenes", license="apache-2.0")
load_pairs("org/scenes")  # the same images, captions and fingerprints
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import huggingface_hub
from datasets import Dataset, DatasetDict
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi
from tqdm.auto import tqdm

from hf_vse.data.images import stored_images, why_unreadable
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_FEATURES, IMAGE_ID, fingerprint
from hf_vse.hub.contents import CARD
from hf_vse.hub.errors import hub_errors
from hf_vse.hub.private import without_paths
from hf_vse.hub.push import read_card
from hf_vse.hub.signature import is_ours, written_card

logger = logging.getLogger(__name__)

PHOTOGRAPHERS = (
    "The photographs belong to the people who took them and put them on Flickr; whoever shares the captions cannot "
    "give them away. Before you make this public, or use it, read the terms of the original data set"
)
# source -> where it comes from, and whose it is
SOURCES = {
    "scenes": ("the generated scenes of hf_vse", "The pictures are generated; nobody's photographs are in them."),
    "coco": (
        "[MS-COCO](https://cocodataset.org), Karpathy split",
        f"{PHOTOGRAPHERS}: https://cocodataset.org/#termsofuse.",
    ),
    "flickr30k": ("Flickr30K, Karpathy split", f"{PHOTOGRAPHERS}: https://shannon.cs.illinois.edu/DenotationGraph/."),
    "flickr8k": ("Flickr8k, Karpathy split", f"{PHOTOGRAPHERS} (M. Hodosh, P. Young, J. Hockenmaier, JAIR 2013)."),
}
COLUMNS = {
    IMAGE: "the photograph",
    IMAGE_FEATURES: "features that take the place of the photograph",
    IMAGE_ID: "number of the image; rows with equal numbers show one image",
    CAPTIONS: "every caption of the image",
    "caption_ids": "numbers of the captions, in the same order",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def push_data(
    splits: DatasetDict,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    license: str | None = None,
    source: str | None = None,
) -> str:
    """Publishes the splits of `load_pairs` and returns their address.

    Images that cannot be read are left out and counted. When it is repeated after an interruption, files that have
    arrived are not sent again. The data appear in one commit, the card in the next. A card that a person changed is
    kept.

    Args:
        splits: `train`, `validation`, `test` in the columns of `schema.py`.
        repo_id: "org/name"; created if it does not exist.
        private, token: as for `push_model`.
        license: of the data, such as "cc-by-4.0".
        source: where they come from: "scenes", "coco", "flickr30k", "flickr8k", or a description for the card.

    Raises:
        ValueError: streamed or empty splits, other columns, no readable image, one that is a link to somewhere else,
            or the Hub refuses.
        ConnectionError: the upload did not finish.
    """
    check_splits(splits)
    for name, split in splits.items():
        check_links(name, split)
    kept, broken = DatasetDict(), {}
    for name, split in splits.items():
        kept[name], broken[name] = without_broken_images(name, split)
    if fields := sorted({name for split in kept.values() for name in split.column_names} - COLUMNS.keys()):
        logger.warning("%s: these fields of the source are published too: %s", repo_id, ", ".join(fields))
    if source in SOURCES and source != "scenes":
        logger.warning("%s: %s", source, SOURCES[source][1])
    with hub_errors(repo_id):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        kept.push_to_hub(repo_id, token=token, commit_message="Upload images and captions")
        there = read_card(repo_id, token=token, repo_type="dataset")
        if there is None or is_ours(there, DatasetCard):
            text = data_card(there, kept, broken, repo_id, license=license, source=source)
            card = CommitOperationAdd(CARD, text.encode())
            api.create_commit(repo_id, [card], commit_message="Write data set card", repo_type="dataset")
        else:
            logger.warning("the card of %s was changed by hand and is kept", repo_id)
    return f"{api.endpoint}/datasets/{repo_id}"


def check_splits(splits: DatasetDict) -> None:
    for name, split in splits.items():
        if not isinstance(split, Dataset):
            raise ValueError(f"split {name!r} is a stream: load it with streaming=False to publish it")
        has_images = IMAGE in split.column_names or IMAGE_FEATURES in split.column_names
        if not has_images or CAPTIONS not in split.column_names or IMAGE_ID not in split.column_names:
            raise ValueError(
                f"split {name!r} has the columns {', '.join(split.column_names)}: load it with load_pairs"
            )
        if not len(split):
            raise ValueError(f"split {name!r} is empty: leave it out")
    if not splits:
        raise ValueError("there is no split to publish: load data with load_pairs")


def check_links(name: str, split: Dataset) -> None:
    """Raises ValueError if an image is a symbolic link to a file outside the folder of the images."""
    if IMAGE not in split.column_names:
        return
    stored = stored_images(undecoded_images(split))
    files = [os.path.abspath(path) for path, content in stored if path and content is None and "://" not in path]
    if not files:
        return
    places = [os.path.commonpath([os.path.dirname(file) for file in files]), huggingface_hub.constants.HF_HUB_CACHE]
    real = tuple(os.path.join(os.path.realpath(place), "") for place in places)
    for file in files:
        target = os.path.realpath(file)
        if os.path.exists(file) and not target.startswith(real):
            raise ValueError(
                f"split {name!r}: {file} is a link to {target}, outside of {places[0]}: put a copy there to publish it"
            )


def without_broken_images(name: str, split: Dataset) -> tuple[Dataset, int]:
    """The rows whose image can be decoded, and how many cannot."""
    if IMAGE not in split.column_names:
        return split, 0
    good, first, seen = [], "", 0
    with ThreadPoolExecutor() as pool, tqdm(total=len(split), desc=f"checking {name}", leave=False) as bar:
        for batch in undecoded_images(split).iter(batch_size=256):
            for reason in pool.map(why_unreadable, batch[IMAGE]):
                first = first or reason or ""
                if not reason:
                    good.append(seen)  # not the count of the bar, which stays at 0 where bars are switched off
                seen += 1
                bar.update()
    broken = len(split) - len(good)
    if not good:
        raise ValueError(f"split {name!r}: none of the {broken:,} images can be read (the first: {first})")
    if broken:
        logger.warning(
            "split %s: %d of %d images cannot be read and are left out: %s", name, broken, len(split), first
        )
    return (split.select(good), broken) if broken else (split, 0)


def data_card(
    there: str | None,
    splits: DatasetDict,
    broken: dict[str, int],
    repo_id: str,
    *,
    license: str | None,
    source: str | None,
) -> str:
    """The signed card: the header that `datasets` wrote with ours in it, and the text."""
    data: Any = DatasetCard(there or "---\n{}\n---\n", ignore_metadata_errors=True).data
    images, title = sum(map(len, splits.values())), repo_id.rpartition("/")[2]
    data.license = license or data.get("license")
    data.language = ["en"]
    data.pretty_name = title
    data.task_categories = ["image-to-text", "text-to-image", "zero-shot-image-classification"]
    data.size_categories = [next((size for limit, size in SIZES if images < limit), "n>1M")]
    data.tags = list(dict.fromkeys(["image-text-retrieval", "hf_vse", *data.get("tags", [])]))
    origin, owners = SOURCES.get(source or "", (without_paths(source or "", "model") or "an unnamed collection", ""))
    names = next(iter(splits.values())).column_names
    return written_card(
        "data_card.md.j2",
        data,
        DatasetCard,
        title=title,
        repo_id=repo_id,
        origin=origin,
        owners=owners,
        splits=[split_cells(name, split, broken[name]) for name, split in splits.items()],
        columns={name: COLUMNS.get(name, "a field of the source") for name in names},
        image=IMAGE if IMAGE in names else IMAGE_FEATURES,
    )


def split_cells(name: str, split: Dataset, broken: int) -> list[str]:
    """A line of the table of splits."""
    plain = split.with_format(None)
    captions = plain[CAPTIONS][:]
    counts = [len(of_image) for of_image in captions]
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    digest = fingerprint(plain[IMAGE_ID][:], captions)
    return [name, f"{len(split):,}", f"{sum(counts):,}", span, f"{broken:,}", f"`{digest}`"]
