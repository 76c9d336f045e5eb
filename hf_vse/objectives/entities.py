"""Records of one entity as positives of each other: supervised contrastive learning on pooled vectors.

A record is a photograph and its captions, an entity what several records show: one product, firm or work of art. The
vector of a record is z = unit(w image + (1 - w) text), its text the unit mean of its captions, as `hf-vse link` pools
it. A record contrasts each other record of its entity with the records of other entities:

    1 / |P(i)| sum_{p in P(i)} -log( e^{z_i.z_p/t} / (e^{z_i.z_p/t} + sum_{a of other entities} e^{z_i.z_a/t}) )

for `nce`; every row loss takes them. That is SupCon's L_out (arXiv 2004.11362) without the other positives in its
denominator, on the vectors of CLIPPINGS (arXiv 2304.03464). The mean is over the records that have a positive in the
batch; those without are candidates alone. A record is query and candidate at once, so the two directions of an
objective are one and the same, and are put together as those of pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_vse.model.losses_vse import Scalar, all_settings, objective
from hf_vse.objectives.captions import centre
from hf_vse.objectives.chunked import chunked_rows
from hf_vse.objectives.exchange import Negatives, exchange_of
from hf_vse.objectives.gather import gather_rows

EXECUTIONS = ("auto", "dense", "chunked")


def check_entity_execution(name: str, negatives: Negatives) -> None:
    """Raises ValueError where pairs of records cannot be compared so."""
    if name not in EXECUTIONS:
        raise ValueError(f"positives entity has no loss execution {name!r}: give {', '.join(EXECUTIONS)}")
    if negatives == "ring":
        raise ValueError("positives entity needs the records of all processes at once: give negatives: gather")


def pooled_records(image_embeds: Tensor, text_embeds: Tensor, image_weight: float = 0.5) -> Tensor:
    """unit(w image + (1 - w) text): (B, dim), and (B, dim) or (B, K, dim) of K captions -> (B, dim), float32."""
    texts = text_embeds.float()
    texts = centre(texts) if texts.ndim == 3 else texts
    return F.normalize(image_weight * image_embeds.float() + (1 - image_weight) * texts, dim=-1)


def entity_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    *,
    image_ids: Tensor | None,
    text_ids: Tensor | None = None,
    loss_type: str = "nce",
    image_weight: float = 0.5,
    negatives: Negatives = "gather",
    chunk_size: int | None = None,
    **settings: Scalar,
) -> Tensor:
    """The local part of the loss over the records of all processes.

    Args:
        image_embeds, text_embeds: (local, dim) unit vectors; texts (local, K, dim) where records have K captions.
        image_ids: (local,) integers, equal for records of one entity.
        text_ids: play no part: the labels alone say what is the same.
        image_weight: w, of the image in a record.
        negatives: `local` compares with the records of this process alone.
        chunk_size: pairs of positives compared with all records at once; default all of this process.

    Returns:
        A scalar, 0 where no record has a positive. Its mean over the processes is the loss of the whole batch, and the
        mean of the gradients is the gradient of the whole batch.
    """
    if image_ids is None:
        raise ValueError("positives entity needs image_ids, the labels of the records: give group_column")
    chosen = objective(loss_type)
    records, labels = pooled_records(image_embeds, text_embeds, image_weight), image_ids.reshape(-1, 1)
    exchange = exchange_of(negatives, records)
    everybody, of_everybody = (gather_rows(each, exchange.counts) for each in (records, labels))
    same = labels == of_everybody.T
    places = torch.arange(len(records), device=records.device)
    same[places, exchange.first + places] = False
    queries, positives = same.nonzero(as_tuple=True)
    rows = chunked_rows(
        chosen,
        records[queries],
        everybody,
        positives[:, None],
        labels[queries],
        of_everybody,
        settings=all_settings(settings),
        chunk_size=chunk_size,
    )
    rows = rows / same.sum(dim=1)[queries]
    with_positives = int(((of_everybody == of_everybody.T).sum(dim=1) > 1).sum())
    return len(exchange.counts) * chosen.reduce(rows, rows, total_rows=max(1, with_positives))
