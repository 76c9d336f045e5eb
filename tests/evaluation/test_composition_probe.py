"""The composition probe against arithmetic by hand, and published files of the right shape and of wrong ones."""

import json
import logging
import math
import re
from itertools import count

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_vse.embed.encoder import Encoder
from hf_vse.evaluation.composition.probe import (
    Foil,
    composition_probe,
    composition_scores,
    distinct_sentences,
    foil_scores,
    wilson_interval,
    winoground_probe,
    winoground_scores,
)
from hf_vse.evaluation.composition.published import SUGARCREPE_KINDS, load_foils


class TableEncoder(Encoder):
    """Looks vectors up: of an image by the red of its corner, of a sentence by the sentence."""

    name = "table"

    def __init__(self, images: np.ndarray, texts: dict[str, np.ndarray]):
        self.images, self.texts = images, texts
        self.seen_images: list[int] = []
        self.seen_texts: list[str] = []

    def encode_images(self, images):
        rows = [image.getpixel((0, 0))[0] for image in images]
        self.seen_images += rows
        return self.images[rows]

    def encode_texts(self, texts):
        self.seen_texts += texts
        return np.stack([self.texts[text] for text in texts])


class BagOfWordsEncoder(TableEncoder):
    """Adds up a vector for each word, whatever their order."""

    def __init__(self, images: np.ndarray):
        super().__init__(images, {})

    def encode_texts(self, texts):
        words = [sorted(re.findall(r"\w+", text.lower())) for text in texts]
        return np.stack(
            [sum(np.random.default_rng(list(map(ord, word))).normal(size=8) for word in each) for each in words]
        )


def pictures(number: int) -> list[dict]:
    return [{"image": Image.new("RGB", (4, 4), (row, 0, 0))} for row in range(number)]


def unit(vectors) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_problem(seed: int, images: int = 12, items: int = 80):
    rng = np.random.default_rng(seed)
    texts = [f"sentence {number} {'and more' * (number % 3)}" for number in range(30)]
    foils = []
    for number in range(items):
        chosen = rng.choice(len(texts), size=2 + number % 3, replace=False)
        sentences = [texts[row] for row in chosen]
        foils.append(Foil(int(rng.integers(images)), sentences[0], tuple(sentences[1:]), f"kind {number % 2}"))
    return foils, unit(rng.normal(size=(images, 6))), unit(rng.normal(size=(30, 6))), texts


def accuracy_by_hand(foils, image_embeds, text_embeds, texts, blind=False):
    place = {text: row for row, text in enumerate(texts)}
    used = sorted({foil.image for foil in foils})
    mean = [sum(float(image_embeds[row][axis]) for row in used) / len(used) for axis in range(image_embeds.shape[1])]
    right = 0
    for foil in foils:
        image = mean if blind else [float(value) for value in image_embeds[foil.image]]
        score = {
            text: math.fsum(a * float(b) for a, b in zip(image, text_embeds[row], strict=True))
            for text, row in place.items()
        }
        right += all(score[foil.true_caption] > score[text] for text in foil.false_captions)
    return 100 * right / len(foils)


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_equal_those_by_hand(seed):
    foils, *embeddings = random_problem(seed)
    result = composition_scores(foils, *embeddings)
    assert set(result["kinds"]) == {"kind 0", "kind 1"} and result["left_out"] == 0
    for kind, numbers in result["kinds"].items():
        of_kind = [foil for foil in foils if foil.kind == kind]
        assert numbers["accuracy"] == pytest.approx(accuracy_by_hand(of_kind, *embeddings))
        assert numbers["items"] == len(of_kind) and 5 < numbers["accuracy"] < 95
        chances = [1 / (1 + len(foil.false_captions)) for foil in of_kind]
        assert numbers["chance"] == pytest.approx(100 * sum(chances) / len(chances))
    assert result["overall"]["accuracy"] == pytest.approx(accuracy_by_hand(foils, *embeddings))
    assert result["overall"]["blind_accuracy"] == pytest.approx(accuracy_by_hand(foils, *embeddings, blind=True))
    assert result["overall"]["mean_of_kinds"] == pytest.approx(
        sum(numbers["accuracy"] for numbers in result["kinds"].values()) / 2
    )
    json.dumps(result)


