"""Embeds a data set with a model, and measures retrieval.

Every image is encoded once, however many captions it has, and sentences are encoded in the order of their length. With
several processes each one encodes its share. An image that cannot be read is left out with its captions, and counted.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor

from hf_vse.data.features import FeatureRows
from hf_vse.data.groups import plain_column
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTION_FEATURES, CAPTIONS, GROUP_ID, flatten_captions
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.encoder import Encoder
from hf_vse.embed.run import encode_images, encode_texts
from hf_vse.embed.store import Store
from hf_vse.evaluation.entities import entity_recall, records_of
from hf_vse.evaluation.metrics import fold_metrics, retrieval_metrics
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor

logger = logging.getLogger(__name__)


class PairEmbeddings(NamedTuple):
    """Unit vectors of a split and their correspondence.

    `image_embeds (images, dim)`, `text_embeds (texts, dim)`, `text_to_image (texts,)` rows of `image_embeds`,
    `image_rows (images,)` rows of the data set, `broken` images left out.
    """

    image_embeds: Tensor
    text_embeds: Tensor
    text_to_image: Tensor
    image_rows: Tensor
    broken: int


def gather_shares(share: Tensor, total: int) -> Tensor:
    """Puts together what the processes hold of `total` rows, where process r of W holds rows r, r + W, ..."""
    state = PartialState()
    if state.num_processes == 1:
        return share
    width = int(gather(torch.tensor([share.shape[1]], device=state.device)).max())  # less where nothing can be read
    padded = share.new_zeros(-(-total // state.num_processes), width)
    padded[: len(share), : share.shape[1]] = share
    shares = gather(padded.to(state.device)).cpu().view(state.num_processes, *padded.shape)
    return shares.transpose(0, 1).reshape(-1, width)[:total]


def stored_outputs(encoder: Encoder, dataset: Dataset, captions: Sequence[Sequence[str]]) -> FeatureRows | None:
    """The outputs of the text tower for the captions of each image, if the split has them and not those of pieces.

    Training reads long captions in pieces, evaluation reads them as they are, cut.
    """
    if CAPTION_FEATURES not in dataset.column_names or not isinstance(encoder, VSEEncoder):
        return None
    stored = FeatureRows(dataset, CAPTION_FEATURES)
    whole = all(len(stored[row]) == len(of_image) for row, of_image in enumerate(captions))
    return stored if whole else None


@torch.no_grad()
def embed_caption_features(encoder: VSEEncoder, features: FeatureRows, batch_size: int) -> Tensor:
    """Embeds captions from outputs of the text tower that are stored already; every process computes all of them."""
    embeds = []
    for start in range(0, len(features), batch_size):
        rows = range(start, min(start + batch_size, len(features)))
        pooled = torch.from_numpy(np.concatenate([features[row] for row in rows]))
        embeds.append(encoder.encode_text_features(pooled).float().cpu())
    return torch.cat(embeds)


def embed_pairs(
    encoder: Encoder,
    dataset: Dataset,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
    progress: bool = True,
    keep: Path | None = None,
) -> PairEmbeddings:
    """Embeds a split as `load_pairs` returns it, on all processes together; every process gets the whole result.

    Args:
        keep: folder for the vectors, found again by encoder and content: an interrupted call goes on there, and the
            next one encodes only what is new.
    """
    progress = progress and PartialState().is_main_process
    images = undecoded_images(dataset)
    captions = dataset.with_format(None)[CAPTIONS][:]
    texts, text_to_image = flatten_captions(captions)
    of_images, of_texts = (None, None) if keep is None else kept_vectors(encoder, keep)
    share = images.select(share_of(len(images)))
    found = encode_images(encoder, share, batch_size, num_workers, progress, of_images)
    image_embeds = gather_shares(found.embeds, len(images))
    readable = gather_shares(found.readable[:, None], len(images))[:, 0]
    if not readable.any():
        raise ValueError(f"none of the {len(images)} images can be read; check the data directory")
    stored = stored_outputs(encoder, dataset, captions)
    if stored is not None and isinstance(encoder, VSEEncoder):
        text_embeds = embed_caption_features(encoder, stored, batch_size)
    else:
        own = [texts[place] for place in share_of(len(texts))]
        text_embeds = gather_shares(encode_texts(encoder, own, batch_size, progress, of_texts), len(texts))
    owner = torch.from_numpy(text_to_image)
    place = readable.cumsum(0) - 1
    sound = readable[owner]
    return PairEmbeddings(
        image_embeds[readable],
        text_embeds[sound],
        place[owner[sound]],
        readable.nonzero()[:, 0],
        int((~readable).sum()),
    )


def kept_vectors(encoder: Encoder, folder: Path) -> tuple[Store, Store]:
    """Where vectors of images and of texts by this encoder are kept.

    Raises:
        ValueError: nothing tells the vectors of this encoder from those of another one.
    """
    if encoder.digest is None:
        raise ValueError(
            f"{encoder.name} has no digest, so its vectors cannot be told from those of other weights: "
            "give it an attribute `digest` that changes with them, or do not keep embeddings"
        )
    if next(Path(folder).glob("*/images_*_of_*.npy"), None) is not None:
        logger.warning("%s holds embeddings of hf_vse 0.1, which are not read: you can remove the .npy files", folder)
    described = {"encoder": encoder.digest}
    return Store.of(folder, "images", described), Store.of(folder, "texts", described)


def share_of(total: int) -> list[int]:
    """The rows that this process encodes. All processes have equally many: some encode the last row once more.

    So they pass equally often through a model that is sharded over them, and all know how long a vector is.
    """
    state = PartialState()
    last = -(-total // state.num_processes) * state.num_processes
    return [min(row, total - 1) for row in range(state.process_index, last, state.num_processes)]


def evaluate_retrieval(
    model: VSEModel,
    processor: VSEProcessor,
    dataset: Dataset,
    *,
    fold_size: int | None = None,
    image_weight: float | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Image-to-text and text-to-image retrieval of a model on one split.

    Args:
        dataset: a split as `load_pairs` returns it.
        fold_size: mean over consecutive folds of so many images (COCO 1K: 1,000) instead of the whole split.
        image_weight: of the image in a record; then there is `entity_r1` too, see `entity_recall`, of `group_id`.
        batch_size: images or sentences encoded at once.

    Returns:
        What `retrieval_metrics` returns, which a record has as `metrics` (see `record.py`), and beside it the numbers
        of `images`, `texts` (a record's `captions`) and `broken_images` left out.
    """
    was_training = model.training
    reading: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    pairs = embed_pairs(VSEEncoder(model, processor), dataset, **reading)
    model.train(was_training)
    correspondence = pairs.image_embeds, pairs.text_embeds, pairs.text_to_image
    metrics = retrieval_metrics(*correspondence) if fold_size is None else fold_metrics(*correspondence, fold_size)
    if image_weight is not None:
        entities = plain_column(dataset, GROUP_ID)
        records = records_of(*correspondence, image_weight)
        metrics |= {"entity_r1": entity_recall(records, [entities[row] for row in pairs.image_rows.tolist()])}
    return metrics | {
        "images": len(pairs.image_embeds),
        "texts": len(pairs.text_embeds),
        "broken_images": pairs.broken,
    }
