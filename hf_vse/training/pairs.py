"""The pairs that a trainer reads, of a split in memory or of a stream."""

import logging
from collections.abc import Callable
from itertools import islice

from datasets import Dataset, IterableDataset
from torch import Tensor

from hf_vse.data.decoding import BrokenImageError
from hf_vse.data.long_captions import Pieces, report_long_captions
from hf_vse.data.pairs import PairDataset
from hf_vse.data.ready_columns import iter_captions
from hf_vse.data.streams import StreamedPairs
from hf_vse.model.processing_vse import VSEProcessor
from hf_vse.training.arguments import VSETrainingArguments
from hf_vse.training.foils import with_foil_column

logger = logging.getLogger(__name__)


def pairs_of(
    train: Dataset | IterableDataset, processor: VSEProcessor | None, args: VSETrainingArguments
) -> PairDataset | StreamedPairs:
    """The pairs of a split; captions that are longer than the text tower reads are read in pieces."""
    pieces_of = None if processor is None else Pieces(processor)
    train = with_foil_column(train, args)
    if isinstance(train, IterableDataset):
        if pieces_of is not None:
            logger.info("of captions longer than %d tokens, sentences are drawn in turn", pieces_of.most)
        return StreamedPairs(train, args.seed, pieces_of=pieces_of, captions_per_image=args.captions_per_image)
    pieces = {} if pieces_of is None else pieces_of.of_split(train)
    if pieces_of is not None and pieces:
        counts = [(sum(caption in pieces for caption in of_image), len(of_image)) for of_image in iter_captions(train)]
        report_long_captions(*map(sum, zip(*counts, strict=True)), pieces_of.most)
    return PairDataset(train, pieces)


def first_batch(pairs: PairDataset | StreamedPairs, collate: Callable[[list], dict[str, Tensor]]) -> dict[str, Tensor]:
    """A few pairs from the beginning, where there are images that can be read."""
    rows = iter(pairs if isinstance(pairs, StreamedPairs) else map(pairs.first_of, range(len(pairs.captions))))
    while few := list(islice(rows, 8)):
        try:
            return collate([item | item.pop("texts", [{}])[0] for item in few])  # of a stream with several captions
        except BrokenImageError:
            continue
    raise BrokenImageError("none of the training images can be read; see the warnings above")