def test_probe_equals_the_scores_of_its_embeddings_and_encodes_everything_once():
    foils, image_embeds, text_embeds, texts = random_problem(5)
    foils = [foil for foil in foils if foil.image % 3]  # some images are asked nothing
    encoder = TableEncoder(image_embeds, dict(zip(texts, text_embeds, strict=True)))
    result = composition_probe(encoder, foils, pictures(12), batch_size=4)
    expected = composition_scores(foils, image_embeds, text_embeds, texts)
    for numbers in (*result["kinds"].values(), *expected["kinds"].values()):
        numbers.pop("examples")  # whose margins are rounded otherwise
    assert result["kinds"] == expected["kinds"] and result["overall"] == expected["overall"]
    used, sentences = {foil.image for foil in foils}, distinct_sentences(foils)
    assert sorted(encoder.seen_images) == sorted(used) and result["images"] == len(used)
    assert sorted(encoder.seen_texts) == sorted(sentences) and result["sentences"] == len(sentences)


def test_probe_reads_a_data_set_and_leaves_broken_images_out(tmp_path):
    paths = []
    for row in range(4):
        paths.append(str(tmp_path / f"{row}.png"))
        Image.new("RGB", (4, 4), (row, 0, 0)).save(paths[-1])
    (tmp_path / "2.png").write_bytes(b"no image")
    dataset = Dataset.from_dict({"image_id": range(4), "image": paths}).cast_column("image", ImageFeature())
    eye = np.eye(4, dtype=np.float32)
    encoder = TableEncoder(eye, {f"picture {row}": eye[row] for row in range(4)})
    foils = [Foil(row, f"picture {row}", (f"picture {(row + 1) % 4}",), "all") for row in range(4)]
    result = composition_probe(encoder, foils, dataset)
    assert result["left_out"] == 1 and result["overall"]["accuracy"] == 100 and result["overall"]["items"] == 3
    with pytest.raises(ValueError, match="none of the images of the 1 foils can be read"):
        composition_probe(encoder, foils[2:3], dataset)


def test_a_tie_is_wrong_and_undecided():
    eye = np.eye(3)
    foils = [Foil(0, "a", ("b",), "tie"), Foil(0, "a", ("c",), "clear")]
    kinds = composition_scores(foils, eye, eye[[0, 0, 1]], ["a", "b", "c"])["kinds"]
    assert kinds["tie"]["accuracy"] == 0 and kinds["tie"]["undecided"] == 100
    assert kinds["clear"]["accuracy"] == 100 and kinds["clear"]["undecided"] == 0
    (example,) = kinds["tie"]["examples"]
    assert example == {"image": 0, "caption": "a", "foil": "b", "margin": 0.0} and not kinds["clear"]["examples"]


def test_a_bag_of_words_leaves_all_swaps_undecided():
    foils = [
        Foil(row, f"a {one} dog and a {other} cat", (f"a {other} dog and a {one} cat",), "swap")
        for row, (one, other) in enumerate([("red", "blue"), ("old", "young"), ("wet", "dry")])
    ]
    images = unit(np.random.default_rng(0).normal(size=(3, 8)))
    assert composition_probe(BagOfWordsEncoder(images), foils, pictures(3))["overall"]["undecided"] == 100
    replaced = [foil._replace(false_captions=("a grey dog and a red cat",)) for foil in foils]
    assert composition_probe(BagOfWordsEncoder(images), replaced, pictures(3))["overall"]["undecided"] == 0


def test_the_worst_errors_are_shown_with_their_rows():
    texts = ["true", "near", "far"]
    text_embeds = unit([[1, 0], [1, 0.2], [0, 1]])
    image_embeds = unit([[1, 0], [0.1, 1]])
    foils = [
        Foil(1, "true", ("near", "far"), "kind"),
        Foil(1, "true", ("near",), "kind"),
        Foil(0, "true", ("far",), "kind"),
    ]
    encoder = TableEncoder(
        np.concatenate([image_embeds[:1]] * 5 + [image_embeds]), dict(zip(texts, text_embeds, strict=True))
    )
    moved = [foil._replace(image=foil.image + 5) for foil in foils]
    examples = composition_probe(encoder, moved, pictures(7), examples=1)["kinds"]["kind"]["examples"]
    assert [(each["image"], each["foil"]) for each in examples] == [(6, "far")]
    examples = composition_probe(encoder, moved, pictures(7), examples=9)["kinds"]["kind"]["examples"]
    assert [(each["image"], each["foil"]) for each in examples] == [(6, "far"), (6, "near")]


