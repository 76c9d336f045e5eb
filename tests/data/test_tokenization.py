import pytest
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
