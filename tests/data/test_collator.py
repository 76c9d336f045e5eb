import copy
import hashlib
import io

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import CLIPImageProcessorPil

from hf_vse.data.collator import VSECollator
from hf_vse.data.images import BrokenImageError
from hf_vse.data.pairs import Pair, PairDataset
from hf_vse.data.schema import text_id
from hf_vse.data.transforms import Augmentation, input_size, random_box
from hf_vse.model.processing_vse import VSEProcessor
from tests.conftest import make_captions, make_feature_pairs, make_pairs


@pytest.fixture
def processor(tokenizer):
    return VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=16), tokenizer)


@pytest.fixture
def items():
    pairs = PairDataset(make_pairs(4))
    return [pairs[Pair(row, 1, 100 + row)] for row in range(4)]


def test_batch_holds_what_the_model_takes(processor, items):
    batch = VSECollator(processor)(items)
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    assert batch["input_ids"].shape == batch["attention_mask"].shape
    assert batch["image_ids"].tolist() == [0, 1, 2, 3]
    words = processor.tokenizer.decode(batch["input_ids"][2], skip_special_tokens=True)
    assert words == items[2]["caption"]


def test_rows_of_load_pairs_are_accepted(processor):
    rows = list(make_pairs(3))
    batch = VSECollator(processor)(rows)
    assert batch["pixel_values"].shape[0] == 3
    assert processor.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == rows[0]["captions"][0]


def test_evaluation_pixels_are_those_of_the_processor(processor, items):
    decoded = [PIL.Image.open(io.BytesIO(item["image"]["bytes"])) for item in items]
    assert torch.equal(VSECollator(processor)(items)["pixel_values"], processor(images=decoded)["pixel_values"])


def test_augmentation_follows_from_the_draw(processor, items):
    collator = VSECollator(processor, Augmentation(0.3, True), word_dropout=0.5)
    first, again = collator(items), collator(items)
    assert all(torch.equal(first[name], again[name]) for name in first)
    alone = collator(items[2:3])
    torch.testing.assert_close(alone["pixel_values"][0], first["pixel_values"][2])
    other = collator([item | {"draw": 7} for item in items])
    assert not torch.equal(other["pixel_values"], first["pixel_values"])


def test_equal_captions_have_one_id_whatever_stands_in_for_them(processor):
    captions = ["A dog.", "a  DOG.", "A dog", "Straße", "STRASSE", "a dog.\n"]
    equal = [
        [one in group and other in group for group in ({0, 1, 5}, {2}, {3, 4})]
        for one in range(6)
        for other in range(6)
    ]
    items = [{"image_features": [0.5], "caption": each, "caption_features": [1.0]} for each in captions]
    ids = VSECollator(processor)(items)["text_ids"]
    assert (ids[:, None] == ids).flatten().tolist() == [any(each) for each in equal] and (ids >= 0).all()
    rows = [{"image_features": [0.5], "captions": ["unlike it", each], "draw": 1} for each in captions]
    assert torch.equal(VSECollator(processor)(rows)["text_ids"], ids)
    assert text_id("A dog.") == int.from_bytes(hashlib.blake2b(b"a dog.", digest_size=8).digest()) // 2
    assert "text_ids" not in VSECollator(processor)([{"image_features": [0.5], "caption_features": [1.0]}])


@pytest.mark.parametrize("side", ["right", "left"])
def test_remembered_tokens_are_those_of_the_tokenizer(processor, items, side):
    processor.tokenizer = copy.deepcopy(processor.tokenizer)
    processor.tokenizer.padding_side = side
    collator = VSECollator(processor)
    expected = processor(text=[item["caption"] for item in items])
    for _ in range(2):
        batch = collator(items)
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_word_dropout_hides_words_and_never_special_tokens(processor, items):
    plain = VSECollator(processor)(items)["input_ids"]
    dropped = VSECollator(processor, word_dropout=1.0)(items)["input_ids"]
    special = torch.isin(plain, torch.tensor(processor.tokenizer.all_special_ids))
    assert torch.equal(dropped[special], plain[special])
    assert (dropped[~special] == processor.tokenizer.unk_token_id).all()


