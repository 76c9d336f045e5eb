"""Sentences of captions that are longer than a text tower reads are drawn in training, and none of them is lost."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import List, Value

from hf_vse.data import long_captions
from hf_vse.data.collator import VSECollator
from hf_vse.data.long_captions import Pieces, clauses_of, drawn_piece, sentences_of
from hf_vse.data.pairs import Pair, PairDataset
from hf_vse.data.schema import text_id
from hf_vse.data.streams import StreamedPairs
from hf_vse.data.tokenization import train_word_tokenizer
from hf_vse.model.losses_vse import contrastive_loss
from hf_vse.model.processing_vse import VSEProcessor
from tests.conftest import make_feature_pairs

SENTENCES = (
    ["A dog runs. ", "It is brown! ", "Is it fast?"],
    ["A pan of approx. two litres, i.e. a big one. ", "Made by J. Smith for the U.S. Navy."],
    ["Mr. Green and Dr. Li (vs. Prof. Ödön), e.g. No. 5, approx. 3 cm, see Fig. 2. ", "St. Mary's has J. R. Smith."],
    [
        "No. ",
        "I said no. ",
        "It is 3 cm. ",
        "5 dogs run in max. ",
        "Amr. ",
        "El Sr. García corre. ",
        "It has pp. 3 to 5.",
    ],
    ["What?! ", "It runs... ", "It jumps?? ", "No!... ", "A pause... then more."],
    ["这是No. 5。", "什么？！", "他跑……快！", "J. Smith来了。"],
    [
        "Hr. Müller rennt. ",
        "Это кот. ",
        "Он спит. ",
        "C’est Mme. Rousseau. ",
        "¿Qué? ",
        "¡Sí! ",
        "犬が走る。",
        "速い。",
    ],
    ["It says “Stop.” ", "(Nobody stops.) ", "Then…  ", "Nothing."],
    ["Three lines", "\nwithout a full stop\n", "here"],
    ["一只狗在跑。", "它是棕色的！", "快吗？", "「是。」", "好"],
    ["एक कुत्ता दौड़ रहा है। ", "वह भूरा है।"],
    ["كلب يجري؟ ", "إنه بني. ", "نعم"],
    ["Ein Hund rennt. ", "Über ihm fliegt ein Vogel. ", "Ça va?"],
    ["no end at all, v1.5 of a.b.c"],
    ["..."],
)


@pytest.mark.parametrize("sentences", SENTENCES, ids=lambda sentences: sentences[0][:12])
def test_texts_are_divided_after_their_sentences(sentences):
    text = "".join(sentences)
    assert [each.strip() for each in sentences_of(text)] == [each.strip() for each in sentences]
    assert "".join(sentences_of(text)) == text and "".join(clauses_of(text)) == text


def processor(most: int) -> VSEProcessor:
    words = [" ".join(f"w{n}" for n in range(300)), "Red . , ;", "a b c d e f g h i j k 。 ， 狗"]
    return VSEProcessor(tokenizer=train_word_tokenizer(words, min_count=1, max_length=most))


def tokens(text: str, most: int) -> int:
    return len(processor(most).tokenizer(text)["input_ids"])


def sentence(length: int, rng: np.random.Generator) -> str:
    return "Red " + " ".join(f"w{n}" for n in rng.integers(0, 300, length)) + "."


@pytest.mark.parametrize("seed", range(5))
def test_pieces_fit_lose_nothing_and_hold_as_many_sentences_as_fit(seed):
    rng, most = np.random.default_rng(seed), 16
    sentences = [sentence(length, rng) for length in rng.integers(1, 12, size=9)]  # 5 to 15 tokens
    pieces = Pieces(processor(most))(" ".join(sentences))
    assert " ".join(pieces) == " ".join(sentences) and len(pieces) > 1
    left = list(sentences)
    for place, piece in enumerate(pieces):
        assert tokens(piece, most) <= most
        count = next(n for n in range(1, 10) if " ".join(left[:n]) == piece)
        del left[:count]
        assert not left or tokens(f"{piece} {left[0]}", most) > most, place
    assert not left


def test_a_sentence_that_is_too_long_is_divided_after_its_clauses_and_a_clause_stays_whole():
    pieces = Pieces(processor(8))
    assert pieces("Red a b. Red a b c d, e f g h i j k a b c; d e") == [
        "Red a b.", "Red a b c d,", "e f g h i j k a b c;", "d e"
    ]  # fmt: skip
    assert pieces("a b c d e f g h i j k") == ["a b c d e f g h i j k"]
    assert pieces("a b c") == ["a b c"] and pieces("狗，" * 9) == ["狗，" * 3] * 3


def test_captions_that_fit_are_left_alone():
    captions = [["a b c", "Red w1 w2. Red w3."], ["Red w1 w2 w3. Red w4 w5. Red w6", "a b c"]]
    assert list(Pieces(processor(10)).of_long(captions)) == [captions[1][0]]
    assert Pieces(processor(64)).of_long(captions) == {}
    assert Pieces(processor(int(1e30))).of_long(captions) == {}


WHOLE = "Red w1 w2 w3. Red w4 w5 w6. Red w7 w8 w9."
PARTS = ["Red w1 w2 w3.", "Red w4 w5 w6.", "Red w7 w8 w9."]


def long_pairs(features: bool = False):
    """Two images; the first has a short caption and one of three pieces."""
    pairs = make_feature_pairs(2, captions=2).remove_columns("captions")
    pairs = pairs.add_column("captions", [["a b", WHOLE], ["c d", "e f"]])
    if features:  # of the pieces
        numbers = [[[0.0], [1.0], [2.0], [3.0]], [[4.0], [5.0]]]
        pairs = pairs.add_column("caption_features", numbers, feature=List(List(Value("float32"), length=1)))
    return pairs


def test_one_piece_is_drawn_at_a_time_and_all_are_in_turn():
    pieces = Pieces(processor(8)).of_long(long_pairs()["captions"][:])
    assert pieces == {WHOLE: PARTS}
    pairs = PairDataset(long_pairs(features=True), pieces)
    assert len(pairs) == 4, "a long caption is one pair of an epoch, as any other"
    drawn = [pairs[Pair(0, 1, draw)] for draw in range(600)]
    for item in drawn:
        assert item["caption_features"] == 1 + PARTS.index(item["caption"]) and item["whole_caption"] == WHOLE
    counts = Counter(item["caption"] for item in drawn)
    assert set(counts) == set(PARTS) and min(counts.values()) > 150
    assert [item["caption"] for item in drawn[:50]] == [pairs[Pair(0, 1, draw)]["caption"] for draw in range(50)]
    views = Counter((draw % 3, drawn_piece(PARTS, draw)) for draw in range(900))  # a crop is chosen by draw % crops
    assert len(views) == 9 and min(views.values()) > 60
    for row, caption, text, feature in ((0, 0, "a b", 0), (1, 0, "c d", 4), (1, 1, "e f", 5)):
        item = pairs[Pair(row, caption, 5)]
        assert (item["caption"], item["caption_features"]) == (text, feature)
    with pytest.raises(ValueError, match="caption_features of row 0 are not those of its captions"):
        PairDataset(long_pairs(features=True))


def test_streams_draw_pieces_too():
    pairs = StreamedPairs(long_pairs().to_iterable_dataset(), pieces_of=Pieces(processor(8)))
    found = Counter()
    for epoch in range(60):
        pairs.set_epoch(epoch)
        found.update((item["caption"], item["whole_caption"]) for item in pairs)
    assert set(found) == {("a b", "a b"), ("c d", "c d"), ("e f", "e f"), *((part, WHOLE) for part in PARTS)}


def test_pieces_of_equal_captions_and_equal_pieces_are_no_negatives():
    """Of one caption two pieces, of two captions one piece, and a third pair."""
    other = f"{PARTS[0]} Red w10. Red w11 w12 w13 w14."
    given = [(PARTS[0], WHOLE), (PARTS[1], WHOLE.upper()), (PARTS[0], other), ("a b", "a b")]
    items = [{"image_features": [0.5], "caption": each, "whole_caption": whole} for each, whole in given]
    ids = VSECollator(processor(8))(items)["text_ids"]
    assert ids.tolist() == [[text_id(each), text_id(whole)] for each, whole in given]
    images, texts = torch.randn(4, 4, requires_grad=True), torch.eye(4)
    contrastive_loss(images, texts, text_ids=ids).backward()
    compared = images.grad != 0
    expected = torch.ones(4, 4, dtype=torch.bool)
    for one, two in ((0, 1), (0, 2)):
        expected[one, two] = expected[two, one] = False
    assert torch.equal(compared, expected)


def test_it_is_said_once(caplog):
    long_captions.report_long_captions.cache_clear()
    with caplog.at_level(logging.INFO, logger="hf_vse"):
        for _ in range(2):
            long_captions.report_long_captions(412, 9000, 77)
    [record] = caplog.records
    assert record.getMessage() == (
        "412 of 9,000 captions are longer than 77 tokens; their sentences are drawn in turn, and evaluation reads the "
        "first 77 tokens"
    )
