"""Where the readers of a stream are: followed batch by batch, written with a checkpoint, found again by a resumed run.

CHECKPOINT/stream-PROCESS.json    the state of each worker of the process after its last batch that was trained on, see
                                  `data/streams.py`, and what it is only valid for
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hf_vse.data.streams import STREAM_STATE, StreamCollator, StreamedBatches, StreamedPairs
from hf_vse.files import read_json, write_json

logger = logging.getLogger(__name__)


class StreamPlace:
    """The states of the workers of this process by number; empty where no stream is read."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Any]] = {}
        self.batches: StreamedBatches | None = None
        self.layout: dict[str, int] = {}

    def loader(self, pairs: StreamedPairs, batch_size: int, accelerator: Accelerator, **options: Any) -> DataLoader:
        """Batches of this process's share of a stream."""
        pairs.process, pairs.processes = accelerator.process_index, accelerator.num_processes
        self.batches, self.states = StreamedBatches(pairs, batch_size), {}
        workers = max(1, options["num_workers"])
        self.layout = {"processes": pairs.processes, "workers": workers, "batch_size": batch_size}
        options["collate_fn"] = StreamCollator(options["collate_fn"])
        loader = DataLoader(self.batches, batch_size=None, **options)
        alone = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}  # the share is this process's own
        return prepare_data_loader(loader, accelerator.device, put_on_device=True, **alone)

    def follow(self, inputs: dict[str, Any]) -> None:
        """Takes the state of a batch out of it, which is trained on now."""
        if (state := inputs.pop(STREAM_STATE, None)) is not None:
            state = json.loads(state)
            self.states[state.pop("worker")] = state

    def save(self, folder: Path) -> None:
        if self.batches is not None:
            write_json(self.file(folder), {"layout": self.layout, "states": self.states})

    def resume(self, folder: Path) -> None:
        """Lets the readers go on where they were; without a state for them, they read again what they skip."""
        if self.batches is None or not self.file(folder).is_file():
            return
        found = read_json(self.file(folder), dict)
        if found["layout"] != self.layout:
            logger.warning(
                "the stream was read as %s and is read as %s now: this pass is read from its beginning, and some of "
                "its images come twice or not at all",
                found["layout"],
                self.layout,
            )
            return
        self.states = {int(worker): state for worker, state in found["states"].items()}
        self.batches.states = dict(self.states)

    def file(self, folder: Path) -> Path:
        assert self.batches is not None  # only a stream has a place
        return folder / f"stream-{self.batches.pairs.process}.json"

    def as_many_as_all_have(self, batches: list[Any], device: torch.device) -> list[Any]:
        """The batches, fewer if another process has fewer, so that a pass ends for all processes at once.

        Raises:
            ValueError: there is not a single one.
        """
        if self.batches is None:
            return batches
        if self.layout["processes"] > 1:
            least = torch.tensor(len(batches), device=device)
            torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
            batches = batches[: int(least)]
        if not batches and not self.states:
            raise ValueError(
                f"a share of the stream has too few images for a batch ({self.layout}): lower "
                "per_device_train_batch_size or dataloader_num_workers"
            )
        return batches
