"""A word-level tokenizer for the recurrent text tower, trained only on the training captions.

Captions are lower-cased and split into words and punctuation. A word needs at least `min_count` occurrences (VSE++
uses four). A sentence becomes `<start> ... <end>`. The vocabulary is stored as `tokenizers` JSON, never as a pickle.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

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
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = [PAD, UNKNOWN, START, END]
    vocab_size = 10_000_000 if max_words is None else max_words + len(specials)
    trainer = trainers.WordLevelTrainer(
        min_frequency=min_count, vocab_size=vocab_size, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    if tokenizer.get_vocab_size() == len(specials):
        raise ValueError(f"no word of the captions occurs {min_count} times; lower min_count or check the captions")
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
