"""Captions that are, word for word, captions of other images too, and recalls that count them as right.

The field's R@K knows one image as right for a caption, even where others bear the same words: on sets of short or
generated captions most errors are of this kind, and no model can avoid them. Beside the usual numbers these are the
ones of the same rankings in which a sentence counts for every image it is a caption of: an image finds one of its own
captions, a caption finds one of the images that have it. Sentences are equal if they are so apart from case and
white space.

Only queries for which this makes a difference are ranked anew, tile by tile: memory does not grow with the number of
equal captions, of which there may be as many as there are pairs. A tie counts against the query, as everywhere.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_vse.data.schema import same_words
from hf_vse.evaluation.metrics import DIRECTIONS, RECALL_LEVELS, chance_of_hit, summarize_ranks
from hf_vse.evaluation.ranks import TIE_TOLERANCE, Array, as_matrix, as_tensor, finite_norms, reaching

TILE = 1000


class Wording:
    """Which texts are equal, and which images have an equal text.

    Args:
        captions: the texts; text_to_image: (texts,) the row of the image of each; images: how many there are.
    """

    def __init__(self, captions: Sequence[str], text_to_image: Array, images: int):
        numbers: dict[str, int] = {}
        found = [numbers.setdefault(same_words(each), len(numbers)) for each in captions]
        self.images, self.sentences = images, len(numbers)
        self.sentence = torch.tensor(found, dtype=torch.int64)  # (texts,)
        pairs = torch.stack([self.sentence, as_tensor(text_to_image).long().cpu()], dim=1).unique(dim=0)
        self.pair_sentence, self.pair_image = pairs.T.contiguous()  # each sentence of each image once
        self.images_of = torch.bincount(self.pair_sentence, minlength=self.sentences)  # (sentences,)
        self.texts_of = torch.bincount(self.sentence, minlength=self.sentences)
        self.shared_text = self.images_of[self.sentence] > 1  # (texts,) whether it is a caption of other images too
        self.shared_image = torch.zeros(images, dtype=torch.bool)  # (images,) whether it has such a caption
        self.shared_image[self.pair_image[self.images_of[self.pair_sentence] > 1]] = True

    def right(self, images: Tensor, texts: Tensor) -> Tensor:
        """(images, texts) booleans: which of these texts are, word for word, captions of which of these images."""
        distinct, column_of = self.sentence[texts].unique(return_inverse=True)
        row = torch.full((self.images,), -1).index_put_((images,), torch.arange(len(images)))[self.pair_image]
        column = torch.full((self.sentences,), -1).index_put_((distinct,), torch.arange(len(distinct)))
        column = column[self.pair_sentence]
        there = (row >= 0) & (column >= 0)
        table = torch.zeros((len(images), len(distinct)), dtype=torch.bool)
        table[row[there], column[there]] = True
        return table.index_select(1, column_of)

    def counts(self) -> dict[str, int]:
        """How many captions are captions of other images too, of how many images, and how many sentences they are."""
        return {
            "captions": int(self.shared_text.sum()),
            "images": int(self.shared_image.sum()),
            "sentences": int((self.images_of > 1).sum()),
        }

    def chance(self) -> dict[str, float]:
        """What guessing scores in percent where equal captions count."""
        texts = self.texts_of[self.pair_sentence]
        right_texts = torch.zeros(self.images, dtype=torch.int64).index_add_(0, self.pair_image, texts)
        right_images = self.images_of[self.sentence]
        found = hits_by_chance(right_texts, len(self.sentence)), hits_by_chance(right_images, self.images)
        return {f"{way}_r{level}": each[level] for way, each in zip(DIRECTIONS, found, strict=True) for level in each}


def hits_by_chance(right: Tensor, candidates: int) -> dict[int, float]:
    """For each K the chance in percent that K random candidates hold one of the `right (queries,)` positives."""
    queries = Counter(right.tolist())
    return {
        level: 100 * sum(count * chance_of_hit(own, candidates, level) for own, count in queries.items()) / len(right)
        for level in RECALL_LEVELS
    }


def ranks_among_wrong(
    queries: Tensor, candidates: Tensor, right: Callable[[slice, slice], Tensor], tolerance: Tensor
) -> Tensor:
    """How many negatives score at least as high as the best positive, (queries,) int64, in float64.

    Args:
        right: says of some queries and some candidates which belong together, (queries, candidates) booleans.
    """
    ranks = torch.zeros(len(queries), dtype=torch.int64)

    def tiles(rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
        for left in range(0, len(candidates), TILE):
            columns = slice(left, min(left + TILE, len(candidates)))
            yield queries[rows].double() @ candidates[columns].double().T, right(rows, columns)

    for top in range(0, len(queries), TILE):
        rows = slice(top, min(top + TILE, len(queries)))
        best = torch.full((rows.stop - rows.start,), -torch.inf, dtype=torch.float64)
        for scores, mine in tiles(rows):
            best = torch.maximum(best, scores.masked_fill_(~mine, -torch.inf).amax(dim=1))
        for scores, mine in tiles(rows):
            ranks[rows] += reaching(scores.masked_fill_(mine, -torch.inf), best - tolerance)
    return ranks


def equal_caption_ranks(
    image_embeds: Array, text_embeds: Array, wording: Wording, ranks: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """`retrieval_ranks` where a sentence counts for every image that it is a caption of.

    Args:
        image_embeds: (images, dim); text_embeds: (texts, dim).
        ranks: of `retrieval_ranks` for them: (images,) and (texts,).
    """
    images, texts = (as_matrix(*each).cpu() for each in (("image_embeds", image_embeds), ("text_embeds", text_embeds)))
    longest = finite_norms("image_embeds", images).max() * finite_norms("text_embeds", texts).max()
    tolerance = TIE_TOLERANCE * longest
    image_ranks, text_ranks = (each.clone() for each in ranks)
    every_image, every_text = torch.arange(len(images)), torch.arange(len(texts))
    asking, asked = wording.shared_image.nonzero()[:, 0], wording.shared_text.nonzero()[:, 0]
    image_ranks[asking] = ranks_among_wrong(
        images[asking], texts, lambda rows, columns: wording.right(asking[rows], every_text[columns]), tolerance
    )
    text_ranks[asked] = ranks_among_wrong(
        texts[asked], images, lambda rows, columns: wording.right(every_image[columns], asked[rows]).T, tolerance
    )
    return image_ranks, text_ranks


def equal_caption_record(
    image_embeds: Array,
    text_embeds: Array,
    text_to_image: Array,
    captions: Sequence[str],
    ranks: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """The entries of a record on equal captions.

    Args: see `retrieval_metrics`; `captions (texts,)`; `ranks` of `retrieval_ranks`.

    Returns:
        `equal_captions`, how many `captions` are captions of other images too, of how many `images`, and how many
        `sentences` these are. Where there are any, `metrics_equal_captions`, named like those of `retrieval_metrics`,
        and `chance_equal_captions`.
    """
    wording = Wording(captions, text_to_image, len(as_matrix("image_embeds", image_embeds)))
    counts = wording.counts()
    if not counts["captions"]:
        return {"equal_captions": counts}
    metrics = summarize_ranks(*equal_caption_ranks(image_embeds, text_embeds, wording, ranks))
    return {
        "equal_captions": counts,
        "metrics_equal_captions": metrics,
        "chance_equal_captions": wording.chance(),
    }
