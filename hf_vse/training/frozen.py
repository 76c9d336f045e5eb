"""The outputs of a frozen tower never change: they are computed once, kept on disk, and read in every epoch.

So are the states that the frozen blocks of an image tower give to the blocks above, which learn (see
`lower_blocks.py`).

A store (see `embed/store.py`) keeps them. Its name is a digest of everything they depend on: weights, image processor
or tokenizer, pooling, crops. A split is divided into shards by position, so its columns stay memory-mapped; a shard is
found by the contents of its images or captions. The processes share the shards; an interrupted computation continues.
"""

import json
import logging
import socket
import uuid
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset, IterableDataset
from datasets.table import InMemoryTable
from tqdm.auto import tqdm

from hf_vse.data.collator import VSECollator
from hf_vse.data.digests import (
    configuration_digest,
    image_processor_digest,
    item_key,
    tokenizer_digest,
    weights_digest,
)
from hf_vse.data.features import feature_column, feature_values, stored_field
from hf_vse.data.images import check_broken_share
from hf_vse.data.long_captions import Pieces, in_pieces
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import (
    CAPTION_FEATURES,
    CAPTIONS,
    FOIL_FEATURES,
    FOILS,
    IMAGE,
    IMAGE_FEATURES,
    IMAGE_STATES,
    flatten_captions,
    view_column,
)
from hf_vse.data.transforms import Augmentation, needed_side
from hf_vse.embed.batches import image_batches, image_parts, text_batches, to_device
from hf_vse.embed.memory import place_on
from hf_vse.embed.store import KEY, Store
from hf_vse.model.configuration_vse import FEATURES_MODEL_TYPE
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.lower_blocks import below, check_chain, first_trained, states_below

logger = logging.getLogger(__name__)

SHARD = 512  # images
STATES_SHARE = 8  # by which that of states has fewer, as they are large
NOISE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
CAPTIONS_AT_ONCE = 256
CACHE = "hf_vse_frozen"
CROP_SEED = 0  # not that of the run: all seeds share the crops that are kept


def cache_frozen_towers(
    model: VSEModel, processor: VSEProcessor, splits: dict[str, Any], args: VSETrainingArguments
) -> dict[str, Any]:
    """The splits with the outputs of the frozen towers as columns: instead of the images, and beside the captions
    and their foils, if there are any.

    Where only the last blocks of the image tower learn, the training split gets the states below them. A split without
    images keeps its features. Streams, and towers with learned pooling, are left as they are, and so are splits other
    than those below: they are read once.
    """
    images, captions = frozen_sides(model, args)
    kept = args.unfreeze_last_blocks if keeps_states(model, args) else None
    if not (images or captions or kept) or isinstance(splits.get("train"), IterableDataset):
        return splits
    root = cache_root(args)
    check_shared(root)
    place_on(model, args.device).eval()
    found = {}
    for name in (name for name in ("train", "validation", "control") if name in splits):
        split = splits[name]
        if IMAGE in split.column_names and (images or (kept and name == "train")):
            views = 1 + args.cached_crops if name == "train" else 1
            split = with_image_outputs(model, processor, split, root, args, views, kept, alone=name == "train")
        if captions:
            texts = split.with_format(None)[CAPTIONS][:]
            pieces = Pieces(processor).of_long(texts) if name == "train" else {}
            texts = [in_pieces(of_image, pieces) for of_image in texts]
            split = with_text_features(model, processor, split, root, args, texts, CAPTION_FEATURES)
        if captions and FOILS in split.column_names:
            texts = split.with_format(None)[FOILS][:]
            split = with_text_features(model, processor, split, root, args, texts, FOIL_FEATURES)
        found[name] = split
    return splits | found


def with_kept_outputs(model: VSEModel, processor: VSEProcessor, split: Dataset, args: VSETrainingArguments) -> Dataset:
    """The split with the outputs of the frozen towers that training has kept, for the report of a finished run.

    Those of training in bf16 are not what the finished model gives in float32, and images that cannot be read have to
    be counted: there the split is left as it is.
    """
    images, captions = frozen_sides(model, args)
    if args.bf16 or not (images or captions):
        return split
    place_on(model, args.device).eval()
    texts = split.with_format(None)[CAPTIONS][:]
    if images and IMAGE in split.column_names:
        found = with_image_outputs(model, processor, split, cache_root(args), args, views=1, alone=False)
        split = found if len(found) == len(split) else split
    if captions:
        split = with_text_features(model, processor, split, cache_root(args), args, texts, CAPTION_FEATURES)
    return split


def cache_root(args: VSETrainingArguments) -> Path:
    return Path(args.frozen_cache_dir or Path(datasets.config.HF_CACHE_HOME) / CACHE).expanduser()


