"""Publishes image-caption data as parquet with the images in it, and a data set card.

from hf_vse import load_pairs
from hf_vse.hub.data import push_data
push_data(load_pairs("scenes"), "org/scenes", source="scenes", license="apache-2.0")
load_pairs("org/scenes")  # the same images, captions and fingerprints
"""

import logging
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
from datasets import Dataset, DatasetDict
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi
from tqdm.auto import tqdm

from hf_vse.data.images import stored_images, why_unreadable
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTIONS, IMAGE, IMAGE_FEATURES, IMAGE_ID, fingerprint
from hf_vse.hub.errors import hub_errors
from hf_vse.hub.push import read_card
from hf_vse.model.card_text_vse import table
from hf_vse.model.card_vse import is_ours, signed
from hf_vse.model.publish_vse import CARD, without_paths

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
    """Publishes what `load_pairs` returned and gives back its address.

    Images that cannot be read are left out and counted. Repeated after an interruption, it does not send again what
    has arrived; the data appear in one commit, the card in the next. A card that a person changed is kept.

    Args:
        splits: `train`, `validation`, `test` in the columns of `schema.py`.
        repo_id: "org/name"; made if it does not exist.
        private, token: as for `push_model`.
        license: of the data, such as "cc-by-4.0".
        source: where they come from: "scenes", "coco", "flickr30k", "flickr8k", or words for the card.

    Raises:
        ValueError: streamed or empty splits, other columns, no readable image, one that is a link to somewhere else,
            or the Hub refuses.
        ConnectionError: it did not finish.
    """
    check_splits(splits)
    for name, split in splits.items():
        check_links(name, split)
    kept, broken = DatasetDict(), {}
    for name, split in splits.items():
        kept[name], broken[name] = without_broken_images(name, split)
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
    """Raises ValueError where an image is a link out of the folder of all: it was not meant to be public."""
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
    data = DatasetCard(there or "---\n{}\n---\n", ignore_metadata_errors=True).data
    images = sum(map(len, splits.values()))
    data.license = license or data.get("license")
    data.language = ["en"]
    data.pretty_name = repo_id.rpartition("/")[2]
    data.task_categories = ["image-to-text", "text-to-image", "zero-shot-image-classification"]
    data.size_categories = [next((size for limit, size in SIZES if images < limit), "n>1M")]
    data.tags = list(dict.fromkeys(["image-text-retrieval", "hf_vse", *data.get("tags", [])]))
    return signed(data, card_text(splits, broken, repo_id, source), DatasetCard)


def card_text(splits: DatasetDict, broken: dict[str, int], repo_id: str, source: str | None) -> str:
    first = next(iter(splits.values()))
    words, owners = SOURCES.get(source, (without_paths(source or "", "model") or "an unnamed collection", ""))
    rows = [["split", "images", "captions", "captions of an image", "left out as unreadable", "fingerprint"]]
    for name, split in splits.items():
        captions = split.with_format(None)[CAPTIONS][:]
        digest = fingerprint(split.with_format(None)[IMAGE_ID][:], captions)
        counts = Counter(map(len, captions))
        span = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        total = sum(map(len, captions))
        rows.append([name, f"{len(split):,}", f"{total:,}", span, f"{broken[name]:,}", f"`{digest}`"])
    columns = [[f"`{name}`", COLUMNS.get(name, "")] for name in first.column_names]
    what = IMAGE if IMAGE in first.column_names else IMAGE_FEATURES
    return f"""# {repo_id.rpartition("/")[2]}

Images with their captions, one row for each image, from {words}. For image-text retrieval with
[visual-semantic embeddings](https://arxiv.org/abs/2110.08872).

{table(rows)}

The fingerprint is that of numbers and captions in their order; hf_vse records it with every evaluation.

## Columns

{table([["column", "what it is"], *columns])}

## How to load it

```python
from datasets import load_dataset

rows = load_dataset("{repo_id}")
rows["{next(iter(splits))}"][0]["{what}"], rows["{next(iter(splits))}"][0]["captions"]
```

```python
from hf_vse import load_pairs

pairs = load_pairs("{repo_id}")
```

## Whose data these are

{owners or "Images and captions belong to their owners; ask them before you share or use these."}
"""
