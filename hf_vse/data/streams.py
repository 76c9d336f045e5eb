"""Pairs of a streamed split: of several shards at once, shuffled, and resumed where they were.

Every process of a data loader, on every machine, is a reader with shards of its own. It holds `OPEN_SHARDS` open, of
which chance picks the next row. So many rows make a block, which is shuffled and given out in batches in which no
image occurs twice. In every pass an image comes with the next of its captions, in an order of its own, so that all
come up.

All chance follows from seed, pass, reader and number of the block. So a reader goes on exactly where it was from a
small state: the place in each of its open shards when the block began, and how many batches of the block are given.
Finished shards are not read again.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fsspec.asyn
import numpy as np
import torch
from datasets import Image, IterableDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from torch.utils.data import get_worker_info

from hf_vse.data.long_captions import drawn_piece
from hf_vse.data.pairs import seeds_of_texts
from hf_vse.data.sampler import unique_batches
from hf_vse.data.schema import CAPTIONS, GROUP_ID, IMAGE, IMAGE_FEATURES, IMAGE_ID

OPEN_SHARDS = 8
STREAM_STATE = "stream_state"  # of a batch: what its reader needs to go on after it, JSON
ORDER, BLOCK, OF_IMAGE = 1, 2, 3  # kinds of random numbers

Row = dict[str, Any]


class OpenShard:
    """A shard that is read row by row.

    Args:
        rows: the stream that it is a part of.
        shard: its number.
        taken: how many of its rows are read.
        state: of `rows.shard(...)` after these.
    """

    def __init__(self, rows: IterableDataset, shard: int, taken: int = 0, state: dict | None = None):
        self.shard, self.taken = shard, taken
        self.begin = [shard, taken, state]
        self.rows = rows.shard(rows.num_shards, shard)
        if state is not None:
            self.rows.load_state_dict(state)
        self.iterator = self.rows.iter(batch_size=1)  # unlike iter(), reads all of it in any worker

    def next_row(self) -> Row | None:
        batch = next(self.iterator, None)
        if batch is None:
            return None
        self.taken += 1
        return {name: values[0] for name, values in batch.items()}

    def state(self) -> list[Any]:
        if self.taken == self.begin[1]:  # before the first row it does not tell what it was given
            return self.begin
        return [self.shard, self.taken, self.rows.state_dict()]


class RowBlock(NamedTuple):
    """Rows in random order; `draws` seeds everything random about the pair of each, `before` is where it begins."""

    rows: list[Row]
    draws: list[int]
    before: dict[str, Any]


class StreamedPairs(TorchIterableDataset):
    """Pairs of a streamed split: every image once per pass with some of its captions.

    Args:
        dataset: a streamed split as `load_pairs` returns it.
        seed, buffer_size: seed of all chance, and rows that are shuffled together.
        pieces_of: the pieces of a caption, see `Pieces`; one of them is drawn at a time.
        captions_per_image: how many captions; where an image has fewer, it repeats them.
    """

    process, processes = 0, 1  # that share the stream; set by the trainer

    def __init__(
        self,
        dataset: IterableDataset,
        seed: int = 0,
        buffer_size: int = 1000,
        pieces_of: Callable[[str], list[str]] | None = None,
        captions_per_image: int = 1,
    ):
        source = IMAGE_FEATURES if IMAGE_FEATURES in (dataset.column_names or []) else IMAGE
        self.source, self.pieces_of = source, pieces_of
        self.rows = dataset.cast_column(IMAGE, Image(decode=False)) if source == IMAGE else dataset
        self.seed, self.buffer_size = seed, buffer_size
        self.captions_per_image = captions_per_image
        self.shared_epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # with workers that persist

    @property
    def epoch(self) -> int:
        return int(self.shared_epoch)

    def set_epoch(self, epoch: int) -> None:
        self.shared_epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Row]:
        for block in self.blocks(self.buffer_size):
            yield from map(self.pair, block.rows, block.draws)

    def batches(self, batch_size: int, state: dict[str, Any] | None = None) -> Iterator[tuple[list[Row], dict]]:
        """Batches of this reader without a repeated image, and after each the state that goes on after it.

        Rows of one image that do not fit into different batches of a block share one.
        """
        size = batch_size * max(1, round(self.buffer_size / batch_size))
        given, of_block = (state["given"], state["of_block"]) if state else (0, 0)
        for block in self.blocks(size, state and state["block"]):
            ids = np.array([row[IMAGE_ID] for row in block.rows])
            places = [each for each in unique_batches(ids, batch_size) if len(each) == batch_size]
            for number in range(of_block, len(places)):
                given += 1
                pairs = [self.pair(block.rows[place], block.draws[place]) for place in places[number]]
                yield pairs, {"epoch": self.epoch, "given": given, "of_block": number + 1, "block": block.before}
            of_block = 0

    def blocks(self, size: int, begin: dict[str, Any] | None = None) -> Iterator[RowBlock]:
        """The rows of this reader in blocks of `size`, the last one smaller, from the place `before` of a block."""
        worker = get_worker_info()
        if worker is not None:
            fsspec.asyn.reset_lock()  # else remote files hang in a process that was forked
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        reader, readers = self.process * workers + index, self.processes * workers
        order = np.random.default_rng((self.seed, self.epoch, ORDER)).permutation(self.rows.num_shards).tolist()
        few = len(order) < readers  # then all read all shards, and every reader takes rows of its own
        own = order if few else order[reader::readers]
        begin = begin or {"number": 0, "next": 0, "open": []}
        opened = [OpenShard(self.rows, *each) for each in begin["open"]]
        number, following = begin["number"], begin["next"]
        while True:
            before = {"number": number, "next": following, "open": [shard.state() for shard in opened]}
            chance = np.random.default_rng((self.seed, self.epoch, BLOCK, reader, number))
            rows: list[Row] = []
            while len(rows) < size:
                while len(opened) < OPEN_SHARDS and following < len(own):
                    opened.append(OpenShard(self.rows, own[following]))
                    following += 1
                if not opened:
                    break
                shard = opened[int(chance.integers(len(opened)))]
                if (row := shard.next_row()) is None:
                    opened.remove(shard)
                elif not few or (shard.taken + shard.shard) % readers == reader:
                    rows.append(row)
            if not rows:
                return
            shuffled = [rows[place] for place in chance.permutation(len(rows))]
            yield RowBlock(shuffled, chance.integers(2**31, size=len(rows)).tolist(), before)
            number += 1

    def pair(self, row: Row, draw: int) -> Row:
        """A row with the captions that are its turn."""
        of_pair = {name: row[name] for name in (self.source, IMAGE_ID, CAPTIONS) if name in row}
        if row.get(GROUP_ID) is not None:
            of_pair[IMAGE_ID] = row[GROUP_ID]  # no negatives of each other
        of_pair["draw"] = draw
        captions, several = row[CAPTIONS], self.captions_per_image
        of_image = np.random.default_rng((self.seed, row[IMAGE_ID] % 2**64, OF_IMAGE))
        order = of_image.permutation(len(captions))
        chosen = [captions[order[(self.epoch * several + place) % len(order)]] for place in range(several)]
        if several == 1:
            return of_pair | self.text(chosen[0], draw)
        seeds = seeds_of_texts(draw, several)
        return of_pair | {"texts": [self.text(each, seed) for each, seed in zip(chosen, seeds, strict=True)]}

    def text(self, whole: str, draw: int) -> Row:
        """A caption, or a piece of it."""
        if self.pieces_of is None:
            return {"caption": whole, "draw": draw}
        pieces = self.pieces_of(whole)
        return {"caption": pieces[drawn_piece(pieces, draw)], "draw": draw, "whole_caption": whole}


class StreamedBatches(TorchIterableDataset):
    """The batches of `StreamedPairs`, each with the state of its reader.

    A loader that resumes skips the batches that were given before. In their place it gets None, at once.

    Args:
        pairs: the stream.
        batch_size: pairs of a batch of this process.
        states: of the workers of this process by number, as `STREAM_STATE` of their last batches; of another pass they
            are passed over.
    """

    def __init__(self, pairs: StreamedPairs, batch_size: int, states: dict[int, dict[str, Any]] | None = None):
        self.pairs, self.batch_size = pairs, batch_size
        self.states = states or {}

    def set_epoch(self, epoch: int) -> None:
        self.pairs.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[list[Row], str] | None]:
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        state = self.states.get(number)
        if state is not None and state["epoch"] == self.pairs.epoch:
            yield from [None] * state["given"]
        else:
            state = None
        for pairs, after in self.pairs.batches(self.batch_size, state):
            yield pairs, json.dumps({"worker": number} | after)


class StreamCollator:
    """Makes batches of pairs with another collator, and keeps their states."""

    def __init__(self, collate: Callable[[list[Row]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, batch: tuple[list[Row], str] | None) -> dict[str, Any] | None:
        if batch is None:
            return None
        pairs, state = batch
        return self.collate(pairs) | {STREAM_STATE: state}
