"""Captions that are longer than a text tower reads: in training, a piece of some sentences is drawn in every step.

A caption is divided after its sentences, and a sentence that is too long alone after its clauses. As many of them as
fit make a piece. So all of a description is learned from, and not its beginning alone; only a clause that is too long
alone is cut. Evaluation reads captions as they are, cut.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from hf_vse.data.ready_columns import caption_blocks
from hf_vse.model.processing_vse import VSEProcessor

logger = logging.getLogger(__name__)

AT_ONCE = 1000
SENTENCE_END = re.compile(
    r"""[.!?…\u061f\u06d4\u0964\u0965\u1362]['"’”»)\]]*\s+  # Latin, Greek, Arabic, Urdu, Hindi, Amharic, ...
    | [\u3002\uff01\uff1f\uff61]+['"’”\u300d\u300f\uff09]*\s*  # Chinese, Japanese: no space follows
    | \s*\n\s*""",
    flags=re.VERBOSE,
)
AS_FAR_BACK = 40  # characters that tell whether a full stop ends a sentence
CLAUSE_END = re.compile(r"[,;:\u060c\u061b]\s+|[\uff0c\u3001\uff1b\uff1a]\s*")
# Before a name, and before a number. A wrong one costs little: two sentences stay together.
SHORTENED = re.compile(r"(?<![a-zA-Z\u00c0-\u024f])(?:Mrs?|Ms|Mme|Dr|Drs|Prof|St|Sra?|Hr|Fr|vs|cf)\.\s*$")
SHORTENED_BEFORE_NUMBER = re.compile(
    r"(?<![a-zA-Z\u00c0-\u024f])(?:nos?|nr|núm|approx|ca|fig|abb|vol|pp|max|min)\.\s*$", re.IGNORECASE
)
INITIAL = re.compile(r"(?:^|[\s(\u3000-\u303f\uff01-\uff1f])[^\W\d_a-z]\.\s*$|\.[^\W\d_]\.\s*$")  # J. Smith, U.S. Navy


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, which together are the text.

    A full stop before a small letter, after an initial or after a common abbreviation ends none: `approx. three`,
    `J. Smith`, `Mr. Smith`, `No. 5`.
    """

    def ends(match: re.Match) -> bool:
        before, following = text[max(0, match.end() - AS_FAR_BACK) : match.end()], text[match.end() : match.end() + 1]
        patterns = [INITIAL, SHORTENED, *([SHORTENED_BEFORE_NUMBER] if following.isdigit() else [])]
        shortened = any(pattern.search(before) for pattern in patterns)
        return "\n" in match[0] or not (following.islower() or shortened)

    return divided(text, [match.end() for match in SENTENCE_END.finditer(text) if ends(match)])


def clauses_of(text: str) -> list[str]:
    """The clauses of a sentence, which together are the sentence."""
    return divided(text, [match.end() for match in CLAUSE_END.finditer(text)])


def divided(text: str, places: Sequence[int]) -> list[str]:
    bounds = [0, *places, len(text)]
    return [text[start:end] for start, end in zip(bounds, bounds[1:], strict=False) if text[start:end].strip()]


class Pieces:
    """The pieces of a caption for a text tower; a caption that fits is its only piece.

    Args:
        processor: its tokenizer knows how many tokens the tower reads.
    """

    def __init__(self, processor: VSEProcessor):
        self.processor = processor
        self.most = processor.tokenizer.model_max_length

    def __call__(self, caption: str) -> list[str]:
        if not self.too_long([caption]):
            return [caption]
        parts: list[str] = []
        for sentence in sentences_of(caption):
            parts += clauses_of(sentence) if self.too_long([sentence.strip()]) else [sentence]
        pieces = parts[:1]
        for part in parts[1:]:
            if self.too_long([(pieces[-1] + part).strip()]):
                pieces.append(part)
            else:
                pieces[-1] += part
        return [piece.strip() for piece in pieces]

    def too_long(self, texts: Iterable[str]) -> list[str]:
        """Those that have more tokens than the tower reads. A token stands for a byte at least."""
        some = list(self.perhaps_long(texts))
        found = []
        for start in range(0, len(some), AT_ONCE):
            part = some[start : start + AT_ONCE]
            ids = self.processor.tokenizer(self.processor.as_trained(part), truncation=False, verbose=False)[
                "input_ids"
            ]
            found += [text for text, of_text in zip(part, ids, strict=True) if len(of_text) > self.most]
        return found

    def of_long(self, captions: Iterable[Sequence[str]]) -> dict[str, list[str]]:
        """Caption -> pieces, of the captions of images that are too long."""
        return self.of_each(caption for of_image in captions for caption in of_image)

    def of_split(self, split: Dataset) -> dict[str, list[str]]:
        """The same of all captions of a split."""
        blocks = (block.filter(pc.greater(pc.binary_length(block), self.least)) for block in caption_blocks(split))
        return self.of_each(caption for block in blocks for caption in block.to_pylist())

    def of_each(self, captions: Iterable[str]) -> dict[str, list[str]]:
        some = dict.fromkeys(self.perhaps_long(captions))
        return {caption: self(caption) for caption in self.too_long(some)}

    @property
    def least(self) -> int:
        """Bytes that never have more tokens than the tower reads."""
        return self.most - self.processor.tokenizer.num_special_tokens_to_add()

    def perhaps_long(self, texts: Iterable[str]) -> Iterator[str]:
        """Those that have more bytes than the tower reads tokens."""
        least = self.least
        return (text for text in texts if len(text.encode("utf-8", "surrogatepass")) > least)


def in_pieces(captions: Sequence[str], pieces: Mapping[str, list[str]]) -> list[str]:
    """The pieces of the captions of an image, one after the other."""
    return [piece for caption in captions for piece in pieces.get(caption, [caption])]


def drawn_piece(pieces: Sequence[str], draw: int) -> int:
    """The place of the piece that the seed of a pair chooses, whatever else is drawn by it."""
    return int(np.random.default_rng((draw, 1)).integers(len(pieces))) if len(pieces) > 1 else 0


@cache
def report_long_captions(long: int, captions: int, most: int) -> None:
    """Says once how many captions are longer than a text tower reads, and what becomes of them."""
    logger.info(
        "%s of %s captions are longer than %d tokens; their sentences are drawn in turn, and evaluation reads the "
        "first %d tokens", f"{long:,}", f"{captions:,}", most, most,
    )  # fmt: skip


@cache
def report_cut(most: int) -> None:
    """Says once that sentences are cut where they are not learned from."""
    logger.warning("the text tower reads %d tokens of a sentence; longer ones are cut", most)
