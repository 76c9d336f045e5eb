"""How a loss is computed. Every execution gives the same value and the same gradients.

| execution  | memory                    | row losses    | what it is                                               |
|------------|---------------------------|---------------|----------------------------------------------------------|
| `dense`    | local x global            | any           | the reference; fastest for small batches                 |
| `chunked`  | chunk x global            | any           | rows of the matrix, computed again in the backward pass  |
| `streamed` | chunk x global            | of `STREAMS`  | one pass over tiles for both directions                  |
| `fused`    | a chunk of 16-bit weights | of `STREAMS`  | the same in Triton kernels                               |

`auto` takes `dense` for small matrices; for larger ones `fused` where the kernels run, else `streamed`; and `chunked`
for a row loss without a stream. Candidates of earlier steps (`past.py`), of the same modality (`same_modality.py`) and
foils (`foils.py`) are compared by plain torch under `streamed` and `fused` too; the cross entropy of `soft_targets.py`
is computed in chunks under all but `dense`. Records of entities (`entities.py`) are compared by `dense` or `chunked`.
The log names the choice and the reason.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hf_vse.model.losses_vse import SETTINGS, contrastive_loss, objective
from hf_vse.objectives.captions import Candidates, Positives
from hf_vse.objectives.entities import check_entity_execution, entity_loss
from hf_vse.objectives.exchange import Negatives, shares_negatives
from hf_vse.objectives.gather import gathered_contrastive_loss
from hf_vse.objectives.kernels import fused_tiles, why_not_fused
from hf_vse.objectives.past import Past
from hf_vse.objectives.soft_targets import SoftTargets, distance_loss, soft_loss
from hf_vse.objectives.streamed import has_stream, streamed_contrastive_loss, without_kernel

logger = logging.getLogger(__name__)

ExecutionName = Literal["auto", "dense", "chunked", "streamed", "fused"]
SMALL_MATRIX = 2**21  # similarities; 8 MiB
DEFAULT_CHUNK = 512  # queries, of `chunked`


class Execution(NamedTuple):
    """How a loss is computed.

    name: see above.
    negatives: of all processes at once (`gather`), of one process after the other (`ring`), or of this one (`local`).
    chunk_size: queries compared at once; None for what suits the device.
    """

    name: ExecutionName = "auto"
    negatives: Negatives = "gather"
    chunk_size: int | None = None


AUTO = Execution()


def choose_execution(
    execution: Execution,
    loss_type: str,
    pairs: int,
    device: torch.device,
    settings: Mapping[str, Any] = SETTINGS,
    past: int = 0,
) -> tuple[str, str]:
    """The execution, never `auto`, and the reason; the same on all processes.

    Args:
        pairs: of this process; it matters only where candidates of other processes are no negatives.
        settings: of the objective; kernels do not have all.
        past: candidates of earlier steps, of the same modality, and foils.

    Raises:
        ValueError: the execution asked for is not possible.
    """
    name, ring = execution.name, execution.negatives == "ring"
    if ring and name in ("dense", "chunked"):
        raise ValueError(f"loss execution {name!r} needs all candidates at once; use streamed or fused for a ring")
    if (ring or name in ("streamed", "fused")) and not has_stream(loss_type):
        raise ValueError(
            f"loss_type {loss_type!r} has no stream; use loss execution chunked or dense"
            + (" and negatives gather" if ring else "")
        )
    idle_kernel = without_kernel(objective(loss_type), {**SETTINGS, **settings})
    why_not = f"{idle_kernel} has no kernel" if idle_kernel else why_not_fused(device)
    if name == "fused" and why_not:
        raise ValueError(f"loss execution 'fused' is not possible: {why_not}; use auto or streamed")
    if name != "auto":
        return name, "it was asked for"
    if pairs * (pairs + past) <= SMALL_MATRIX and not shares_negatives(execution.negatives):
        return "dense", "the batch is small"
    if not has_stream(loss_type):
        return "chunked", f"{loss_type} has no stream"
    return ("streamed", f"not fused: {why_not}") if why_not else ("fused", "the kernels run here")


@cache
def announce(name: str, reason: str) -> None:
    """Logged once for each choice."""
    logger.info("loss execution: %s (%s)", name, reason)


def execute_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    execution: Execution = AUTO,
    loss_type: str = "nce",
    positives: Positives | Literal["entity"] = "one",
    past: Past | None = None,
    soft: SoftTargets | None = None,
    same_modality: bool = False,
    foils: Candidates | None = None,
    caption_weight: float = 0.0,
    **options: Any,
) -> Tensor:
    """`contrastive_loss` on the pairs of all processes, computed as `execution` says.

    Args:
        image_embeds, text_embeds: (local, dim) unit vectors of this process; texts (local, K, dim) where images have K
            captions, see `captions`.
        positives: which of K captions are positives; or `entity`, see `entities.py`: `image_ids` are the labels, and
            only captions are contrasted beside them.
        past: further candidates, see `past.py`.
        soft: adds the cross entropy with soft targets, see `soft_targets.py`; in chunks except by `dense`.
        same_modality: images are negatives of images too, and texts of texts, see `same_modality.py`.
        foils: of this process, with text ids, (n, kinds): further negatives of images, see `foils.py`.
        caption_weight: with `entity`, of the contrast of images with their captions, `one` or `each`, which is added;
            both directions weigh the same there. Other records of an entity are no negatives.
        options: `image_ids`, `text_ids`, `image_weight` and settings, as in `contrastive_loss`.

    Returns:
        A scalar. With negatives of all processes, the mean over the processes is the loss of the whole batch, and the
        mean of the gradients is the gradient of the whole batch.
    """
    if past is not None and options.get("image_ids") is None:
        raise ValueError("past candidates need image_ids: without them an image would be a negative of itself")
    if positives == "entity":
        if past is not None or soft is not None or same_modality or foils is not None:
            raise ValueError(
                "positives entity contrasts records alone: give no past, soft targets, foils or same_modality"
            )
        check_entity_execution(execution.name, execution.negatives)
        size = None if execution.name == "dense" else execution.chunk_size or DEFAULT_CHUNK
        how: dict[str, Any] = {"loss_type": loss_type, "negatives": execution.negatives, "chunk_size": size}
        loss = entity_loss(image_embeds, text_embeds, **how, **options)
        if not caption_weight:
            return loss
        how = {"execution": execution, "loss_type": loss_type, "positives": "one" if text_embeds.ndim == 2 else "each"}
        options = {key: value for key, value in options.items() if key != "image_weight"}  # there of the pooled vector
        return loss + caption_weight * execute_loss(image_embeds, text_embeds, **how, **options)
    pairs = text_embeds.shape[:-1].numel()
    length = (0 if past is None else len(past.texts.ids)) + (pairs if same_modality else 0)
    length += 0 if foils is None else len(foils.ids)
    name, reason = choose_execution(execution, loss_type, pairs, image_embeds.device, options, length)
    announce(name, reason)
    embeds, options = (image_embeds, text_embeds), {"loss_type": loss_type} | options
    chunk_size = None if name == "dense" else execution.chunk_size or DEFAULT_CHUNK
    of_batch: dict[str, Any] = {"positives": positives, "negatives": execution.negatives}
    further: dict[str, Any] = {"past": past, "same_modality": same_modality, "foils": foils}
    alone = past is None and not same_modality and foils is None and not shares_negatives(execution.negatives)
    if name == "dense" and text_embeds.ndim == 2 and alone:
        loss = contrastive_loss(*embeds, **options)
    elif name in ("dense", "chunked"):
        loss = gathered_contrastive_loss(
            image_embeds, text_embeds, chunk_size=chunk_size, **further, **of_batch, **options
        )
    else:
        how = {"chunk_size": execution.chunk_size, "tiles": fused_tiles() if name == "fused" else None}
        loss = streamed_contrastive_loss(image_embeds, text_embeds, **further, **how, **of_batch, **options)
    if soft is None:
        return loss
    options = {key: value for key, value in options.items() if key not in ("image_ids", "text_ids")}
    targets = soft_loss(image_embeds, text_embeds, soft, chunk_size=chunk_size, **of_batch, **options)
    loss = (1 - soft.weight) * loss + soft.weight * targets
    if soft.distance:
        loss = loss + soft.distance * distance_loss(*embeds, soft, execution.negatives)
    return loss
