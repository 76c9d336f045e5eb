"""Sentences as a text tower was trained to read them: how long, how padded, in which case.

Mistakes here raise no error but cost accuracy. A tower that was trained on sentences padded to their
full length, without a mask, gives worse vectors for sentences padded to the longest of a batch: SigLIP
(arXiv 2303.15343) takes the state of the last position, which is padding.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# If neither the tokenizer nor the tower has a limit.
LONGEST = 512
# Text towers that count the positions of words from the padding token on, as RoBERTa does.
POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "altclip_text_model"}


class Reading(NamedTuple):
    """How the sentences of a family of models were prepared in training.

    Attributes:
        max_length: tokens of a sentence at most; None: as many as the tokenizer and the positions allow.
        to_full_length: pad on the right to the full length, whatever the batch.
        mask: give the tower the attention mask.
        lower: lower-case the sentences, which not every published tokenizer of the family does.
    """

    max_length: int | None = None
    to_full_length: bool = False
    mask: bool = True
    lower: bool = False


def positions_of(text_config: PreTrainedConfig) -> int | None:
    """The number of tokens that a text tower has positions for; None if its configuration does not say."""
    config = text_config.to_dict()
    positions = config.get("max_position_embeddings")
    if positions is not None and config["model_type"] in POSITIONS_AFTER_PADDING:
        return positions - config["pad_token_id"] - 1
    return positions


class SentenceReader:
    """From sentences to the inputs of a text tower; counts those that are cut, and says so once.

    Args:
        positions: how many tokens the tower has positions for, if that is known.
        name: of the model, for the line in the log.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reading: Reading, positions: int | None, name: str):
        self.tokenizer = tokenizer
        self.reading = reading
        self.name = name
        limits = (reading.max_length, positions, tokenizer.model_max_length, LONGEST)
        self.max_length = int(min(limit for limit in limits if limit is not None))
        self.cut: set[str] = set()

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` (texts, tokens) and, where the tower knows it, `attention_mask`."""
        texts = [text.lower() for text in texts] if self.reading.lower else list(texts)
        self.count_cut(texts)
        full = {"padding": "max_length", "padding_side": "right"} if self.reading.to_full_length else {"padding": True}
        inputs = self.tokenizer(texts, return_tensors="pt", truncation=True, max_length=self.max_length, **full)
        names = ("input_ids", "attention_mask") if self.reading.mask else ("input_ids",)
        return {name: inputs[name] for name in names}

    def count_cut(self, texts: list[str]) -> None:
        whole = self.tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
        cut = {text for text, ids in zip(texts, whole, strict=True) if len(ids) > self.max_length}
        if cut and not self.cut:
            logger.warning("%s reads %d tokens of a sentence; longer ones are cut", self.name, self.max_length)
        self.cut |= cut

    def facts(self) -> dict[str, int]:
        """Maximum length, and how many different sentences were cut so far."""
        return {"max_text_length": self.max_length, "texts_cut": len(self.cut)}
