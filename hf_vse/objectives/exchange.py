"""Exchange between processes: the candidates of each process are compared with the queries of all.

A step compares the local queries with a block of candidates and returns one result row per candidate. The results of
all processes are merged, and each process gets the rows of its own candidates back. Nothing here is differentiable;
the backward pass is another visit.

- `Alone`: only the candidates of this process.
- `Gathered`: the candidates of all processes at once.
- `Ring`: one block at a time travels around the ring of processes with its results, until it is back at its owner. No
  process holds more than two blocks.
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
    """The number of rows per process; differs in the last batch, or if an image could not be read."""
    if world_size() == 1:
        return [len(local)]
    count = torch.tensor([len(local)], device=local.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    return [int(each) for each in torch.cat(counts)]


def gathered_parts(local: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of every process; padded for the transfer if the counts differ."""
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
        """Index of the first local row among the candidates."""
        return 0

    def visit(self, step: Step, rows: Rows, merge: Merge) -> Sequence[Tensor]:
        """Calls `step` with blocks of candidates.

        Args:
            step: takes rows of candidates and the index of the first; returns tensors with one row per candidate.
            rows: tensors with one row per local candidate; None stays None.
            merge: merges the results of two processes for the same candidates.

        Returns:
            The merged results of all processes for the local candidates.
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
        if merge is total:  # all-reduce is faster than merging here
            for each in found:
                dist.all_reduce(each)
            return [each[own] for each in found]
        everywhere = [gathered_parts(each, [len(each)] * len(self.counts)) for each in found]
        return reduce(merge, [[each[own] for each in of_process] for of_process in zip(*everywhere, strict=True)])


class Ring(Gathered):
    """One block of candidates at a time, passed on until it has visited every process."""

    def visit(self, step: Step, rows: Rows, merge: Merge) -> Sequence[Tensor]:
        world, found = len(self.counts), None
        for hop in range(world):
            owner = (self.rank - hop) % world
            seen = step(rows, self.starts[owner])
            found = seen if found is None else merge(found, seen)
            count = self.counts[(owner - 1) % world]
            last = hop == world - 1  # then only the results have to return
            rows = rows if last else [None if each is None else self.passed_on(each, count) for each in rows]
            found = [self.passed_on(each, count) for each in found]
        return found

    def passed_on(self, rows: Tensor, count: int) -> Tensor:
        """Sends rows to the next process and returns the `count` rows of the previous one."""
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
    """The exchange of this name for the row counts of all processes; `Alone` for None or a single process."""
    if name is None or world_size() == 1:
        return Alone([len(local)])
    return {"gather": Gathered, "ring": Ring}[name](row_counts(local))
