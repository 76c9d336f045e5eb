"""While a tower is frozen its outputs never change: they are computed once, kept in Arrow, and read instead.

The outputs of a split lie in a folder named after everything they depend on: weights, image processor or tokenizer,
pooling, crops, and the images or captions themselves. So a second run finds them, and a run with anything changed does
not. They are written in shards, each complete or absent, by all processes; an interrupted computation continues.
"""

import json
import logging
import os
import socket
import uuid
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from datasets.table import InMemoryTable
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_vse.data.collator import VSECollator
from hf_vse.data.decoding import groups_in_flight
from hf_vse.data.digests import configuration_digest, images_digest, tokenizer_digest, weights_digest
from hf_vse.data.encoding import batches_of, to_device
from hf_vse.data.features import stored_field
from hf_vse.data.images import check_broken_share
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTION_FEATURES, CAPTIONS, IMAGE, flatten_captions, view_column
from hf_vse.data.transforms import Augmentation, needed_side
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments

logger = logging.getLogger(__name__)

SHARD = 512  # images
CACHE = "hf_vse_frozen"


def cache_frozen_towers(
    model: VSEModel, processor: VSEProcessor, splits: dict[str, Any], args: VSETrainingArguments
) -> dict[str, Any]:
    """The splits with the outputs of the frozen towers as columns, instead of photographs and beside captions.

    A split without photographs keeps its features; a stream and a tower with learned pooling are left as they are.
    """
    images, captions = frozen_sides(model, args)
    if not (images or captions) or isinstance(splits["train"], IterableDataset):
        return splits
    root = Path(args.frozen_cache_dir or Path(datasets.config.HF_CACHE_HOME) / CACHE).expanduser()
    check_shared(root)
    model.to(args.device).eval()
    found = {}
    for name in (name for name in ("train", "validation") if name in splits):
        split = splits[name]
        if images and IMAGE in split.column_names:
            views = 1 + args.cached_crops if name == "train" else 1
            split = with_image_features(model, processor, split, root, args, views)
        if captions:
            split = with_caption_features(model, processor, split, root, args)
        found[name] = split
    return splits | found


def check_shared(root: Path) -> None:
    """Raises ValueError in all processes unless all of them see what one of them writes: each computes a part of the
    outputs for all, which takes hours, and reads the parts of the others."""
    state = PartialState()
    if state.num_processes == 1:
        return
    (name,) = broadcast_object_list([f".seen-by-all-{uuid.uuid4().hex}"])
    if state.is_main_process:
        root.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    state.wait_for_everyone()
    seen = gather_object([(socket.gethostname(), (root / name).is_file())])
    if state.is_main_process:
        (root / name).unlink()
    blind = sorted({host for host, sees in seen if not sees})
    if blind:
        raise ValueError(
            f"frozen_cache_dir={str(root)!r} is not the same folder on all machines: {', '.join(blind)} cannot see "
            f"what {seen[0][0]} writes there; give a folder on storage that all share, or cache_frozen=false"
        )


def frozen_sides(model: VSEModel, args: VSETrainingArguments) -> tuple[bool, bool]:
    """Whether the outputs of the image tower and of the text tower are the same in every epoch."""
    if not args.cache_frozen:
        return False, False
    images = args.freeze_image_tower and any(True for _ in model.vision_model.parameters())
    texts = args.freeze_text_tower
    if images and model.config.vision_pooling == "gpo":
        logger.info("the frozen image tower is run in every epoch: vision_pooling 'gpo' learns from all of its states")
        images = False
    if texts and (model.config.text_pooling == "gpo" or args.word_dropout):
        logger.info(
            "the frozen text tower is run in every epoch: text_pooling 'gpo' or word_dropout changes its output"
        )
        texts = False
    return images, texts


