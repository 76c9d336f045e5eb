"""Whether the record nearest to a record, of photograph and captions together, is of the same entity."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1024  # records compared with all others at once


def records_of(image_embeds: Tensor, text_embeds: Tensor, text_to_image: Tensor, image_weight: float = 0.5) -> Tensor:
    """unit(w image + (1 - w) text), the text of a record the unit mean of its captions: (images, dim) float32.

    Args: see `PairEmbeddings`; a record without captions is its image alone.
    """
    sums = torch.zeros_like(image_embeds, dtype=torch.float32)
    texts = F.normalize(sums.index_add(0, text_to_image, text_embeds.float()), dim=-1)
    return F.normalize(image_weight * image_embeds.float() + (1 - image_weight) * texts, dim=-1)


def entity_recall(records: Tensor, entities: Sequence[int | None]) -> float:
    """Of the records with another one of their entity, the percentage whose nearest other record is one of these.

    Args:
        records: (records, dim) unit vectors.
        entities: of each record; None is an entity of its own.

    Returns:
        0 where no entity has two records.
    """
    known: dict[int, int] = {}
    numbers = [-1 - row if each is None else known.setdefault(each, len(known)) for row, each in enumerate(entities)]
    labels = torch.tensor(numbers, device=records.device)
    right = asked = 0
    for start in range(0, len(records), BLOCK):
        rows = torch.arange(start, min(start + BLOCK, len(records)), device=records.device)
        scores = records[rows] @ records.T
        scores[rows - start, rows] = float("-inf")
        asking = (labels[rows][:, None] == labels).sum(dim=1) > 1
        nearest = labels[scores.argmax(dim=1)]
        right += int((nearest == labels[rows])[asking].sum())
        asked += int(asking.sum())
    return 100 * right / max(1, asked)
