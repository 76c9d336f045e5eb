import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from hf_vse.data.tokenization import train_word_tokenizer

CAPTIONS = ["A dog runs, fast.", "a DOG sleeps"] * 4 + ["one rare word"]


def test_words_below_the_threshold_are_unknown():
    tokenizer = train_word_tokenizer(CAPTIONS, min_count=4)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("The Dog runs, RARE")["input_ids"])
    assert tokens == ["<start>", "<unk>", "dog", "runs", ",", "<unk>", "<end>"]


def test_padding_is_zero_on_the_right_and_masked():
    tokenizer = train_word_tokenizer(CAPTIONS, min_count=1)
    batch = tokenizer(["dog", "a dog runs"], padding=True)
    assert batch["input_ids"][0][-2:] == [0, 0] and batch["attention_mask"][0] == [1, 1, 1, 0, 0]


def test_vocabulary_survives_saving_as_json(tmp_path):
    tokenizer = train_word_tokenizer(CAPTIONS, min_count=1)
    tokenizer.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_most_frequent_words_are_kept():
    tokenizer = train_word_tokenizer(CAPTIONS, min_count=1, max_words=2)
    assert len(tokenizer) == 6 and {"a", "dog"} < set(tokenizer.get_vocab())


def test_no_word_often_enough_is_an_error():
    with pytest.raises(ValueError, match="no word of the captions occurs 9 times; lower min_count"):
        train_word_tokenizer(CAPTIONS, min_count=9)


def trained(captions: list[str], min_count: int, max_words: int | None) -> Tokenizer:
    """The vocabulary by the trainer of tokenizers, which reads every caption."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = ["<pad>", "<unk>", "<start>", "<end>"]
    size = 10_000_000 if max_words is None else max_words + 4
    options = {"min_frequency": min_count, "vocab_size": size, "special_tokens": specials, "show_progress": False}
    tokenizer.train_from_iterator(captions, trainers.WordLevelTrainer(**options))
    return tokenizer


@pytest.mark.parametrize(("min_count", "max_words"), [(1, None), (3, None), (1, 40)])
def test_words_are_counted_as_the_trainer_of_tokenizers_counts_them(min_count, max_words, monkeypatch):
    monkeypatch.setattr("hf_vse.data.tokenization.AT_ONCE", 7)
    rng = np.random.default_rng(0)
    letters = [*"aAbB ZΣσςÉ  \t\n\x1c\u2003\u00a0.,'-!?<>_1２ßﬁ漢字", "e\u0301", " \u0301", "\U0001f600", "İ"]
    captions = ["".join(rng.choice(letters, size=rng.integers(0, 12))) for _ in range(600)]
    mine = train_word_tokenizer(captions, min_count, max_words, max_length=20).backend_tokenizer
    other = trained(captions, min_count, max_words)
    own, expected = json.loads(mine.to_str()), json.loads(other.to_str())
    assert own["model"] == expected["model"] and own["normalizer"] == expected["normalizer"]
    assert own["added_tokens"] == expected["added_tokens"] and own["pre_tokenizer"] == expected["pre_tokenizer"]
    for caption in captions:
        assert mine.encode(caption, add_special_tokens=False).ids == other.encode(caption).ids