def with_image_features(
    model: VSEModel, processor: VSEProcessor, split: Dataset, root: Path, args: VSETrainingArguments, views: int
) -> Dataset:
    """The split with pooled outputs of the image tower instead of photographs; one that cannot be read is left out.

    View 0 is framed as in evaluation, every further one is a random crop, mirrored or not, as `args` says.
    """
    images = undecoded_images(split)
    augmentation = args.augmentation or Augmentation(1.0, False)
    described = {
        "image processor": processor.image_processor.to_dict(),
        "configuration": configuration_digest(model.config.vision_config),
        "pooling": model.config.vision_pooling,
        "augmentation": repr(augmentation) if views > 1 else None,
        "views": views,
        "seed": args.seed if views > 1 else None,
        "bf16": args.bf16,
    }
    folder = cache_folder(root, "images", model.vision_model, described, images_digest(images))
    collate = Views(processor, augmentation, args.seed, views)

    def read_views(readable: list[bool], inputs: dict[str, torch.Tensor]) -> np.ndarray:
        """(views, images, dim), not a number where an image cannot be read."""
        found = np.full((views, len(readable), model.visual_projection.in_features), np.nan, np.float32)
        if inputs:
            pooled = run_tower(model, model.pool_images, inputs, args)
            found[:, np.array(readable)] = pooled.reshape(views, sum(readable), -1)
        return found

    def encode(rows: range) -> pa.Table:
        batch_size = max(1, args.per_device_eval_batch_size // views)
        items = [(row, images[row]) for row in rows]
        loader = DataLoader(items, batch_size, collate_fn=collate, num_workers=args.dataloader_num_workers)
        seen = np.concatenate([read_views(*batch) for batch in loader], axis=1)
        return pa.table({view_column(view): rows_of_features(of_view) for view, of_view in enumerate(seen)})

    table = compute(folder, len(images), encode, f"frozen image tower, {views} crop(s)")
    return without_unreadable(with_columns(split.remove_columns(IMAGE), table), args.max_broken_share)


class Views:
    """Makes a batch of `(row, item)`: which images can be read, and all views of these, one view after the other."""

    def __init__(self, processor: VSEProcessor, augmentation: Augmentation, seed: int, views: int):
        self.plain = VSECollator(processor, max_broken_share=1.0)
        self.cropping = VSECollator(processor, augmentation)
        self.seed = seed
        self.views = views
        self.needed = needed_side(processor.image_processor) if views == 1 else None  # a crop may take any part

    def __call__(self, items: list[tuple[int, dict]]) -> tuple[list[bool], dict[str, torch.Tensor]]:
        readable: list[bool] = []
        pixels: list[list[torch.Tensor]] = [[] for _ in range(self.views)]
        for group in groups_in_flight(self.plain.read(item[IMAGE], self.needed) for _, item in items):
            rows = [row for row, _ in items[len(readable) : len(readable) + len(group)]]
            kept = [(row, image) for row, image in zip(rows, group, strict=True) if image is not None]
            readable += [image is not None for image in group]
            for view in range(self.views if kept else 0):
                rngs = [np.random.default_rng((self.seed, row, view)) for row, _ in kept]
                collator = self.cropping if view else self.plain
                pixels[view].append(collator.image_inputs([image for _, image in kept], rngs)["pixel_values"])
        found = [part for of_view in pixels for part in of_view]
        return readable, {"pixel_values": torch.cat(found)} if found else {}


def with_caption_features(
    model: VSEModel, processor: VSEProcessor, split: Dataset, root: Path, args: VSETrainingArguments
) -> Dataset:
    """The split with the pooled output of the text tower for every caption."""
    captions = split.with_format(None)[CAPTIONS][:]
    tokenizer = processor.tokenizer
    described = {
        "tokenizer": tokenizer_digest(tokenizer),
        "max_length": tokenizer.model_max_length,
        "configuration": configuration_digest(model.config.text_config),
        "pooling": model.config.text_pooling,
        "bf16": args.bf16,
    }
    digest = blake2b(json.dumps(captions).encode(), digest_size=16).hexdigest()
    folder = cache_folder(root, "captions", model.text_model, described, digest)

    def encode(rows: range) -> pa.Table:
        of_rows = captions[rows.start : rows.stop]
        texts, _ = flatten_captions(of_rows)
        found = np.empty((len(texts), model.config.text_config.hidden_size), np.float32)
        for places in batches_of(sorted(range(len(texts)), key=lambda place: len(texts[place])), SHARD // 2):
            inputs = dict(processor(text=[texts[place] for place in places]))
            found[places] = run_tower(model, model.pool_texts, inputs, args)
        starts = np.cumsum([0] + [len(of_image) for of_image in of_rows]).astype(np.int32)
        return pa.table({CAPTION_FEATURES: pa.ListArray.from_arrays(pa.array(starts), rows_of_features(found))})

    return with_columns(split, compute(folder, len(captions), encode, "frozen text tower"))


@torch.no_grad()
def run_tower(
    model: VSEModel, pool: Callable, inputs: dict[str, torch.Tensor], args: VSETrainingArguments
) -> np.ndarray:
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        return pool(**to_device(inputs, model))[1].float().cpu().numpy()


def cache_folder(root: Path, kind: str, tower: nn.Module, described: dict[str, Any], digest: str) -> Path:
    """The folder of these outputs; `described.json` in it tells a person what they are."""
    described = {"weights": weights_digest(tower), "data": digest} | described
    text = json.dumps(described, indent=1, sort_keys=True, default=str)
    folder = root / f"{kind}-{blake2b(text.encode(), digest_size=12).hexdigest()}"
    with PartialState().main_process_first():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "described.json").write_text(text, encoding="utf-8")
    return folder


def compute(folder: Path, total: int, encode: Callable[[range], pa.Table], title: str) -> pa.Table:
    """Encodes what is missing, every process its shards, and returns all rows, memory-mapped."""
    state = PartialState()
    shards = [range(start, min(start + SHARD, total)) for start in range(0, total, SHARD)]
    paths = [folder / f"{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    missing = [number for number, path in enumerate(paths) if not path.is_file()]
    state.wait_for_everyone()  # nobody writes before everybody has looked
    if missing:
        logger.info("%s: %d of %d shards to compute into %s", title, len(missing), len(shards), folder)
    own = missing[state.process_index :: state.num_processes]
    for number in tqdm(own, title, unit="shard", disable=not (own and state.is_main_process)):
        write_shard(encode(shards[number]), paths[number])
    state.wait_for_everyone()
    table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths])
    files = [{"path": str(path)} for path in paths]
    return pa.Table.from_arrays(
        table.columns, schema=pa.schema([stored_field(field, files) for field in table.schema])
    )


