"""Streams of shards: what a pass holds, in which order, and that it goes on where it was."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from datasets import Image as ImageColumn

from hf_vse.data.sources import load_pairs
from hf_vse.data.streams import STREAM_STATE, StreamCollator, StreamedBatches, StreamedPairs
from tests.data.test_sources import encoded, shard

SHARDS, ROWS, BATCH = 12, 10, 4


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> IterableDataset:
    """12 archives with 10 images of 3 captions each."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(SHARDS):
        rows = range(number * ROWS, (number + 1) * ROWS)
        said = {row: {"captions": [f"{row} {n}" for n in "abc"], "cocoid": row} for row in rows}
        samples = {f"{row:04d}": {"jpg": encoded(row), "json": json.dumps(said[row]).encode()} for row in rows}
        shard(folder / f"train-{number:02d}.tar", samples)
    return load_pairs("webdataset", data_dir=folder, streaming=True)["train"]


def pairs_of(stream: IterableDataset, process: int = 0, processes: int = 1, **options) -> StreamedPairs:
    pairs = StreamedPairs(stream, seed=3, buffer_size=20, **options)
    pairs.process, pairs.processes = process, processes
    return pairs


def ids(items) -> list[int]:
    return [item["image_id"] for item in items]


def test_every_image_comes_once_a_pass_and_in_three_passes_with_each_of_its_captions(stream):
    pairs, captions, orders = pairs_of(stream), Counter(), []
    for epoch in range(3):
        pairs.set_epoch(epoch)
        items = list(pairs)
        assert sorted(ids(items)) == list(range(SHARDS * ROWS))
        captions.update(item["caption"] for item in items)
        orders.append(ids(items))
    assert set(captions.values()) == {1} and len(captions) == 3 * SHARDS * ROWS
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    of_batch = [{image // ROWS for image in orders[0][start : start + 20]} for start in range(0, 80, 20)]
    assert min(map(len, of_batch)) >= 5, "a block comes from several shards"
    several = list(pairs_of(stream, captions_per_image=2))
    assert all(len({text["caption"] for text in item["texts"]}) == 2 for item in several)


def in_memory(rows: int, shards: int, captions_of_image: int = 1) -> IterableDataset:
    """A row for each caption."""
    numbers = [row // captions_of_image for row in range(rows)]
    made = [{"image_id": each, "image_features": [float(each)], "captions": ["a"]} for each in numbers]
    return Dataset.from_list(made).to_iterable_dataset(num_shards=shards)


@pytest.mark.parametrize("processes, workers", [(1, 2), (3, 1), (2, 3)])
def test_readers_share_the_images(processes, workers, monkeypatch):
    """Also where there are more readers than shards (4)."""
    seen = []
    for process in range(processes):
        for number in range(workers):
            worker = SimpleNamespace(id=number, num_workers=workers)
            monkeypatch.setattr("hf_vse.data.streams.get_worker_info", lambda worker=worker: worker)
            seen.append(ids(pairs_of(in_memory(24, 4), process, processes)))
    assert sorted(image for each in seen for image in each) == list(range(24)) and all(seen)


def test_no_image_is_twice_in_a_batch():
    pairs = pairs_of(in_memory(60, 2, captions_of_image=3))
    batches = [ids(batch) for batch, _ in pairs.batches(BATCH)]
    assert len(batches) == 15 and Counter(image for batch in batches for image in batch) == dict.fromkeys(range(20), 3)
    assert sum(len(set(batch)) < BATCH for batch in batches) <= 3  # where nothing else is left in a block


class Counted:
    """How many rows are read of each shard."""

    def __init__(self, monkeypatch):
        from hf_vse.data import streams

        self.read: Counter[int] = Counter()
        plain = streams.OpenShard.next_row

        def next_row(opened):
            row = plain(opened)
            self.read[opened.shard] += row is not None
            return row

        monkeypatch.setattr(streams.OpenShard, "next_row", next_row)


def test_a_reader_goes_on_after_any_batch_and_reads_little_again(stream, monkeypatch):
    counted, pairs = Counted(monkeypatch), pairs_of(stream)
    pairs.set_epoch(1)
    whole = [(batch, json.loads(json.dumps(state))) for batch, state in pairs.batches(BATCH)]
    assert len(whole) == SHARDS * ROWS // BATCH
    for given in (1, 7, 13, 25, len(whole)):
        counted.read.clear()
        again = pairs_of(stream)
        again.set_epoch(1)
        rest = list(again.batches(BATCH, whole[given - 1][1]))
        assert [batch for batch, _ in rest] == [batch for batch, _ in whole[given:]], given
        assert sum(counted.read.values()) <= SHARDS * ROWS - (given - 1) // 5 * 20
        if len(rest) > 1:  # resumed again, in the block in which it was resumed
            twice = list(again.batches(BATCH, json.loads(json.dumps(rest[1][1]))))
            assert [batch for batch, _ in twice] == [batch for batch, _ in rest[2:]], given
    of_loader = StreamedBatches(again, BATCH, {0: whole[6][1]})
    found = list(of_loader)
    assert found[:7] == [None] * 7 and [batch for batch, _ in found[7:]] == [batch for batch, _ in whole[7:]]
    assert len(list(StreamedBatches(pairs_of(stream), BATCH, {0: whole[6][1]}))) == len(whole), "of another pass"
    made = StreamCollator(lambda items: {"ids": np.array(ids(items))})(found[7])
    assert made["ids"].tolist() == ids(whole[7][0]) and json.loads(made[STREAM_STATE])["given"] == 8
    assert isinstance(stream.features["image"], ImageColumn)
