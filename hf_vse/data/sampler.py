"""Batches in which no image occurs twice.

Five captions of an image in one batch make four false negatives each. The captions of every image are therefore
spread evenly over the epoch, and a pair whose image is already in the batch waits for the next one. Every caption
comes once an epoch. The batch is the global one: it is cut into one piece for each process.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np

from hf_vse.data.pairs import Pair, PairDataset


def spread_order(caption_counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in random order, the captions of one image evenly spread.

    Args:
        caption_counts: (rows,) captions of every image.

    Returns:
        `rows (pairs,)` and `captions (pairs,)`.
    """
    rows = np.repeat(np.arange(len(caption_counts)), caption_counts)
    place = np.concatenate([rng.permutation(count) for count in caption_counts])
    captions = np.concatenate([np.arange(count) for count in caption_counts])
    order = np.argsort((place + rng.random(len(rows))) / caption_counts[rows], kind="stable")
    return rows[order], captions[order]


def unique_batches(rows: np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Cuts a sequence of pairs into batches of different rows; yields positions in the sequence.

    A pair that has to wait is the first of the next batch. What is left at the end and cannot be placed without a
    repetition is placed all the same, so that there are always `ceil(pairs / batch_size)` batches.
    """
    of_image = rows.tolist()
    queue = deque(range(len(of_image)))
    while queue:
        batch: list[int] = []
        present: set[int] = set()
        waiting: list[int] = []
        while queue and len(batch) < batch_size:
            position = queue.popleft()
            if of_image[position] in present:
                waiting.append(position)
            else:
                present.add(of_image[position])
                batch.append(position)
        missing = batch_size - len(batch)
        queue.extendleft(reversed(waiting[missing:]))
        yield batch + waiting[:missing]


class PairBatchSampler:
    """Batches of pairs for every process in turn; `accelerate` gives batch i to process i modulo `num_processes`.

    Args:
        dataset: the pairs; its `epoch` decides the order.
        batch_size: pairs of one process.
        num_processes: processes that share the global batch.
        seed: of the order and of everything random about the pairs.
        unique_images: no image twice in a global batch; otherwise pairs come in plain random order.
        drop_last: leave out the last, smaller batch; otherwise it is kept if every process gets two pairs of it.

    Raises:
        ValueError: there are fewer pairs than one global batch, or fewer images where they must be unique.
    """

    batch_size = None  # batches may differ in size; tells accelerate not to pad them

    def __init__(
        self,
        dataset: PairDataset,
        batch_size: int,
        num_processes: int = 1,
        seed: int = 0,
        unique_images: bool = True,
        drop_last: bool = False,
    ):
        self.dataset = dataset
        self.global_batch = batch_size * num_processes
        self.num_processes = num_processes
        self.seed = seed
        self.unique_images = unique_images
        self.drop_last = drop_last
        self.counts = dataset.caption_counts
        available = len(self.counts) if unique_images else len(dataset)
        if available < self.global_batch:
            raise ValueError(
                f"a batch of {batch_size} on {num_processes} process(es) needs {self.global_batch} "
                f"{'different images' if unique_images else 'pairs'}, the training split has {available}; "
                f"lower per_device_train_batch_size to at most {available // num_processes}"
            )

    @property
    def remainder(self) -> int:
        """Pairs of the last, smaller global batch, if it is used."""
        rest = int(self.counts.sum()) % self.global_batch
        return 0 if self.drop_last or rest < 2 * self.num_processes else rest

    def __len__(self) -> int:
        return (int(self.counts.sum()) // self.global_batch + (self.remainder > 0)) * self.num_processes

    def __iter__(self) -> Iterator[list[Pair]]:
        rng = np.random.default_rng((self.seed, self.dataset.epoch))
        rows, captions = spread_order(self.counts, rng)
        if not self.unique_images:
            shuffled = rng.permutation(len(rows))
            rows, captions = rows[shuffled], captions[shuffled]
        draws = rng.integers(2**31, size=len(rows))
        batches = (
            unique_batches(rows, self.global_batch)
            if self.unique_images
            else (range(i, min(i + self.global_batch, len(rows))) for i in range(0, len(rows), self.global_batch))
        )
        for batch in batches:
            if len(batch) < self.global_batch and not self.remainder:
                return
            for piece in np.array_split(np.asarray(batch), self.num_processes):
                yield [Pair(int(rows[i]), int(captions[i]), int(draws[i])) for i in piece]