def test_set_dropout_leaves_out_a_share_of_words_and_regions_and_never_all(tokenizer):
    regions = np.arange(60, dtype=np.float32).reshape(20, 3)
    caption = " ".join(make_captions(0))
    items = [{"image_features": regions, "caption": caption, "draw": draw} for draw in range(200)]
    processor = VSEProcessor(tokenizer=tokenizer)
    whole = VSECollator(processor)(items[:1])
    special = set(tokenizer.all_special_ids)
    words = [each for each in whole["input_ids"][0].tolist() if each not in special]
    assert len(words) > 10
    for share in (0.25, 1.0):
        batch = VSECollator(processor, set_dropout=share)(items)
        kept_regions = batch["image_mask"].sum(dim=1)
        kept_words = batch["attention_mask"].sum(dim=1) - (len(whole["input_ids"][0]) - len(words))
        for count, of in ((kept_regions, len(regions)), (kept_words, len(words))):
            assert count.min() >= 1 and count.float().mean() / of == pytest.approx(max(1 - share, 1 / of), abs=0.03)
        for row, mask, features in zip(batch["input_ids"], batch["image_mask"], batch["image_features"], strict=True):
            left = iter(words)
            assert all(each in left for each in row.tolist() if each not in special)  # in their order
            assert {tuple(each.tolist()) for each in features[mask.bool()]} <= {tuple(each) for each in regions}
        alone = VSECollator(processor, set_dropout=share)(items[7:8])
        assert alone["image_mask"].sum() == kept_regions[7]  # by the draw of the pair alone
    assert torch.equal(VSECollator(processor, set_dropout=0.0)(items[:1])["input_ids"], whole["input_ids"])


def test_broken_image_is_left_out_and_counted(processor, items):
    items[1]["image"] = {"bytes": items[1]["image"]["bytes"][:60], "path": "broken.jpg"}
    collator = VSECollator(processor)
    batch = collator(items)
    assert batch["image_ids"].tolist() == [0, 2, 3]
    assert len(batch["input_ids"]) == len(batch["pixel_values"]) == 3
    assert (collator.broken.broken, collator.broken.seen) == (1, 4)


def test_batch_without_a_readable_image_is_an_error(processor, items):
    nothing = [item | {"image": {"bytes": b"", "path": None}} for item in items]
    with pytest.raises(BrokenImageError, match="none of the 4 images of a batch can be read"):
        VSECollator(processor)(nothing)


def test_features_and_ragged_regions(tokenizer):
    pairs = PairDataset(make_feature_pairs(3))
    collator = VSECollator(VSEProcessor(tokenizer=tokenizer), Augmentation())
    batch = collator([pairs[Pair(row, 0, 0)] for row in range(3)])
    assert batch["image_features"].shape == (3, 16) and batch["image_features"].dtype == torch.float32
    regions = [{"image_features": np.ones((count, 4)), "caption": "red"} for count in (2, 5)]
    batch = collator(regions)
    assert batch["image_features"].shape == (2, 5, 4)
    assert batch["image_mask"].tolist() == [[1, 1, 0, 0, 0], [1] * 5]


def test_random_box_stays_inside_and_keeps_the_asked_area():
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, right, bottom = random_box(50, 30, 0.2, rng)
        assert 0 <= left < right <= 50 and 0 <= top < bottom <= 30
        assert (right - left) * (bottom - top) >= 0.2 * 1500 * 0.9


def test_input_size_of_crop_and_of_plain_resize():
    assert input_size(CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=16)) == (16, 16)
    plain = CLIPImageProcessorPil(size={"height": 8, "width": 12}, do_center_crop=False)
    assert input_size(plain) == (8, 12)


def test_caption_longer_than_the_model_is_cut(tokenizer):
    long = " ".join(["red"] * 500)
    tokens = VSEProcessor(tokenizer=tokenizer)(text=[long])
    assert tokens["input_ids"].shape[1] == tokenizer.model_max_length
