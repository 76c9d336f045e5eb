"""The recalls of this package inside other people's `transformers.Trainer`, for CLIP and models like it.

    args = TrainingArguments(..., label_names=["image_id"], metric_for_best_model="rsum")
    trainer = Trainer(
        model, args, data_collator=collate, ..., compute_metrics=compute_retrieval_metrics,
        preprocess_logits_for_metrics=KeepEmbeddings(model),
    )

`collate` makes batches of pairs, an image and one of its captions in a row, and adds two entries to what the model
reads: `"image_id"`, (batch,) integers that are equal for pairs of one image, and `"return_loss": True`. The evaluation
set has a row for each caption; `remove_unused_columns` may stay on where these rows have a column `image_id`. The log
then holds `eval_rsum`, `eval_i2t_r1` and so on, besides `eval_loss`, the mean over batches.

Why each is needed: without labels `Trainer` calls no `compute_metrics`, and CLIP has none (transformers issue 19665),
so the ids are the labels. `Trainer` hands on a tuple without names, in which the similarities of the batches cannot be
put together and whose order is the model's own; `KeepEmbeddings` looks at the model's output, where there are names,
and keeps the two matrices that a ranking needs, so that memory grows with the set and not with its square.

With several processes `Trainer` puts the shares together and drops the pairs that fill the last batch.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import EvalPrediction

from hf_vse.evaluation.metrics import retrieval_metrics
from hf_vse.evaluation.ranks import Array, as_matrix, as_tensor

EMBEDS = ("image_embeds", "text_embeds")
# Farthest apart that unit vectors of one image may be; those of another batch, even in bfloat16, are nearer.
SAME_IMAGE = 0.05
ONE_LABEL = (
    'the labels are not one integer for each pair: pass label_names=["image_id"] to TrainingArguments, and let the '
    "batches hold the image ids under that name"
)


class KeepEmbeddings:
    """`preprocess_logits_for_metrics` that keeps `(image_embeds, text_embeds)` of each batch and drops the rest.

    Args:
        model: the model that is trained; its output names `image_embeds` and `text_embeds`. In training nothing is
            kept.
    """

    def __init__(self, model: nn.Module):
        self.model_name = type(model).__name__
        self.seen: dict[str, Tensor] = {}
        model.register_forward_hook(self.look)

    def look(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            named = output if isinstance(output, dict) else {}
            self.seen = {name: named[name].detach() for name in EMBEDS if name in named}

    def __call__(self, logits: Any, labels: Tensor) -> tuple[Tensor, ...]:
        seen, self.seen = self.seen, {}
        if not isinstance(labels, Tensor):
            raise ValueError(ONE_LABEL)
        missing = [name for name in EMBEDS if name not in seen]
        if missing:
            raise ValueError(
                f"{self.model_name} gave KeepEmbeddings no {' and no '.join(missing)}: it must be the model that is "
                "evaluated, and return both by these names in a ModelOutput"
            )
        rows = [len(embeds) for embeds in seen.values()]
        if rows != [len(labels)] * len(EMBEDS):
            raise ValueError(
                f"{self.model_name} embedded {rows} images and texts of a batch of {len(labels)} pairs: let a batch "
                "hold an image and a text for each pair, and start one process for each device"
            )
        return tuple(seen.values())


def pair_metrics(image_embeds: Array, text_embeds: Array, image_ids: Array) -> dict[str, float]:
    """Retrieval metrics of a list of pairs, in which an image appears once for each of its captions.

    Args:
        image_embeds, text_embeds: (pairs, dim) of any length; similarity is their cosine.
        image_ids: (pairs,) integers; rows with equal ids hold the same image, the first of which is kept.

    Returns:
        What `retrieval_metrics` returns, and the numbers of `images` and `texts`: see `record.py`.

    Raises:
        ValueError: rows that do not fit, embeddings that are not finite, or rows of one id with different images.
    """
    images, texts = as_matrix("image_embeds", image_embeds), as_matrix("text_embeds", text_embeds)
    ids = as_tensor(image_ids).cpu().numpy()
    if ids.shape != (len(images),) or len(texts) != len(images):
        raise ValueError(
            f"image_embeds {tuple(images.shape)}, text_embeds {tuple(texts.shape)} and image ids {ids.shape} do not "
            "fit: give one of each for every pair"
        )
    images, texts = (normalize(each.float(), dim=1) for each in (images, texts))
    _, first, owner = np.unique(ids, return_index=True, return_inverse=True)
    leaders = torch.from_numpy(first)[owner]  # (pairs,) the first row of the same image
    apart = (images - images[leaders]).norm(dim=1)
    if (apart > SAME_IMAGE).any():
        row = int(apart.argmax())
        raise ValueError(
            f"rows {int(leaders[row])} and {row} have the image id {ids[row]} but not the same image: give each image "
            "an id of its own, and evaluate without random crops"
        )
    metrics = retrieval_metrics(images[first], texts, owner)
    return metrics | {"images": len(first), "texts": len(texts)}


def compute_retrieval_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """`compute_metrics` for `Trainer`: the predictions are those of `KeepEmbeddings`, the labels image ids.

    Returns:
        What `pair_metrics` returns; `Trainer` puts `eval_` before each name.
    """
    embeds, image_ids = prediction.predictions, prediction.label_ids
    if not isinstance(embeds, tuple) or len(embeds) != len(EMBEDS):
        raise ValueError(
            "the predictions are not the image and text embeddings of the whole set: pass "
            "preprocess_logits_for_metrics=KeepEmbeddings(model) to Trainer and leave eval_do_concat_batches on"
        )
    if not isinstance(image_ids, np.ndarray) or image_ids.ndim != 1 or image_ids.dtype.kind not in "iu":
        raise ValueError(ONE_LABEL)
    return pair_metrics(embeds[0], embeds[1], image_ids)
