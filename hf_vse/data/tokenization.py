"""A word-level tokenizer for the recurrent text tower, trained only on the training captions.

Captions are lower-cased and split into words and punctuation. A word needs at least `min_count` occurrences (VSE++
uses four). A sentence becomes `<start> ... <end>`. The vocabulary is stored as `tokenizers` JSON, never as a pickle.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

AT_ONCE = 10_000  # captions
PAD, UNKNOWN, START, END = "<pad>", "<unk>", "<start>", "<end>"


def train_word_tokenizer(
    captions: Iterable[str], min_count: int = 4, max_words: int | None = None, max_length: int = 64
) -> PreTrainedTokenizerFast:
    """Builds the vocabulary.

    Args:
        captions: the training captions.
        min_count: words that occur less often become `<unk>`.
        max_words: keep only this many of the most frequent words.
        max_length: maximum sentence length in tokens, including start and end.

    Raises:
        ValueError: no word occurs `min_count` times.
    """
    return word_tokenizer(arrow_blocks(captions), min_count, max_words, max_length)


def word_tokenizer(
    blocks: Iterable[pa.Array], min_count: int = 4, max_words: int | None = None, max_length: int = 64
) -> PreTrainedTokenizerFast:
    """As `train_word_tokenizer`, of Arrow arrays of captions."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    counts = count_words(blocks, tokenizer)
    kept = sorted(
        (word for word, times in counts.items() if times >= min_count), key=lambda word: (-counts[word], word)
    )
    if not kept:
        raise ValueError(f"no word of the captions occurs {min_count} times; lower min_count or check the captions")
    words = dict.fromkeys([PAD, UNKNOWN, START, END, *kept[:max_words]])
    tokenizer.model = models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN)
    tokenizer.add_special_tokens([PAD, UNKNOWN, START, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        padding_side="right",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def arrow_blocks(captions: Iterable[str]) -> Iterable[pa.Array]:
    left = iter(captions)
    while block := list(islice(left, AT_ONCE)):
        yield pa.array(block, pa.string())


def count_words(blocks: Iterable[pa.Array], tokenizer: Tokenizer) -> Counter[str]:
    """How often each word occurs. What stands between spaces is split into words once, however often it occurs."""
    between_spaces: Counter[str] = Counter()
    for block in blocks:
        counted = pc.value_counts(pc.split_pattern(block, " ").flatten())
        between_spaces.update(dict(zip(*(part.to_pylist() for part in counted.flatten()), strict=True)))
    words: Counter[str] = Counter()
    for text, times in between_spaces.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            words[word] += times
    return words