def test_foil_lengths_are_counted_in_words():
    foils = [
        Foil(0, "one two", ("one two three", "one"), "k"),
        Foil(0, "one two", ("two one", "three four five"), "k"),
    ]
    texts = distinct_sentences(foils)
    numbers = composition_scores(foils, np.eye(8)[:1], np.eye(8)[: len(texts)], texts)["overall"]
    assert (
        numbers["foil_longer"] == 50 and numbers["foil_shorter"] == 25 and numbers["chance"] == pytest.approx(100 / 3)
    )


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (8, 10), (10, 10), (500, 1000), (1, 3)])
def test_wilson_interval_ends_where_the_observation_is_1_96_errors_away(successes, trials):
    low, high = (end / 100 for end in wilson_interval(successes, trials))
    share = successes / trials
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / trials, abs=1e-12)
    assert 0 <= low <= share <= high <= 1 and low < high


def test_bad_foils_and_embeddings_are_refused():
    foils, image_embeds, text_embeds, texts = random_problem(0)
    broken = text_embeds.copy()
    broken[3, 1] = np.nan
    diverged = image_embeds.copy()
    diverged[foils[0].image] = np.nan
    cases = [
        (([], image_embeds, text_embeds, texts), "foils is empty"),
        ((foils, image_embeds[:3], text_embeds, texts), "there are 3 images"),
        ((foils, image_embeds, text_embeds, texts[:-1]), "do not fit each other or 29 texts"),
        ((foils, image_embeds[:, :2], text_embeds, texts), "do not fit each other"),
        ((foils, image_embeds, text_embeds, [*texts[:-1], "other"]), "texts lacks the sentence"),
        ((foils, image_embeds, broken, texts), "text_embeds row 3 is not finite"),
        ((foils, diverged, text_embeds, texts), "image_embeds.* is not finite"),
        (([Foil(0, "a", (), "k")], image_embeds, text_embeds, texts), "needs false captions that differ"),
        (([Foil(0, "a", ("b", "a"), "k")], image_embeds, text_embeds, texts), "needs false captions that differ"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            foil_scores(*arguments)


# -------------------------------------------------------------------------------------------------- Winoground


def winoground_by_hand(table) -> tuple[bool, bool, bool]:
    text = table[0][0] > table[1][0] and table[1][1] > table[0][1]
    image = table[0][0] > table[0][1] and table[1][1] > table[1][0]
    return text, image, text and image


def test_winoground_scores_equal_those_by_hand_and_chance_is_that_of_random_scores():
    scores = np.random.default_rng(0).normal(size=(20_000, 2, 2))
    result = winoground_scores(scores)
    shares = 100 * np.mean([winoground_by_hand(table) for table in scores.tolist()], axis=0)
    for name, share in zip(("text", "image", "group"), shares, strict=True):
        assert result[name]["accuracy"] == pytest.approx(share)
        assert result[name]["chance"] == pytest.approx(share, abs=1)
    assert result["items"] == 20_000 and result["undecided"] == 0


def test_winoground_ties_are_wrong():
    result = winoground_scores(torch.ones(4, 2, 2))
    assert [result[name]["accuracy"] for name in ("text", "image", "group")] == [0, 0, 0] and result[
        "undecided"
    ] == 100
    with pytest.raises(ValueError, match=r"shape \(examples, 2, 2\), got \(2, 2\)"):
        winoground_scores(torch.ones(2, 2))


def test_winoground_probe_puts_captions_and_images_in_their_places():
    rng = np.random.default_rng(1)
    images, texts = unit(rng.normal(size=(40, 3))), unit(rng.normal(size=(40, 3)))
    foils = []
    for example in range(20):
        one, other = f"caption {2 * example}", f"caption {2 * example + 1}"
        foils += [Foil(2 * example, one, (other,), "winoground"), Foil(2 * example + 1, other, (one,), "winoground")]
    encoder = TableEncoder(images, {f"caption {row}": texts[row] for row in range(40)})
    result = winoground_probe(encoder, foils, pictures(40))
    tables = [texts[pair : pair + 2] @ images[pair : pair + 2].T for pair in range(0, 40, 2)]
    shares = 100 * np.mean([winoground_by_hand(table.tolist()) for table in tables], axis=0)
    assert 0 < shares[2] < shares[0] != shares[1]
    assert [result[name]["accuracy"] for name in ("text", "image", "group")] == pytest.approx(shares)
    with pytest.raises(ValueError, match="foils must come two by two, got 39"):
        winoground_probe(encoder, foils[1:], pictures(40))
    with pytest.raises(ValueError, match="foils 0 and 1 are no example"):
        winoground_probe(encoder, foils[1:-1], pictures(40))


# --------------------------------------------------------------------------------------------- published files


def save_images(folder, names, size=(20, 10)):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in zip(count(), names, strict=False):
        Image.new("RGB", size, (number, 0, 0)).save(folder / name)


def aro_entry(image: str, group: dict, left: int = 2) -> dict:
    box = dict(bbox_x=left, bbox_y=1, bbox_w=6, bbox_h=4)
    captions = dict(true_caption="the cup is on the table", false_caption="the table is on the cup")
    return dict(image_path=image) | box | captions | group


def test_aro_is_cut_to_its_boxes_and_grouped_by_relation(tmp_path):
    save_images(tmp_path / "images", ["a.png", "b.png"])
    relation = {"relation_name": "on"}
    entries = [aro_entry("a.png", relation), aro_entry("a.png", relation, left=5), aro_entry("b.png", relation)]
    (tmp_path / "visual_genome_relation.json").write_text(json.dumps([*entries, entries[0]]))
    foils, images = load_foils("vg_relation", tmp_path)
    assert [foil.image for foil in foils] == [0, 1, 2, 0] and len(images) == 3
    assert foils[0] == Foil(0, "the cup is on the table", ("the table is on the cup",), "on")
    assert images[0]["image"].size == (6, 4)
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    assert images[0]["image"]["path"].endswith("a.png")
    attributes = aro_entry("b.png", {"attributes": ["white", "wooden"]})
    (tmp_path / "visual_genome_attribution.json").write_text(json.dumps([attributes]))
    foils, _ = load_foils("vg_attribution", tmp_path)
    assert foils[0].kind == "white, wooden"


def write_sugarcrepe(folder):
    entry = dict(filename="000000000001.jpg", caption="A red car.", negative_caption="A blue car.")
    for number, kind in enumerate(SUGARCREPE_KINDS):
        content = {str(row): entry | {"filename": f"00000000000{row + number}.jpg"} for row in range(2)}
        (folder / f"{kind}.json").write_text(json.dumps(content))


def test_sugarcrepe_finds_coco_images_under_both_names(tmp_path):
    write_sugarcrepe(tmp_path)
    pictures_at = tmp_path / "coco"
    save_images(pictures_at / "val2017", [f"00000000000{row}.jpg" for row in range(7)])
    save_images(pictures_at / "val2014", ["COCO_val2014_000000000007.jpg"])
    foils, images = load_foils("sugarcrepe", tmp_path, pictures_at)
    assert [foil.kind for foil in foils] == [kind for kind in SUGARCREPE_KINDS for _ in range(2)]
    assert len(images) == 8 and images[7]["image"]["path"].endswith("COCO_val2014_000000000007.jpg")
    vectors = np.random.default_rng(0).normal(size=(8, 4))
    encoder = TableEncoder(vectors, {"A red car.": vectors[0], "A blue car.": vectors[1]})
    assert set(composition_probe(encoder, foils, images)["kinds"]) == set(SUGARCREPE_KINDS)


def test_missing_images_are_named_and_left_out_or_refused(tmp_path, caplog):
    write_sugarcrepe(tmp_path)
    save_images(tmp_path / "val2017", [f"00000000000{row}.jpg" for row in range(7)])
    with pytest.raises(ValueError, match="1 of 8 images are missing.*000000000007.jpg.*max_broken_share=0.02"):
        load_foils("sugarcrepe", tmp_path)
    with caplog.at_level(logging.WARNING):
        foils, images = load_foils("sugarcrepe", tmp_path, max_broken_share=0.2)
    assert len(foils) == 13 and len(images) == 7 and "000000000007.jpg" in caplog.text


def winoground_lines(number: int) -> list[dict]:
    return [
        {"id": row, "image_0": f"ex_{row}_img_0", "image_1": f"ex_{row}_img_1"}
        | {"caption_0": f"{row} chases the other", "caption_1": f"the other chases {row}"}
        for row in range(number)
    ]


def test_winoground_comes_in_pairs_from_lines_and_from_a_saved_copy(tmp_path):
    lines = winoground_lines(3)
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    save_images(tmp_path / "images", [f"{line[name]}.png" for line in lines for name in ("image_0", "image_1")])
    foils, images = load_foils("winoground", tmp_path)
    assert foils[1] == Foil(1, "the other chases 0", ("0 chases the other",), "winoground") and len(images) == 6

    columns = {name: [line[name] for line in lines] for name in ("caption_0", "caption_1")}
    for name in ("image_0", "image_1"):
        columns[name] = [str(tmp_path / "images" / f"{line[name]}.png") for line in lines]
    copy = Dataset.from_dict(columns).cast_column("image_0", ImageFeature()).cast_column("image_1", ImageFeature())
    copy.save_to_disk(tmp_path / "copy")
    saved, rows = load_foils("winoground", tmp_path / "copy")
    rng = np.random.default_rng(3)
    texts = {line[name]: rng.normal(size=5) for line in lines for name in ("caption_0", "caption_1")}
    encoder = TableEncoder(rng.normal(size=(6, 5)), texts)
    assert winoground_probe(encoder, saved, rows) == winoground_probe(encoder, foils, images)

    (tmp_path / "images" / "ex_1_img_1.png").unlink()
    foils, images = load_foils("winoground", tmp_path, max_broken_share=0.5)
    assert [foil.true_caption[0] for foil in foils] == ["0", "t", "2", "t"] and len(images) == 4


def test_orders_of_a_karpathy_split_take_every_caption(tmp_path):
    sentences = [f"A young child number {number} runs over the green field ." for number in range(5)]
    image = dict(filename="1.jpg", filepath="val2014", imgid=0, cocoid=9, split="test", sentids=list(range(5)))
    image["sentences"] = [{"raw": raw} for raw in sentences]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": [image]}))
    save_images(tmp_path / "pictures" / "val2014", ["1.jpg"])
    foils, images = load_foils("coco_order", tmp_path, tmp_path / "pictures")
    assert [foil.true_caption for foil in foils] == sentences and len(images) == 1
    assert {len(foil.false_captions) for foil in foils} <= {3, 4}
    assert load_foils("coco_order", tmp_path, tmp_path / "pictures")[0] == foils


def test_wrong_files_are_refused_by_name_and_field(tmp_path):
    path = tmp_path / "visual_genome_relation.json"
    cases = [
        ("[", "is not valid JSON"),
        ("[]", "neither a list nor a dictionary"),
        (json.dumps([aro_entry("a.png", {})]), "entry 0: field 'relation_name' is missing"),
        (json.dumps([aro_entry("a.png", {"relation_name": "on", "bbox_x": "1"})]), "field 'bbox_x' is '1'"),
        (json.dumps(["text"]), "entry 0: field 'image_path' is missing"),
    ]
    for content, message in cases:
        path.write_text(content)
        with pytest.raises(ValueError, match=f"visual_genome_relation.json.*{message}"):
            load_foils("vg_relation", tmp_path)
    with pytest.raises(OSError, match="visual_genome_attribution.json does not exist"):
        load_foils("vg_attribution", tmp_path)
    with pytest.raises(OSError, match="is not a folder"):
        load_foils("sugarcrepe", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="name='aro' is unknown"):
        load_foils("aro", tmp_path)
