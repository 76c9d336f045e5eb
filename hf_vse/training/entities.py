"""Training on records of entities, see `objectives/entities.py`: what it needs, and what goes into a batch."""

from typing import Any

import numpy as np

from hf_vse.data.pairs import PairDataset
from hf_vse.data.streams import StreamedPairs
from hf_vse.objectives.entities import check_entity_execution
from hf_vse.training.arguments import VSETrainingArguments

# Fields that say what else is contrasted, or how batches are made, and the value that leaves it to entities.
LEFT = {
    "queue_size": 0,
    "extra_negatives": "none",
    "soft_targets": "none",
    "feature_mix": 0.0,
    "batch_groups": "none",
    "unique_images": True,
    "mask_same_image": True,
}


def check_entities(args: VSETrainingArguments) -> None:
    """Raises ValueError where something else has no place beside records of one entity."""
    for name, value in LEFT.items():
        if getattr(args, name) != value:
            raise ValueError(
                f"positives entity and {name}={getattr(args, name)!r}: records of one entity alone say what is "
                f"contrasted: give {name}: {str(value).lower()}"
            )
    check_entity_execution(args.loss_execution, args.execution.negatives)


def entities_of_batches(pairs: PairDataset | StreamedPairs, args: VSETrainingArguments) -> dict[str, Any]:
    """What the sampler takes for batches of records of the same entities.

    Raises:
        ValueError: a stream, or no two records of one entity.
    """
    if isinstance(pairs, StreamedPairs):
        raise ValueError(
            "positives entity draws the records of an entity together, which a stream does not: give streaming: false"
        )
    if len(np.unique(pairs.image_ids)) == len(pairs.image_ids):
        raise ValueError(
            "positives entity: no two records of the training split are of one entity: name the column that says it "
            "as group_column"
        )
    return {"labels": pairs.image_ids, "group_size": args.group_size}
