"""Batches in which no image occurs twice.

With five captions of one image in a batch, each has four false negatives. So the captions of an image are spread
evenly over the epoch, and a pair whose image is already in the batch waits for the next batch. Every caption occurs
once per epoch. The batch here is the global batch; it is split into one part per process.

An image may also come with several of its captions at a time. Then its visits are spread in place of its captions, and
on the last one it repeats captions where too few are left.

Groups of images (see `neighbours.py`, or the records of an entity) come one after the other, in random order, so that
batches consist of groups.
"""

import logging
from collections import deque
from collections.abc import Iterator
from functools import cache

import numpy as np

from hf_vse.data.neighbours import grouped
from hf_vse.data.pairs import Pair, PairDataset

logger = logging.getLogger(__name__)


def spread_order(
    caption_counts: np.ndarray, rng: np.random.Generator, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs in random order, with the captions of each image spread evenly.

    Args:
        caption_counts: (rows,) number of captions per image.
        groups: (rows,) numbers of groups; images of one group with equally many captions come together every time.

    Returns:
        `rows (pairs,)` and `captions (pairs,)`.
    """
    rows = np.repeat(np.arange(len(caption_counts)), caption_counts)
    place = np.zeros(len(rows), int)
    first = np.cumsum(caption_counts) - caption_counts
    for row in np.flatnonzero(caption_counts > 1).tolist():
        place[first[row] : first[row] + caption_counts[row]] = rng.permutation(caption_counts[row])
    captions = np.arange(len(rows)) - np.repeat(first, caption_counts)
    if groups is None:
        when = rng.random(len(rows))
    else:
        when = rng.random((caption_counts.max(), groups.max() + 1))[place, groups[rows]]
    order = np.argsort((place + when) / caption_counts[rows], kind="stable")
    return rows[order], captions[order]


def unique_batches(rows: np.ndarray, batch_size: int) -> Iterator[list[int]]:
    """Splits a sequence of pairs into batches of distinct rows; yields positions in the sequence.

    A pair that has to wait comes first in the next batch. Pairs left at the end that would repeat a row are placed
    anyway, so there are always `ceil(pairs / batch_size)` batches.
    """
    waited: deque[int] = deque()
    following = 0
    while waited or following < len(rows):
        batch: list[int] = []
        present: set[int] = set()
        waiting: list[int] = []
        while (waited or following < len(rows)) and len(batch) < batch_size:
            position = waited.popleft() if waited else following
            following += position == following
            row = int(rows[position])
            if row in present:
                waiting.append(position)
            else:
                present.add(row)
                batch.append(position)
        missing = batch_size - len(batch)
        waited.extendleft(reversed(waiting[missing:]))
        yield batch + waiting[:missing]


def visits_of(caption_counts: np.ndarray, captions_per_image: int) -> np.ndarray:
    """How often an image comes in an epoch, so that each of its captions does: (rows,)."""
    return -(-caption_counts // captions_per_image)


def groups_of_labels(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Cuts the images of each label into groups of `size`, or a few more where it does not divide their number.

    Args:
        labels: (rows,) integers.

    Returns:
        (rows,) the number of the group of each row.
    """
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(counts.cumsum() - counts, counts)
    parts = np.maximum(1, counts // size)
    return (parts.cumsum() - parts)[labels] + rank * parts[labels] // counts[labels]


@cache
def report_repeats(captions: int, of: int, captions_per_image: int) -> None:
    """Says once how many captions come a second time because `captions_per_image` does not divide their number."""
    logger.info(
        "%s places of an epoch repeat one of %s captions: images come with %d at a time",
        f"{captions:,}", f"{of:,}", captions_per_image,
    )  # fmt: skip


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
        captions_per_image: captions that come together; a pair is then an image with so many.
        near: (images, candidates) places of images for groups of neighbours, see `near_rows`; None for no groups.
        group_size: images of a group.
        labels: (images,) integers; groups are of images of equal label, which come equally often.

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
        captions_per_image: int = 1,
        near: np.ndarray | None = None,
        group_size: int = 1,
        labels: np.ndarray | None = None,
    ):
        self.dataset = dataset
        self.global_batch = batch_size * num_processes
        self.num_processes = num_processes
        self.seed = seed
        self.unique_images = unique_images
        self.drop_last = drop_last
        self.captions_per_image = captions_per_image
        self.near, self.group_size, self.labels = near, group_size, labels
        self.counts = dataset.caption_counts
        self.visits = visits_of(self.counts, captions_per_image)
        if labels is not None:
            _, of_label = np.unique(labels, return_inverse=True)
            most = np.zeros(of_label.max() + 1, dtype=self.visits.dtype)
            np.maximum.at(most, of_label, self.visits)
            self.visits = most[of_label]
        self.pairs = int(self.visits.sum())
        check_batch_size(batch_size, num_processes, len(self.counts) if unique_images else self.pairs, unique_images)
        if repeats := self.pairs * captions_per_image - len(dataset):
            report_repeats(repeats, len(dataset), captions_per_image)

    @property
    def remainder(self) -> int:
        """Number of pairs in the last, smaller global batch; 0 if it is dropped."""
        rest = self.pairs % self.global_batch
        return 0 if self.drop_last or rest < 2 * self.num_processes else rest

    def __len__(self) -> int:
        return (self.pairs // self.global_batch + (self.remainder > 0)) * self.num_processes

    def __iter__(self) -> Iterator[list[Pair]]:
        rng = np.random.default_rng((self.seed, self.dataset.epoch))
        groups = None if self.near is None else grouped(self.near, self.group_size, rng)
        groups = groups if self.labels is None else groups_of_labels(self.labels, self.group_size, rng)
        rows, captions = spread_order(self.visits, rng, groups)
        if not self.unique_images:
            shuffled = rng.permutation(len(rows))
            rows, captions = rows[shuffled], captions[shuffled]
        draws = rng.integers(2**31, size=len(rows))
        several = None if self.captions_per_image == 1 else self.several(rows, captions, rng)
        batches = (
            unique_batches(rows, self.global_batch)
            if self.unique_images
            else (range(i, min(i + self.global_batch, len(rows))) for i in range(0, len(rows), self.global_batch))
        )
        for batch in batches:
            if len(batch) < self.global_batch and not self.remainder:
                return
            for piece in np.array_split(np.asarray(batch), self.num_processes):
                chosen = captions[piece].tolist() if several is None else [several[place] for place in piece]
                yield list(map(Pair, rows[piece].tolist(), chosen, draws[piece].tolist()))

    def several(self, rows: np.ndarray, visits: np.ndarray, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """The captions of each visit of an image, which has them in an order of this epoch."""
        orders = [rng.permutation(count).tolist() for count in self.counts]
        each = self.captions_per_image
        return [
            tuple(orders[row][place % len(orders[row])] for place in range(visit * each, (visit + 1) * each))
            for row, visit in zip(rows.tolist(), visits.tolist(), strict=True)
        ]
