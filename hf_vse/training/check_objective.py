"""What an objective and the arguments of training must fulfil together, checked before any work."""

from typing import Any

from hf_vse.model.losses_vse import OBJECTIVES, objective
from hf_vse.objectives.captions import check_captioned
from hf_vse.objectives.exchange import check_at_once
from hf_vse.objectives.execution import choose_execution
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.class_head import check_class_head
from hf_vse.training.entities import check_entities
from hf_vse.training.foils import check_foils_wanted
from hf_vse.training.mixing import check_mixing
from hf_vse.training.mosaics import check_mosaics
from hf_vse.training.queue import check_queue
from hf_vse.training.teachers import check_soft_targets


def check_objective(loss_type: str, args: VSETrainingArguments, settings: dict[str, Any]) -> None:
    """Raises ValueError for an objective that is unknown or not loaded, that cannot be computed as `args` ask, or that
    needs no warm-up and has one."""
    chosen = objective(loss_type)
    check_queue(args)
    check_mixing(args)
    check_foils_wanted(args)
    check_mosaics(args)
    check_class_head(args)
    if args.positives == "entity":
        check_entities(args)
    if args.extra_negatives == "same_modality":
        check_at_once("same_modality", args.execution.negatives)
    for each in (loss_type, args.hard_negative_warmup_loss) if args.hard_negative_warmup_epochs else (loss_type,):
        if args.positives != "entity":
            check_captioned(args.positives, args.captions_per_image, each)
    check_soft_targets(args, [loss_type, args.hard_negative_warmup_loss])
    choose_execution(args.execution, loss_type, args.per_device_train_batch_size, args.device, settings)
    if args.hard_negative_warmup_epochs and not chosen.may_collapse:
        known = ", ".join(name for name, each in OBJECTIVES.items() if each.may_collapse)
        raise ValueError(
            f"hard_negative_warmup_epochs={args.hard_negative_warmup_epochs} is for {known}; "
            f"loss_type is {loss_type!r}: leave it at 0"
        )
