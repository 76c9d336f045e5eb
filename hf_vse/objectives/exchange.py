"""How the candidates of one process meet the anchors of all.

A step compares anchors that stay at home with a block of candidates that is shown to it, and returns what it found out
about each candidate of the block: one row for each. What the processes found is put together, and every process gets
the rows of its own candidates back. Nothing here is differentiable; the backward pass is another visit.

- `Alone`: the own candidates.
- `Gathered`: the candidates of all processes at once.
- `Ring`: a block at a time travels around the ring of processes with what was found out about it, until it is home
  again. No process ever holds more than two blocks.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import accumulate
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from hf_vse.objectives.reductions import total

Rows = Sequence[Tensor | None]
Step = Callable[[Rows, int], Sequence[Tensor]]
Merge = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]
ExchangeName = Literal["gather", "ring"]


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def row_counts(local: Tensor) -> list[int]:
    """How many rows each process holds; they may differ in the last batch or where an image could not be read."""
    if world_size() == 1:
        return [len(local)]
    count = torch.tensor([len(local)], device=local.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    return [int(each) for each in torch.cat(counts)]


def gathered_parts(local: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of every process, padded on their way where the numbers differ."""
    padded = local.new_zeros(max(counts), *local.shape[1:])
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


class Alone:
    """Only the candidates of this process."""

    def __init__(self, counts: list[int]):
        self.rank = dist.get_rank() if world_size() > 1 else 0
        self.counts = counts
        self.starts = [0, *accumulate(counts)]

    @property
    def first(self) -> int:
        """Place of the first own row among the rows that anchors are compared with."""
        return 0

    def visit(self, step: Step, rows: Rows, merge: Merge) -> Sequence[Tensor]:
        """Shows candidates to `step`.

        Args:
            step: gets rows of candidates and the place of the first of them; returns tensors with a row for each.
            rows: tensors with a row for each own candidate; None stays None.
            merge: puts together what two processes found out about the same candidates.

        Returns:
            What all processes found out about the own candidates.
        """
        return step(rows, self.first)


class Gathered(Alone):
    """The candidates of all processes at once, in order of rank."""

    @property
    def first(self) -> int:
        return self.starts[self.rank]

    def visit(self, step: Step, rows: Rows, merge: Merge) -> Sequence[Tensor]:
        found = step([None if each is None else torch.cat(gathered_parts(each, self.counts)) for each in rows], 0)
        own = slice(self.first, self.first + self.counts[self.rank])
        if merge is total:  # the backends add up better than we do
            for each in found:
                dist.all_reduce(each)
            return [each[own] for each in found]
        everywhere = [gathered_parts(each, [len(each)] * len(self.counts)) for each in found]
        return reduce(merge, [[each[own] for each in of_process] for of_process in zip(*everywhere, strict=True)])


class Ring(Gathered):
    """One block of candidates at a time; sent on while there are processes it has not seen."""

    def visit(self, step: Step, rows: Rows, merge: Merge) -> Sequence[Tensor]:
        world, found = len(self.counts), None
        for hop in range(world):
            owner = (self.rank - hop) % world
            seen = step(rows, self.starts[owner])
            found = seen if found is None else merge(found, seen)
            count = self.counts[(owner - 1) % world]
            last = hop == world - 1  # then only what was found has to come home
            rows = rows if last else [None if each is None else self.passed_on(each, count) for each in rows]
            found = [self.passed_on(each, count) for each in found]
        return found

    def passed_on(self, rows: Tensor, count: int) -> Tensor:
        """Sends rows to the next process and returns the `count` rows of the one before."""
        world, rows = len(self.counts), rows.contiguous()
        received = rows.new_empty(count, *rows.shape[1:])
        operations = [
            dist.P2POp(dist.isend, rows, (self.rank + 1) % world),
            dist.P2POp(dist.irecv, received, (self.rank - 1) % world),
        ]
        for request in dist.batch_isend_irecv(operations):
            request.wait()
        return received


def exchange(name: ExchangeName | None, local: Tensor) -> Alone:
    """The exchange of this name for processes that hold so many rows each; `Alone` for None or a single process."""
    if name is None or world_size() == 1:
        return Alone([len(local)])
    return {"gather": Gathered, "ring": Ring}[name](row_counts(local))
