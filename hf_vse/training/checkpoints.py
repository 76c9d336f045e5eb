"""Checkpoints that a run may continue from: whole, its own, and without code in them.

transformers writes a checkpoint file by file, the state of the trainer last, and reads back what is there. A run that
was killed, or a disk that was full, leaves a part of one; the one before it is then the newest. The states of the
optimiser and of the random numbers are pickled. They are read with `weights_only=True`, and before that searched for
anything but tensors and numbers: a checkpoint with code in it is not from here, and nothing of it is read.
"""

import logging
from pathlib import Path
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_pt_utils import safe_globals

from hf_vse.files import read_json, write_json

logger = logging.getLogger(__name__)

STATES = ("*.pt", "*.pth", "*.bin")  # what torch.save wrote
BEST = "best_model_checkpoint"


class Damaged(ValueError):
    """A checkpoint that cannot be continued from; the message says why."""


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint of a stage, None where there is none.

    Raises:
        ValueError: one holds code.
    """
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    complete = [path for path in complete if path.name.removeprefix("checkpoint-").isdecimal()]
    for checkpoint in sorted(complete, key=step_of, reverse=True):
        try:
            check_checkpoint(checkpoint)
        except Damaged as error:
            logger.warning("%s; going on from the one before", error)
            continue
        logger.info("continuing from %s", checkpoint)
        return str(checkpoint)
    if complete:
        logger.warning("no checkpoint in %s is whole: the stage is trained from its start", folder)
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def check_checkpoint(checkpoint: Path) -> None:
    """Makes sure that a checkpoint is whole and leads to its best one in this folder, wherever the run was moved to.

    Raises:
        Damaged: it is not.
        ValueError: it holds code.
    """
    path = checkpoint / TRAINER_STATE_NAME
    try:
        state = read_json(path, dict)
        TrainerState(**state)
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(f"checkpoint {checkpoint} is damaged ({error})") from error
    if state.get("global_step") != step_of(checkpoint):
        raise Damaged(f"checkpoint {checkpoint} is damaged ({path} is of step {state.get('global_step')!r:.40})")
    check_files(checkpoint)
    if state.get(BEST) is not None:
        keep_best(checkpoint, state)


def keep_best(checkpoint: Path, state: dict[str, Any]) -> None:
    """Checks the best checkpoint too, and names it where it lies now: its address was that of the first run."""
    best = checkpoint.parent / Path(str(state[BEST])).name
    if not best.is_dir():
        raise Damaged(f"checkpoint {checkpoint} cannot be used ({best}, the best one so far, is missing)")
    check_files(best)
    if state[BEST] != str(best) and PartialState().is_main_process:
        write_json(checkpoint / TRAINER_STATE_NAME, state | {BEST: str(best)}, indent=2)


def check_files(checkpoint: Path) -> None:
    """Looks at weights and states; see `check_checkpoint`."""
    weights = [path for path in checkpoint.glob("*.safetensors") if not path.name.startswith(".")]
    if not weights and not any(checkpoint.glob("*_fsdp*")):
        raise Damaged(f"checkpoint {checkpoint} is damaged (model.safetensors is missing)")
    for path in weights:
        check_weights(path)
    for pattern in STATES:
        for path in checkpoint.glob(pattern):
            if path.name != TRAINING_ARGS_NAME:  # never read
                check_state(path)


def check_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:  # compares the size of the file with its header
            file.keys()
    except (OSError, SafetensorError) as error:
        raise Damaged(f"checkpoint {path.parent} is damaged ({path.name}: {error})") from error


def check_state(path: Path) -> None:
    """Looks through a file of torch.save without running anything.

    Raises:
        Damaged: it is no such file, or not whole.
        ValueError: it would run code.
    """
    try:
        with safe_globals():
            found = get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # whatever a reader of garbage raises
        raise Damaged(f"checkpoint {path.parent} is damaged ({path.name}: {error})") from error
    if found:
        raise ValueError(
            f"{path} is not from here: it would run {', '.join(sorted(found)):.200} when it is read; remove "
            f"{path.parent}, and look where it came from"
        )
