"""How the queries of a process are compared with the candidates of all processes.

Each process keeps its queries. A step compares them with a block of candidates and returns one row of results for each
candidate. The results of all processes are merged, and each process gets those of its own candidates. Nothing here is
differentiable; the backward pass is a second round.

| negatives | class      | candidates                                                                             |
|-----------|------------|----------------------------------------------------------------------------------------|
| `gather`  | `Gathered` | of all processes at once                                                               |
| `ring`    | `Ring`     | of one process at a time, passed on with their results; at most two blocks in memory    |
| `local`   | `Alone`    | of this process                                                                        |
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
Negatives = Literal["gather", "ring", "local"]  # the processes whose candidates are negatives


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shares_negatives(negatives: Negatives | None) -> bool:
    """Whether queries are compared with candidates of other processes; None is how version 0.1 wrote `local`."""
    return world_size() > 1 and negatives not in ("local", None)


def check_at_once(name: str, negatives: Negatives | None) -> None:
    """Raises ValueError where candidates come one process at a time."""
    if negatives == "ring":
        raise ValueError(
            f"extra_negatives {name} needs all images and texts at once: give negatives: gather, or "
            "extra_negatives: none"
        )


def row_counts(local: Tensor) -> list[int]:
    """How many rows each process has; they differ in the last batch or where an image could not be read."""
    if world_size() == 1:
        return [len(local)]
    count = torch.tensor([len(local)], device=local.device)
    counts = [torch.empty_like(count) for _ in range(world_size())]
    dist.all_gather(counts, count)
    return [int(each) for each in torch.cat(counts)]


def gathered_parts(local: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of every process; where the numbers differ, they are padded for the transfer."""
    padded = local.new_zeros(max(counts), *local.shape[1:])
    padded[: len(local)] = local
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


class Alone:
    """The candidates of this process alone."""

    def __init__(self, counts: list[int]):
        self.rank = dist.get_rank() if world_size() > 1 else 0
        self.counts = counts
        self.starts = [0, *accumulate(counts)]

    @property
    def first(self) -> int:
        """Place of this process's first row among the candidates."""
        return 0

    def visit(self, step: Step, rows: Rows, merge: Merge) -> Sequence[Tensor]:
        """Calls `step` with blocks of candidates.

        Args:
            step: gets rows of candidates and the place of the first one; returns tensors with a row for each.
            rows: tensors with a row for each candidate of this process; None stays None.
            merge: combines the results of two processes on the same candidates.

        Returns:
            The results of all processes on the candidates of this one.
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
        if merge is total:  # a backend adds faster
            for each in found:
                dist.all_reduce(each)
            return [each[own] for each in found]
        everywhere = [gathered_parts(each, [len(each)] * len(self.counts)) for each in found]
        return reduce(merge, [[each[own] for each in of_process] for of_process in zip(*everywhere, strict=True)])


class Ring(Gathered):
    """One block of candidates at a time, passed from process to process."""

    def visit(self, step: Step, rows: Rows, merge: Merge) -> Sequence[Tensor]:
        world = len(self.counts)
        found: Sequence[Tensor] = ()
        for hop in range(world):
            owner = (self.rank - hop) % world
            seen = step(rows, self.starts[owner])
            found = merge(found, seen) if hop else seen
            count = self.counts[(owner - 1) % world]
            last = hop == world - 1  # then only the results return to their process
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


def exchange_of(negatives: Negatives | None, local: Tensor) -> Alone:
    """The exchange for processes with these rows; `Alone` for a single process."""
    if not shares_negatives(negatives):
        return Alone([len(local)])
    kinds: dict[Negatives | None, type[Gathered]] = {"gather": Gathered, "ring": Ring}
    return kinds[negatives](row_counts(local))
