"""How many negatives score at least as high as the best positive of a query: filtered in float32, decided in float64.

Similarities are computed tile by tile in float32, whose rounding error has a proven bound (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, section 3.1). A negative whose score is farther from the threshold than this
bound is decided; the few nearer ones are computed again in float64, pair by pair, or as a whole tile where they are
many (a collapsed model).

So the ranks are those of float64 and depend on the embeddings alone, not on the device, the tile size or the order of
the candidates. Embeddings are only ever read a tile at a time: memory-mapped arrays larger than memory will do.

Counts of negatives add up over tiles, so processes may share them: each counts some tiles, and the counts are summed.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

# Two float64 dot products of unit vectors that differ by less are the same number, rounded differently.
TIE_TOLERANCE = 1e-12
# Largest norms for which float32 cannot overflow and what it loses to underflow is far below the tolerance.
FLOAT32_NORMS = (1e-9, 1e18)
# A similarity computed alone takes as long as some hundreds of them in a matrix product.
UNDECIDED_SHARE = 0.005
# Rows converted to float64 at once: these stay in the cache of a CPU.
ROWS_AT_ONCE = 256

Array = Tensor | np.ndarray | Sequence


def as_tensor(values: Array) -> Tensor:
    """A tensor that shares the memory of `values`, also of a read-only or memory-mapped array: nothing here writes."""
    if isinstance(values, Tensor):
        return with_float64(values.detach())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(values))


def with_float64(values: Tensor) -> Tensor:
    """The values on a device that supports float64, which Apple's GPUs do not."""
    return values.cpu() if values.device.type == "mps" else values


def as_matrix(name: str, embeds: Array) -> Tensor:
    """Embeddings as a matrix (items, dim), neither read nor converted."""
    matrix = as_tensor(embeds)
    if matrix.ndim != 2 or not len(matrix):
        raise ValueError(f"{name} must be a non-empty (items, dim) matrix, got shape {tuple(matrix.shape)}")
    return matrix


def finite_norms(name: str, matrix: Tensor) -> Tensor:
    """The float64 length of each row, (items,); an error names the first that has none."""
    norms = torch.empty(len(matrix), dtype=torch.float64, device=matrix.device)
    for rows, lengths in zip(matrix.split(ROWS_AT_ONCE), norms.split(ROWS_AT_ONCE), strict=True):
        lengths.copy_(rows.double().norm(dim=1))
    if not norms.isfinite().all():
        bad = (~norms.isfinite()).nonzero()[0].item()
        raise ValueError(f"{name} row {bad} is not finite; the model diverged, train with a lower learning rate")
    return norms


def check_correspondence(images: Tensor, texts: Tensor, text_to_image: Tensor, distractors: bool) -> None:
    if images.shape[1] != texts.shape[1]:
        raise ValueError(f"image_embeds have {images.shape[1]} dimensions and text_embeds {texts.shape[1]}")
    if text_to_image.shape != (len(texts),):
        raise ValueError(
            f"text_to_image must name one image for each of the {len(texts)} texts, got {tuple(text_to_image.shape)}"
        )
    if text_to_image.min() < 0 or text_to_image.max() >= len(images):
        raise ValueError(f"text_to_image must lie in 0 .. {len(images) - 1}, the rows of image_embeds")
    without = (torch.bincount(text_to_image, minlength=len(images)) == 0).nonzero()
    if len(without) and not distractors:
        raise ValueError(
            f"image {without[0].item()} and {len(without) - 1} more have no text; leave them out, or pass "
            "distractors=True to keep them as candidates"
        )


class Thresholds(NamedTuple):
    """The score that a negative must reach to count, for each query, and its bounds in float32."""

    exact: Tensor  # (queries,) float64
    low: Tensor  # (queries,) float32; lower scores do not reach it
    high: Tensor  # (queries,) float32; higher scores reach it

    def of(self, rows: slice | Tensor) -> "Thresholds":
        return Thresholds(*(each[rows] for each in self))


def make_thresholds(best: Tensor, norms: Tensor, negative_norm: Tensor, dim: int, tolerance: Tensor) -> Thresholds:
    """Thresholds of queries whose best positive scores `best` and whose negatives are at most `negative_norm` long.

    A float32 product of vectors a and b, themselves rounded to float32, is off by at most gamma(dim + 2) |a| |b|, in
    whatever order it is summed; one `tolerance` more covers the float64 rounding of the threshold itself.
    """
    units = (dim + 2) * torch.finfo(torch.float32).eps / 2
    gamma = units / (1 - units)
    error = gamma * norms * negative_norm + tolerance
    exact = best - tolerance
    infinity = torch.tensor(torch.inf, device=best.device)
    low = torch.nextafter((exact - error).float(), -infinity)
    return Thresholds(exact, low, torch.nextafter((exact + error).float(), infinity))


