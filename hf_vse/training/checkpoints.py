"""Finds the checkpoint to resume from: it must be complete and must not contain code.

transformers writes a checkpoint file by file, with the trainer state last, and loads whatever exists. A killed run or
a full disk leaves an incomplete checkpoint; then the previous one is used. Optimizer and random states are pickles.
They are loaded with `weights_only=True`, and scanned before that: a checkpoint whose pickles would run code is
rejected, and nothing in it is loaded.
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

STATES = ("*.pt", "*.pth", "*.bin")  # files written by torch.save
BEST = "best_model_checkpoint"


class Damaged(ValueError):
    """A checkpoint that training cannot resume from; the message gives the reason."""


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint of a stage; None if there is none.

    Raises:
        ValueError: a checkpoint contains code.
    """
    complete = [path.parent for path in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    complete = [path for path in complete if path.name.removeprefix("checkpoint-").isdecimal()]
    for checkpoint in sorted(complete, key=step_of, reverse=True):
        try:
            check_checkpoint(checkpoint)
        except Damaged as error:
            logger.warning("%s; trying the previous one", error)
            continue
        logger.info("resuming from %s", checkpoint)
        return str(checkpoint)
    if complete:
        logger.warning("no checkpoint in %s is complete: the stage starts again", folder)
    return None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def check_checkpoint(checkpoint: Path) -> None:
    """Checks that a checkpoint is complete and that its best checkpoint is in this folder, even after a move.

    Raises:
        Damaged: a check fails.
        ValueError: the checkpoint contains code.
    """
    path = checkpoint / TRAINER_STATE_NAME
    try:
        state = read_json(path, dict)
        TrainerState(**state)
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(f"checkpoint {checkpoint} is damaged ({error})") from error
    if state.get("global_step") != step_of(checkpoint):
        raise Damaged(f"checkpoint {checkpoint} is damaged ({path} has global_step {state.get('global_step')!r:.40})")
    check_files(checkpoint)
    if state.get(BEST) is not None:
        keep_best(checkpoint, state)


def keep_best(checkpoint: Path, state: dict[str, Any]) -> None:
    """Checks the best checkpoint too, and updates its path, which is out of date if the run was moved."""
    best = checkpoint.parent / Path(str(state[BEST])).name
    if not best.is_dir():
        raise Damaged(f"checkpoint {checkpoint} cannot be used ({best}, its best checkpoint, is missing)")
    check_files(best)
    if state[BEST] != str(best) and PartialState().is_main_process:
        write_json(checkpoint / TRAINER_STATE_NAME, state | {BEST: str(best)}, indent=2)


def check_files(checkpoint: Path) -> None:
    """Checks the weights and the states; see `check_checkpoint`."""
    weights = [path for path in checkpoint.glob("*.safetensors") if not path.name.startswith(".")]
    if not weights and not any(checkpoint.glob("*_fsdp*")):
        raise Damaged(f"checkpoint {checkpoint} is damaged (model.safetensors is missing)")
    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:  # checks the file size against the header
                file.keys()
        except (OSError, SafetensorError) as error:
            raise Damaged(f"checkpoint {checkpoint} is damaged ({path.name}: {error})") from error
    for pattern in STATES:
        for path in checkpoint.glob(pattern):
            if path.name != TRAINING_ARGS_NAME:  # never loaded
                check_state(path)


def check_state(path: Path) -> None:
    """Scans a torch.save file without running anything.

    Raises:
        Damaged: the file is not a complete torch.save file.
        ValueError: loading the file would run code.
    """
    try:
        with safe_globals():
            found = get_unsafe_globals_in_checkpoint(str(path))
    except Exception as error:  # reading garbage can raise anything
        raise Damaged(f"checkpoint {path.parent} is damaged ({path.name}: {error})") from error
    if found:
        raise ValueError(
            f"{path} was not written by this program: loading it would run {', '.join(sorted(found)):.200}; remove "
            f"{path.parent}, and check where it came from"
        )