def check_shared(root: Path) -> None:
    """Raises ValueError in all processes if one of them cannot see a file that another one writes.

    Each process computes a part of the outputs and reads the parts of the others.
    """
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
    images = args.freeze_image_tower and model.config.vision_config.model_type != FEATURES_MODEL_TYPE
    texts = args.freeze_text_tower
    if images and model.config.vision_pooling == "gpo":
        logger.info("the frozen image tower is run in every epoch: vision_pooling 'gpo' learns from all of its states")
        images = False
    if texts and (model.config.text_pooling == "gpo" or args.word_dropout or args.set_dropout):
        logger.info(
            "the frozen text tower is run in every epoch: text_pooling 'gpo', word_dropout or set_dropout changes its "
            "output"
        )
        texts = False
    return images, texts


def keeps_states(model: VSEModel, args: VSETrainingArguments) -> bool:
    """Whether the states below the last blocks of the image tower are kept: where crops are, and only those learn."""
    asked = args.cache_frozen and args.cached_crops and args.unfreeze_last_blocks
    whole = args.freeze_image_tower or args.lora_rank or model.config.vision_config.model_type == FEATURES_MODEL_TYPE
    return bool(asked and not whole)


class ImageOutput(NamedTuple):
    """What is kept of an image: by which modules `run` makes it, the name of its column, its type and shape."""

    modules: list[torch.nn.Module]
    run: Callable[..., Any]
    column: str
    dtype: type
    shape: tuple[int, ...]


