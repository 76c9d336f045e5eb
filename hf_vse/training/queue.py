"""The embeddings of the last pairs, kept as further negatives; see `objectives/past.py`.

Once the weights move slowly, what was embedded some hundred steps ago is still nearly where it would be today, so one
batch can be contrasted with a whole split for the price of a matrix product. All processes keep the same pairs. A
checkpoint holds them too, so a resumed run goes on as if it had not stopped.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_vse.data.sampler import visits_of
from hf_vse.objectives.exchange import gathered_parts, row_counts
from hf_vse.objectives.past import Candidates, Past
from hf_vse.training.arguments import VSETrainingArguments

QUEUE = "queue.safetensors"
DECIDING = ("captions_per_image", "positives", "extra_negatives", "mask_equal_captions")  # what an entry is


class LastRows:
    """The last rows of one side, in no order."""

    def __init__(self, size: int):
        self.size = size
        self.columns: list[Tensor] = []  # embeddings (size, dim) and ids (size, kinds), when there are some
        self.count = self.next = 0  # rows in use, and the one that is written next

    def write(self, embeds: Tensor, ids: Tensor) -> None:
        rows = [each[-self.size :] for each in (embeds, ids)]
        self.columns = self.columns or [each.new_zeros(self.size, *each.shape[1:]) for each in rows]
        places = (self.next + torch.arange(len(rows[0]), device=embeds.device)) % self.size
        for column, each in zip(self.columns, rows, strict=True):
            column[places] = each
        self.next = (self.next + len(places)) % self.size
        self.count = min(self.count + len(places), self.size)

    def candidates(self) -> Candidates:
        return Candidates(*(column[: self.count] for column in self.columns))

    def state(self) -> dict[str, Tensor]:
        of_rows = dict(zip(("embeds", "ids"), self.candidates(), strict=True))
        return of_rows | {"places": torch.tensor([self.size, self.count, self.next])}

    @classmethod
    def of_state(cls, state: dict[str, Tensor]) -> "LastRows":
        size, count, following = state["places"].tolist()
        ring = cls(size)
        more = [each.new_zeros(size - count, *each.shape[1:]) for each in (state["embeds"], state["ids"])]
        ring.columns = [torch.cat(pair) for pair in zip((state["embeds"], state["ids"]), more, strict=True)]
        ring.count, ring.next = count, following
        return ring


class PairQueue:
    """The last `size` texts since epoch `start` and their images; does nothing with a size of 0.

    Args:
        fields: those of the training that decide what an entry is; a checkpoint is resumed with the same.
    """

    def __init__(self, size: int, start: float, fields: Mapping[str, str] | None = None):
        self.size, self.start, self.fields = size, start, dict(fields or {})
        self.clear()

    @classmethod
    def of(cls, args: VSETrainingArguments) -> "PairQueue":
        """The queue that a training asks for."""
        return cls(args.queue_size, args.queue_start_epochs, {name: str(getattr(args, name)) for name in DECIDING})

    def clear(self) -> None:
        self.rings: list[LastRows] = []  # of images and of texts, when there are some
        self.latest: list[Candidates] = []

    def __len__(self) -> int:
        return self.rings[1].count if self.rings else 0

    def past(self) -> Past | None:
        """What the queue holds. Only now the pairs of the latest step are written over the oldest: the backward pass
        of that step is over."""
        self.write_latest()
        return Past(*(ring.candidates() for ring in self.rings)) if self.rings else None

    def is_open(self, epoch: float) -> bool:
        return self.size > 0 and epoch >= self.start

    def offer(self, images: Candidates, texts: Candidates) -> None:
        """What a step of this process compares."""
        if images.ids is None:
            raise ValueError("queue_size needs the column image_id in the data: load them with load_pairs")
        self.latest = [images, texts]

    def write_latest(self) -> None:
        if not self.latest:
            return
        images, texts = self.latest
        self.rings = self.rings or [
            LastRows(max(1, self.size * len(images.ids) // len(texts.ids))),
            LastRows(self.size),
        ]
        for ring, side in zip(self.rings, self.latest, strict=True):
            counts = row_counts(side.ids)
            ring.write(*(side if len(counts) == 1 else (torch.cat(gathered_parts(each, counts)) for each in side)))
        self.latest = []

    def save(self, checkpoint: Path, writes: bool) -> None:
        """Called by all processes; one of them writes."""
        self.write_latest()
        if self.size and writes:
            checkpoint.mkdir(parents=True, exist_ok=True)
            of_sides = zip(("images", "texts"), self.rings, strict=False)
            state = {f"{side}.{name}": each for side, ring in of_sides for name, each in ring.state().items()}
            state["size"] = torch.tensor(self.size)
            save_file(state, checkpoint / QUEUE, metadata={"format": "pt"} | self.fields)

    def resume(self, checkpoint: Path, device: torch.device) -> None:
        """Goes on with the pairs of a checkpoint.

        Raises:
            ValueError: the checkpoint was written with another `queue_size`, or other fields.
        """
        self.clear()
        path, state, earlier = checkpoint / QUEUE, {"size": torch.tensor(0)}, {}
        if path.is_file():
            state = load_file(path, device=str(device))
            with safe_open(path, "pt") as file:
                earlier = file.metadata()
        earlier = earlier | {"queue_size": str(int(state["size"]))}
        for name, value in {"queue_size": str(self.size), **self.fields}.items():
            if earlier.get(name, value) != value:  # an older file names none of the fields
                raise ValueError(
                    f"{checkpoint} was written with {name}={earlier[name]}, so it cannot be resumed with "
                    f"{name}={value}: give the earlier value, or another output_dir"
                )
        if len(state) > 1:
            names = ("embeds", "ids", "places")
            self.rings = [
                LastRows.of_state({name: state[f"{side}.{name}"] for name in names}) for side in ("images", "texts")
            ]


def check_queue(args: VSETrainingArguments) -> None:
    """Raises ValueError for a queue that never begins, or whose pairs would be negatives of themselves."""
    if not args.queue_size:
        return
    if not args.mask_same_image:
        raise ValueError("queue_size needs mask_same_image: true, because the queue holds each image and its captions")
    if args.negatives == "local":
        raise ValueError("queue_size keeps the pairs of all processes: give negatives: gather, or queue_size: 0")
    if args.max_steps <= 0 and args.queue_start_epochs >= args.num_train_epochs:
        raise ValueError(
            f"queue_start_epochs={args.queue_start_epochs} is not before the end, num_train_epochs="
            f"{args.num_train_epochs}: the queue would stay empty; start earlier, or give queue_size: 0"
        )


def check_queue_size(args: VSETrainingArguments, caption_counts: np.ndarray) -> None:
    """Raises ValueError for a queue that would hold a pair twice; with `positives: centre`, an image is one pair."""
    size = args.queue_size
    together = args.captions_per_image if args.positives == "centre" else 1
    pairs = int(visits_of(caption_counts, together).sum())
    if size > pairs:
        raise ValueError(
            f"queue_size={size}: the training split has only {pairs} pairs, and one that is kept twice counts "
            f"twice; give at most {pairs}"
        )