def rows_of_features(values: np.ndarray) -> pa.FixedSizeListArray:
    """(rows, dim) -> an Arrow column of rows."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def write_shard(table: pa.Table, path: Path) -> None:
    """A shard is complete or absent: it gets its name when it is written."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    unfinished.replace(path)


def with_columns(split: Dataset, features: pa.Table) -> Dataset:
    """The split with further columns that stay where they are, on disk."""
    chosen = split if split._indices is None else split.flatten_indices()
    table = chosen.with_format(None).data.table
    for name in features.column_names:
        table = table.append_column(features.schema.field(name), features.column(name))
    digest = blake2b(f"{split._fingerprint} {features.column_names}".encode(), digest_size=8).hexdigest()
    return Dataset(InMemoryTable(table), fingerprint=digest)


def without_unreadable(split: Dataset, max_broken_share: float) -> Dataset:
    """The split without the images whose features are not a number; too many of them are an error."""
    chunks = split.data.column(view_column(0)).chunks
    first = np.concatenate([chunk.flatten().to_numpy()[:: chunk.type.list_size] for chunk in chunks])
    broken = {f"row {row}": "cannot be read" for row in np.flatnonzero(np.isnan(first))}
    check_broken_share(broken, len(split), max_broken_share)
    return split.select(np.flatnonzero(~np.isnan(first))) if broken else split
