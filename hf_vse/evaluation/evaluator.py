"""A model and a data set -> embeddings -> metrics.

Every image is encoded once, however many captions it has, and sentences are encoded in the order of their length. With
several processes each one encodes its share. An image that cannot be read is left out with its captions, and counted.
"""

from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor

from hf_vse.data.encoding import UNREAD, batches_of, encode_images, encode_texts
from hf_vse.data.features import FeatureRows
from hf_vse.data.pairs import undecoded_images
from hf_vse.data.schema import CAPTION_FEATURES, CAPTIONS, flatten_captions
from hf_vse.evaluation.metrics import fold_metrics, retrieval_metrics
from hf_vse.model.modeling_vse import VSEModel
from hf_vse.model.processing_vse import VSEProcessor


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
    padded = share.new_full((-(-total // state.num_processes), share.shape[1]), UNREAD)
    padded[: len(share)] = share
    shares = gather(padded.to(state.device)).cpu().view(state.num_processes, *padded.shape)
    return shares.transpose(0, 1).reshape(-1, share.shape[1])[:total]


@torch.no_grad()
def embed_caption_features(model: VSEModel, features: FeatureRows, batch_size: int) -> Tensor:
    """The same for sentences whose text tower has been run: all processes compute the little that is left."""
    embeds = []
    for rows in batches_of(list(range(len(features))), batch_size):
        pooled = torch.from_numpy(np.concatenate([features[row] for row in rows])).to(model.device)
        embeds.append(model(text_features=pooled).text_embeds.float().cpu())
    return torch.cat(embeds)


def embed_pairs(
    model: VSEModel,
    processor: VSEProcessor,
    dataset: Dataset,
    *,
    batch_size: int = 128,
    num_workers: int = 0,
    progress: bool = True,
) -> PairEmbeddings:
    """Embeds a split as `load_pairs` returns it, on all processes together; every process gets the whole result."""
    state = PartialState()
    rank, world = state.process_index, state.num_processes
    progress = progress and state.is_main_process
    was_training = model.training
    model.eval()
    images = undecoded_images(dataset)
    share = images.select(range(rank, len(images), world))
    image_embeds = gather_shares(
        encode_images(model, processor, share, batch_size, num_workers, progress), len(images)
    )
    texts, text_to_image = flatten_captions(dataset.with_format(None)[CAPTIONS][:])
    if CAPTION_FEATURES in dataset.column_names:
        text_embeds = embed_caption_features(model, FeatureRows(dataset, CAPTION_FEATURES), batch_size)
    else:
        share_embeds = encode_texts(model, processor, texts[rank::world], batch_size, progress)
        text_embeds = gather_shares(share_embeds, len(texts))
    model.train(was_training)
    readable = ~image_embeds.isinf().all(dim=1)
    owner = torch.from_numpy(text_to_image)
    place = readable.cumsum(0) - 1
    kept = readable[owner]
    return PairEmbeddings(
        image_embeds[readable], text_embeds[kept], place[owner[kept]], readable.nonzero()[:, 0], int((~readable).sum())
    )


def evaluate_retrieval(
    model: VSEModel,
    processor: VSEProcessor,
    dataset: Dataset,
    *,
    fold_size: int | None = None,
    batch_size: int = 128,
    num_workers: int = 0,
    progress: bool = True,
) -> dict[str, float]:
    """Image-to-text and text-to-image retrieval of a model on one split.

    Args:
        dataset: a split as `load_pairs` returns it.
        fold_size: mean over consecutive folds of so many images (COCO 1K: 1,000) instead of the whole split.
        batch_size: images or sentences encoded at once.

    Returns:
        The metrics of `retrieval_metrics`, and the numbers of `images`, `texts` and `broken_images` left out.
    """
    pairs = embed_pairs(model, processor, dataset, batch_size=batch_size, num_workers=num_workers, progress=progress)
    if not len(pairs.image_embeds):
        raise ValueError(f"none of the {pairs.broken} images can be read; check the data directory")
    correspondence = pairs.image_embeds, pairs.text_embeds, pairs.text_to_image
    metrics = retrieval_metrics(*correspondence) if fold_size is None else fold_metrics(*correspondence, fold_size)
    return metrics | {
        "images": len(pairs.image_embeds),
        "texts": len(pairs.text_embeds),
        "broken_images": pairs.broken,
    }
