"""Batches in which no image occurs twice.

With five captions of one image in a batch, each has four false negatives. So the captions of an image are spread
evenly over the epoch, and a pair whose image is already in the batch waits for the next batch. Every caption occurs
once per epoch. The batch here is the global batch; it is split into one part per process.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np

from hf_vse.data.pairs import Pair, PairDataset


def spread_order(caption_counts: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in random order, with the captions of each image spread evenly.

    Args:
        caption_counts: (rows,) number of captions per image.

    Returns:
        `rows (pairs,)` and `captions (pairs,)`.
    """
    rows = np.repeat(np.arange(len(caption_counts)), caption_counts)
    place = np.concatenate([rng.permutation(count) for count in caption_counts])
    captions = np.concatenate([np.arange(count) for count in caption_counts])
    order = np.argsort((place + rng.random(len(rows))) / caption_counts[rows], kind="stable")
    return rows[order], captions[order]


def unique_batches(rows: np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Splits a sequence of pairs into batches of distinct rows; yields positions in the sequence.

    A pair that has to wait comes first in the next batch. Pairs left at the end that would repeat a row are placed
    anyway, so there are always `ceil(pairs / batch_size)` batches.
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


def check_batch_size(batch_size: int, num_processes: int, available: int, unique_images: bool) -> None:
    """Raises ValueError where a global batch needs more images, or pairs, than there are."""
    if available < batch_size * num_processes:
        raise ValueError(
            f"a batch of {batch_size} on {num_processes} process(es) needs {batch_size * num_processes} "
            f"{'different images' if unique_images else 'pairs'}, the training split has {available}; "
            f"lower per_device_train_batch_size to at most {available // num_processes}"
        )


class PairBatchSampler:
    """Batches of pairs for all processes; `accelerate` gives batch i to process i modulo `num_processes`.

    Args:
        dataset: the pairs; its `epoch` determines the order.
        batch_size: pairs per process.
        num_processes: processes that share the global batch.
        seed: seed of the order and of each pair's `draw`.
        unique_images: no image occurs twice in a global batch; False gives plain random order.
        drop_last: drop the last, smaller batch; False keeps it if every process gets at least two pairs.

    Raises:
        ValueError: the global batch needs more pairs (or, with `unique_images`, more images) than there are.
    """

    batch_size = None  # tells accelerate not to pad: batches may differ in size

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
        check_batch_size(batch_size, num_processes, len(self.counts) if unique_images else len(dataset), unique_images)

    @property
    def remainder(self) -> int:
        """Number of pairs in the last, smaller global batch; 0 if it is dropped."""
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