def image_output(model: VSEModel, prepare: "Views", kept: int | None, alone: bool) -> ImageOutput:
    """The pooled output of the image tower, of an image `alone` or as in evaluation, or the states below its last
    `kept` blocks, in float16.

    Raises:
        ValueError: the tower cannot be run from such a block on.
    """
    if kept is None:
        pooled = (model.pooled_sizes["vision"],)
        run_whole = partial(model.pool_images, alone=alone)
        return ImageOutput(model.tower_modules()["vision"], run_whole, IMAGE_FEATURES, np.float32, pooled)
    block = first_trained(model, kept)
    probe = to_device({name: each.flatten(0, 1) for name, each in prepare([NOISE]).items()}, model)
    check_chain(model, block, probe)
    shape = tuple(states_below(model, block, probe).shape[1:])

    def run(**inputs: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, states_below(model, block, inputs)

    return ImageOutput(below(model, block), run, IMAGE_STATES, np.float16, shape)


def with_image_outputs(
    model: VSEModel,
    processor: VSEProcessor,
    split: Dataset,
    root: Path,
    args: VSETrainingArguments,
    views: int,
    kept: int | None = None,
    alone: bool = True,
) -> Dataset:
    """The split with pooled outputs of the image tower instead of its images, without those that cannot be read.

    View 0 is framed as in evaluation; every further view is a random crop, mirrored or not, as `args` says.

    Args:
        kept: instead of the outputs, the states below the last so many blocks, see `image_output`.
        alone: as in training, without the mirror image that `mirror_average` adds in evaluation.
    """
    images = undecoded_images(split)
    augmentation = args.augmentation or Augmentation(1.0, False)
    prepare = Views(processor, augmentation, views)
    output = image_output(model, prepare, kept, alone)
    described = {
        "weights": weights_digest(*output.modules),
        "image processor": image_processor_digest(processor.image_processor),
        "configuration": configuration_digest(model.config.vision_config),
        "pooling": model.config.vision_pooling,
        "augmentation": repr(augmentation) if views > 1 else None,
        "views": views,
        "seed": CROP_SEED if views > 1 else None,
        "bf16": args.bf16,
    } | ({} if kept is None else {"states below the last blocks": kept})
    described |= {"mirror average": True} if model.config.mirror_average and not alone else {}
    needed = needed_side(processor.image_processor) if views == 1 else None  # a crop may take any part
    batch_size = max(1, args.per_device_eval_batch_size // views)

    def run(inputs: dict[str, torch.Tensor], count: int) -> np.ndarray:
        outputs = run_tower(model, output.run, {k: v.flatten(0, 1) for k, v in inputs.items()}, args)
        return outputs.reshape(count, views, *output.shape).astype(output.dtype)

    def encode(rows: range) -> dict[str, pa.Array]:
        found: np.ndarray = np.full((len(rows), views, *output.shape), np.nan, output.dtype)
        share, workers = images.select(rows), args.dataloader_num_workers
        for places, outputs in image_batches(run, share, range(len(rows)), prepare, batch_size, workers, needed):
            found[places] = outputs
            if np.isinf(outputs).any():
                raise ValueError("cached_crops: states of the image tower exceed float16: give cached_crops: 0")
        return {view_column(view, output.column): feature_column(found[:, view]) for view in range(views)}

    keys = [item_key(row[IMAGE]) for row in images]
    store = Store.of(root, "images" if kept is None else "states", described)
    shard = None if kept is None else max(1, SHARD // STATES_SHARE)
    table = frozen_outputs(store, keys, encode, f"frozen image tower, {views} crop(s)", shard)
    return without_unreadable(with_columns(split.remove_columns(IMAGE), table), args.max_broken_share)


class Views:
    """Prepares images: the plain view of all of them, and random crops, which an image alone determines."""

    def __init__(self, processor: VSEProcessor, augmentation: Augmentation, views: int):
        self.plain = VSECollator(processor)
        self.cropping = VSECollator(processor, augmentation)
        self.views = views

    def __call__(self, images: list[PIL.Image.Image]) -> dict[str, torch.Tensor]:
        contents = [crc32(image.tobytes()) for image in images] if self.views > 1 else []
        found = [self.plain.image_inputs(images, [])]
        for view in range(1, self.views):
            rngs = [np.random.default_rng((CROP_SEED, content, view)) for content in contents]
            found.append(self.cropping.image_inputs(images, rngs))
        return {name: torch.stack([inputs[name] for inputs in found], dim=1) for name in found[0]}


def with_text_features(
    model: VSEModel,
    processor: VSEProcessor,
    split: Dataset,
    root: Path,
    args: VSETrainingArguments,
    texts_of_images: list[list[str]],
    column: str,
) -> Dataset:
    """The split with a column of the pooled outputs of the text tower for the texts of every image."""
    described = {
        "weights": weights_digest(*model.tower_modules()["text"]),
        "tokenizer": tokenizer_digest(processor.tokenizer),
        "reading": processor.reading,
        "configuration": configuration_digest(model.config.text_config),
        "pooling": model.config.text_pooling,
        "layers": model.config.text_layers,
        "bf16": args.bf16,
    }

    def run(texts: list[str]) -> np.ndarray:
        return run_tower(model, model.pool_texts, dict(processor(text=texts)), args)

    def encode(rows: range) -> dict[str, pa.Array]:
        of_rows = texts_of_images[rows.start : rows.stop]
        texts, _ = flatten_captions(of_rows)
        found = np.empty((len(texts), model.pooled_sizes["text"]), np.float32)
        for places, pooled in text_batches(run, texts, range(len(texts)), CAPTIONS_AT_ONCE):
            found[places] = pooled
        starts = np.cumsum([0] + [len(of_image) for of_image in of_rows]).astype(np.int32)
        return {column: pa.ListArray.from_arrays(pa.array(starts), feature_column(found))}

    keys = [item_key(json.dumps(of_image).encode()) for of_image in texts_of_images]
    kind = {CAPTION_FEATURES: "captions", FOIL_FEATURES: "foils"}[column]
    store = Store.of(root, kind, described)
    return with_columns(split, frozen_outputs(store, keys, encode, f"frozen text tower, {kind}"))


@torch.no_grad()
def run_tower(
    model: VSEModel, pool: Callable, inputs: dict[str, torch.Tensor], args: VSETrainingArguments
) -> np.ndarray:
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
        return np.concatenate([pool(**part)[1].float().cpu().numpy() for part in image_parts(inputs, model)])


def frozen_outputs(
    store: Store, keys: list[str], encode: Callable[[range], dict[str, pa.Array]], title: str, shard: int | None = None
) -> pa.Table:
    """Computes the shards that the store lacks, each process a share, and returns all rows, memory-mapped.

    Args:
        shard: rows of one, `SHARD` by default.
    """
    shard = shard or SHARD
    state = PartialState()
    shards = [range(start, min(start + shard, len(keys))) for start in range(0, len(keys), shard)]
    found: list[Any] = [store.find(keys[rows.start : rows.stop]) for rows in shards]
    missing = [number for number, there in enumerate(found) if there is None]
    state.wait_for_everyone()  # nobody writes before everybody has looked
    if missing:
        logger.info("%s: %d of %d shards to compute into %s", title, len(missing), len(shards), store.folder)
    own = missing[state.process_index :: state.num_processes]
    for number in tqdm(own, title, unit="shard", disable=not (own and state.is_main_process)):
        rows = shards[number]
        store.write(keys[rows.start : rows.stop], encode(rows))
    state.wait_for_everyone()
    for number in missing:
        rows = shards[number]
        found[number] = store.find(keys[rows.start : rows.stop])
    table = pa.concat_tables([part.drop_columns(KEY) for _, part in found])
    files = [{"path": str(path)} for path, _ in found]
    return pa.Table.from_arrays(
        table.columns, schema=pa.schema([stored_field(field, files) for field in table.schema])
    )


def with_columns(split: Dataset, features: pa.Table) -> Dataset:
    """The split with further columns, which stay on disk."""
    chosen = split if split._indices is None else split.flatten_indices()
    table = chosen.with_format(None).data.table
    for name in features.column_names:
        table = table.append_column(features.schema.field(name), features.column(name))
    digest = blake2b(f"{split._fingerprint} {features.column_names}".encode(), digest_size=8).hexdigest()
    return Dataset(InMemoryTable(table), fingerprint=digest)


def without_unreadable(split: Dataset, max_broken_share: float) -> Dataset:
    """The split without the images that could not be read; too many of them are an error."""
    column = next(name for name in (IMAGE_FEATURES, IMAGE_STATES) if name in split.column_names)
    values = [feature_values(chunk)[1] for chunk in split.data.column(column).chunks]
    first = np.concatenate([each.reshape(len(each), -1)[:, 0] for each in values])
    broken = {f"row {row}": "cannot be read" for row in np.flatnonzero(np.isnan(first))}
    check_broken_share(broken, len(split), max_broken_share)
    return split.select(np.flatnonzero(~np.isnan(first))) if broken else split