class Tile(NamedTuple):
    """Some texts and some images, and the pairs of them that belong together."""

    texts: Tensor  # (texts, dim)
    images: Tensor  # (images, dim)
    positives: tuple[Tensor, Tensor]  # rows of texts, rows of images

    def scores(self, dtype: torch.dtype) -> Tensor:
        """Similarities (texts, images), with -inf for positives."""
        scores = self.texts.to(dtype) @ self.images.to(dtype).T
        scores[self.positives] = -torch.inf
        return scores


def tiles(texts: Tensor, images: Tensor, owner: Tensor, size: int) -> Iterator[tuple[slice, slice, Tile]]:
    """Cuts all pairs into tiles; yields the rows of the texts, the rows of the images, and the tile."""
    for left in range(0, len(images), size):
        columns = slice(left, min(left + size, len(images)))
        for top in range(0, len(texts), size):
            rows = slice(top, top + size)
            mine = ((owner[rows] >= left) & (owner[rows] < columns.stop)).nonzero()[:, 0]
            yield rows, columns, Tile(texts[rows], images[columns], (mine, owner[rows][mine] - left))


def pair_scores(queries: Tensor, candidates: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Float64 similarities of chosen pairs, (pairs,), given as rows of `queries` and rows of `candidates`."""
    scores = torch.empty(len(pairs[0]), dtype=torch.float64, device=queries.device)
    for rows, columns, chunk in zip(*(each.split(ROWS_AT_ONCE) for each in (*pairs, scores)), strict=True):
        products = queries.index_select(0, rows).double().mul_(candidates.index_select(0, columns))
        chunk.copy_(products.sum(dim=1))
    return scores


def reaching(scores: Tensor, thresholds: Tensor) -> Tensor:
    """How many scores (queries, candidates) reach the threshold of their query, (queries,) int64."""
    # Zeros and ones of the scores' own type: torch compares to and sums these several times faster than booleans.
    return torch.ge(scores, thresholds[:, None], out=torch.empty_like(scores)).sum(dim=1).long()


def decide(scores: Tensor, thresholds: Thresholds) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Counts what float32 can decide of a tile.

    Args:
        scores: (queries, candidates) float32, as seen from the queries.

    Returns:
        How many scores surely reach the threshold of their query, (queries,) int64, and the rows and columns of those
        that float64 has to decide.
    """
    asked = (scores.amax(dim=1) >= thresholds.low).nonzero()[:, 0]  # in most tiles most queries have no such negative
    scores, thresholds, surely = scores.index_select(0, asked), thresholds.of(asked), asked.new_zeros(len(scores))
    surely[asked] = above = reaching(scores, thresholds.high)
    open_rows = (reaching(scores, thresholds.low) > above).nonzero()[:, 0]
    scores, thresholds = scores.index_select(0, open_rows), thresholds.of(open_rows)
    row, column = ((scores >= thresholds.low[:, None]) & (scores < thresholds.high[:, None])).nonzero(as_tuple=True)
    return surely, (asked[open_rows[row]], column)


def refine(pairs: tuple[Tensor, Tensor], thresholds: Thresholds, queries: Tensor, candidates: Tensor) -> Tensor:
    """How many of the undecided pairs reach the threshold of their query in float64, (queries,) int64."""
    reached = pair_scores(queries, candidates, pairs) >= thresholds.exact[pairs[0]]
    return torch.bincount(pairs[0][reached], minlength=len(queries))


def count_exactly(tile: Tile, text_thresholds: Thresholds, image_thresholds: Thresholds) -> tuple[Tensor, Tensor]:
    """How many negatives of a tile reach the threshold of each text (texts,) and image (images,), in float64."""
    scores = tile.scores(torch.float64)
    return reaching(scores, text_thresholds.exact), reaching(scores.T, image_thresholds.exact)


def count_filtered(tile: Tile, text_thresholds: Thresholds, image_thresholds: Thresholds) -> tuple[Tensor, Tensor]:
    """The same counts, with float64 only for what float32 leaves undecided."""
    scores = tile.scores(torch.float32)
    for_texts, near_texts = decide(scores, text_thresholds)
    for_images, near_images = decide(scores.T, image_thresholds)
    if len(near_texts[0]) + len(near_images[0]) > UNDECIDED_SHARE * scores.numel():
        return count_exactly(tile, text_thresholds, image_thresholds)
    for_texts += refine(near_texts, text_thresholds, tile.texts, tile.images)
    for_images += refine(near_images, image_thresholds, tile.images, tile.texts)
    return for_texts, for_images


def all_thresholds(images: Tensor, texts: Tensor, owner: Tensor) -> tuple[Thresholds, Thresholds, bool]:
    """Thresholds of all texts and all images, and whether the float32 bound holds for embeddings of this length."""
    image_norms = finite_norms("image_embeds", images)
    text_norms = finite_norms("text_embeds", texts)
    longest_image, longest_text = image_norms.max(), text_norms.max()
    tolerance = TIE_TOLERANCE * longest_image * longest_text

    positive = pair_scores(texts, images, (torch.arange(len(texts), device=owner.device), owner))
    best = torch.full_like(image_norms, -torch.inf).scatter_reduce(0, owner, positive, "amax")
    best[best.isinf()] = torch.inf  # out of reach: an image without text asks nothing
    text_thresholds = make_thresholds(positive, text_norms, longest_image, images.shape[1], tolerance)
    image_thresholds = make_thresholds(best, image_norms, longest_text, images.shape[1], tolerance)

    smallest, largest = FLOAT32_NORMS
    return text_thresholds, image_thresholds, all(smallest < norm < largest for norm in (longest_image, longest_text))


@contextmanager
def true_float32() -> Iterator[None]:
    """Switches off autocast and oneDNN, which may compute float32 products in bfloat16."""
    before = torch.backends.mkldnn.set_flags(False)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.backends.mkldnn.set_flags(*before)


def retrieval_ranks(
    image_embeds: Array,
    text_embeds: Array,
    text_to_image: Array,
    chunk_size: int = 2000,
    *,
    distractors: bool = False,
    share: tuple[int, int] = (0, 1),
) -> tuple[Tensor, Tensor]:
    """For every query the number of negatives that score at least as high as its best positive.

    Args:
        image_embeds: (images, dim); text_embeds: (texts, dim); of any precision, in memory or memory-mapped.
        text_to_image: (texts,) the row of `image_embeds` that each text describes.
        chunk_size: texts and images compared at once. Beyond the inputs, memory is a few numbers for each row and a
            few matrices of `chunk_size` by `chunk_size` or `dim`; the result does not depend on it. (Powers of two are
            no good choice: the columns of such a tile compete for the same lines of the cache.)
        distractors: allow images without text, which are candidates of the texts, but no queries.
        share: (i, n) counts the negatives in the i-th of n shares of all pairs, i from 0; the ranks are the sum
            over the n shares, and `distributed_ranks` takes it over processes.

    Returns:
        Image-to-text ranks (images that have a text,) and text-to-image ranks (texts,), int64, counted from 0.
    """
    if not 0 <= share[0] < share[1]:
        raise ValueError(f"share must be (i, n) with i from 0 to n - 1, got {share}")
    images = as_matrix("image_embeds", image_embeds)
    texts = as_matrix("text_embeds", text_embeds).to(images.device)
    owner = as_tensor(text_to_image).to(images.device, torch.int64)
    check_correspondence(images, texts, owner, distractors)
    text_thresholds, image_thresholds, bounded = all_thresholds(images, texts, owner)
    # The bound needs true float32 products, which on other devices are for the user to configure (TF32).
    count = count_filtered if bounded and images.device.type == "cpu" else count_exactly
    image_ranks, text_ranks = owner.new_zeros(len(images)), owner.new_zeros(len(texts))
    with true_float32():
        for rows, columns, tile in islice(tiles(texts, images, owner, chunk_size), share[0], None, share[1]):
            for_texts, for_images = count(tile, text_thresholds.of(rows), image_thresholds.of(columns))
            text_ranks[rows] += for_texts
            image_ranks[columns] += for_images
    described = image_thresholds.exact.isfinite()
    return image_ranks[described].cpu(), text_ranks.cpu()


def distributed_ranks(
    image_embeds: Array, text_embeds: Array, text_to_image: Array, chunk_size: int = 2000, *, distractors: bool = False
) -> tuple[Tensor, Tensor]:
    """`retrieval_ranks`, shared by all processes.

    Args: see `retrieval_ranks`. Every process has to call this, with the same embeddings, and gets all ranks.
    """
    state = PartialState()
    share = (state.process_index, state.num_processes)
    ranks = retrieval_ranks(image_embeds, text_embeds, text_to_image, chunk_size, distractors=distractors, share=share)
    if state.num_processes == 1:
        return ranks
    image_ranks, text_ranks = (reduce(counted.to(state.device), "sum").cpu() for counted in ranks)
    return image_ranks, text_ranks
