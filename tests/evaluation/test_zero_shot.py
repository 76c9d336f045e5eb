"""Zero-shot classification against a loop over photographs and classes, and what counts as labelled images."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from hf_vse.embed.encoder import Encoder
from hf_vse.evaluation import zero_shot
from hf_vse.evaluation.zero_shot import (
    TEMPLATES,
    class_vectors,
    labelled_images,
    load_labelled,
    zero_shot_classification,
    zero_shot_metrics,
)

COLOURS = {"deep_red": (220, 30, 30), "grass-green": (40, 160, 60), "blue": (30, 60, 220)}


class ColourEncoder(Encoder):
    """Mean colour of an image; of a text the colour whose name it holds. Lengths differ, none is one."""

    name = "colours"

    def encode_images(self, images):
        return np.stack([np.asarray(image, dtype=np.float64).mean(axis=(0, 1)) for image in images])

    def encode_texts(self, texts):
        readable = {name.replace("_", " ").replace("-", " "): colour for name, colour in COLOURS.items()}
        found = [next((colour for name, colour in readable.items() if name in text), (1, 1, 1)) for text in texts]
        noise = [len(text) for text in texts]  # a template changes the direction as well as the length
        return torch.tensor([[red + n, green, blue] for (red, green, blue), n in zip(found, noise, strict=True)])


def save_pictures(root: Path, classes=tuple(COLOURS), count=3) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            PIL.Image.new("RGB", (6, 6), COLOURS.get(name, (9, 9, 9))).save(root / name / f"{number}.png")
    return root


def make_case(images=50, classes=7, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(classes, dim, generator=generator)
    labels = torch.randint(classes - 1, (images,), generator=generator)  # nothing of the last class
    embeds = vectors[labels] + torch.randn(images, dim, generator=generator)
    return embeds / embeds.norm(dim=1, keepdim=True), labels, vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_a_loop_over_images(seed):
    embeds, labels, vectors = make_case(seed=seed)
    found = zero_shot_metrics(embeds, labels, vectors, list("abcdefg"))
    hits, fives, by_class = 0, 0, {}
    for embed, label in zip(embeds.double(), labels.tolist(), strict=True):
        order = sorted(range(7), key=lambda number: -(vectors[number].double() @ embed).item())
        hits += order[0] == label
        fives += label in order[:5]
        by_class.setdefault("abcdefg"[label], []).append(order[0] == label)
    assert 10 < hits < fives < 50
    assert found["top1"] == pytest.approx(100 * hits / 50) and found["top5"] == pytest.approx(100 * fives / 50)
    assert found["mean_per_class"] == pytest.approx(100 * np.mean([np.mean(each) for each in by_class.values()]))
    assert found["per_class"] == {
        name: {"images": len(each), "top1": pytest.approx(100 * np.mean(each))} for name, each in by_class.items()
    }
    assert found["images"] == 50 and found["classes"] == 7 and len(found["per_class"]) == 6
    assert found["chance"] == pytest.approx({"top1": 100 / 7, "top5": 500 / 7, "mean_per_class": 100 / 7})


def test_chance_is_what_random_vectors_score():
    runs = [make_case(images=400, seed=seed)[0] for seed in range(3)]
    labels, vectors = torch.arange(400) % 7, make_case(seed=9)[2]
    scores = [zero_shot_metrics(embeds[torch.randperm(400)], labels, vectors) for embeds in runs]
    for name, value in scores[0]["chance"].items():
        assert np.mean([each[name] for each in scores]) == pytest.approx(value, rel=0.15), name


def test_collapsed_model_scores_zero():
    found = zero_shot_metrics(torch.full((20, 3), 0.3), torch.arange(20) % 8, torch.full((8, 3), 1 / 3))
    assert found["top1"] == found["top5"] == found["mean_per_class"] == 0


def test_perfect_model_scores_hundred_and_few_classes_have_no_top5():
    found = zero_shot_metrics(torch.eye(4), torch.arange(4), torch.eye(4))
    assert found["top1"] == found["mean_per_class"] == 100 and "top5" not in found and "top5" not in found["chance"]


def test_bad_embeddings_and_labels_are_refused():
    embeds, labels, vectors = make_case()
    broken = vectors.clone()
    broken[2, 0] = torch.nan
    cases = [
        ((embeds, labels, broken), "class_vectors row 2 is not finite"),
        ((embeds, labels, vectors[:, :3]), "do not fit"),
        ((embeds, labels[:4], vectors), "do not fit"),
        ((embeds, labels + 3, vectors), r"labels must lie in 0 .. 6, got 3 .. 8"),
        ((embeds, labels - 1, vectors), r"labels must lie in 0 .. 6, got -1 .. 4"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            zero_shot_metrics(*arguments)


def test_class_vectors_are_the_mean_over_templates():
    names, templates = ["blue", "deep red"], ["the {}", "{} and {}!", "see {}"]
    found = class_vectors(ColourEncoder(), names, templates)
    for name, vector in zip(names, found, strict=True):
        single = ColourEncoder().encode_texts([f"the {name}", f"{name} and {name}!", f"see {name}"]).double()
        mean = sum(each / each.norm() for each in single) / 3
        assert torch.allclose(vector.double(), mean / mean.norm(), atol=1e-6)
        assert not torch.allclose(vector.double(), single.sum(0) / single.sum(0).norm(), atol=1e-6)


def test_names_with_braces_are_names():
    seen = []

    class Recorder(ColourEncoder):
        def encode_texts(self, texts):
            seen.extend(texts)
            return super().encode_texts(texts)

    class_vectors(Recorder(), ["{0} blue", "{}{", "a {name}"], ["{0} of the {}"])
    assert {"{0} of the {0} blue", "{0} of the {}{", "{0} of the a {name}"} == set(seen)


def test_templates_and_names_are_checked():
    encoder = ColourEncoder()
    for names, templates, message in (
        (["a", "b"], ["the {}", "a picture"], "template 'a picture' lacks {}, the place of the class name"),
        (["a", "b"], [], "templates is empty"),
        (["a"], TEMPLATES, "class_names has 1 names"),
        (["a", "b", "a"], TEMPLATES, "class name 'a' appears twice"),
    ):
        with pytest.raises(ValueError, match=message):
            class_vectors(encoder, names, templates)
    assert all(template.count("{}") == 1 for template in TEMPLATES) and len(set(TEMPLATES)) == len(TEMPLATES)


def test_folders_of_classes_are_classified_and_broken_images_counted(tmp_path):
    save_pictures(tmp_path)
    (tmp_path / "blue" / "broken.jpg").write_bytes(b"not a picture")
    (tmp_path / "blue" / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden").mkdir()
    labelled = load_labelled(tmp_path)
    assert labelled.class_names == ["blue", "deep red", "grass green"] and len(labelled.images) == 10
    record = zero_shot_classification(ColourEncoder(), labelled)
    assert record["top1"] == 100 and record["images"] == 9 and record["broken_images"] == 1
    assert record["templates"] == list(TEMPLATES) and record["protocol"].startswith("9 images, 3 classes, 5 templates")
    assert json.loads(json.dumps(record)) == record
    renamed = load_labelled(tmp_path, class_names=["deep red", "blue", "grass green"])
    worse = zero_shot_classification(ColourEncoder(), renamed, ["{}"])
    assert {name: each["top1"] for name, each in worse["per_class"].items()} == {
        "deep red": 0,
        "blue": 0,
        "grass green": 100,
    }


def test_folders_of_splits_hold_folders_of_classes(tmp_path):
    save_pictures(tmp_path / "train", count=2)
    save_pictures(tmp_path / "val", count=4)
    assert len(load_labelled(tmp_path).labels) == 12
    assert len(load_labelled(tmp_path, split="validation").labels) == 12
    assert len(load_labelled(tmp_path, split="val").labels) == 12
    assert len(load_labelled(tmp_path, split="train").labels) == 6
    with pytest.raises(ValueError, match="split='test' is not among the splits train, val"):
        load_labelled(tmp_path, split="test")


def test_a_class_may_be_called_train(tmp_path):
    save_pictures(tmp_path, ("train", "test"), count=2)
    labelled = load_labelled(tmp_path)
    assert labelled.class_names == ["test", "train"] and labelled.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="has no folders of splits"):
        load_labelled(tmp_path, split="test")


def test_folders_of_a_class_may_hold_folders(tmp_path):
    save_pictures(tmp_path / "blue", ("2020", "2021"), count=2)
    save_pictures(tmp_path / "red", ("2020",), count=1)
    labelled = load_labelled(tmp_path)
    assert labelled.class_names == ["blue", "red"] and labelled.labels.tolist() == [0, 0, 0, 0, 1]


def make_labelled(labels, feature) -> Dataset:
    pixels = [PIL.Image.new("RGB", (6, 6), list(COLOURS.values())[number % 3]) for number in range(len(labels))]
    columns = {"photo": Image(), "kind": feature}
    return Dataset.from_dict({"photo": pixels, "kind": labels}, features=Features(columns))


def test_saved_data_sets_are_read_whatever_the_columns_are_called(tmp_path):
    numbers = make_labelled([0, 1, 2, 0], ClassLabel(names=["deep_red", "grass green", "blue"]))
    DatasetDict({"train": numbers, "test": numbers.select(range(3))}).save_to_disk(tmp_path / "splits")
    assert len(load_labelled(tmp_path / "splits").labels) == 3
    labelled = load_labelled(str(tmp_path / "splits"), split="train")
    assert labelled.class_names == ["deep red", "grass green", "blue"]
    record = zero_shot_classification(ColourEncoder(), labelled)
    assert record["top1"] == 100 and record["images"] == 4
    numbers.save_to_disk(tmp_path / "single")
    assert load_labelled(tmp_path / "single").labels.tolist() == [0, 1, 2, 0]


def test_data_sets_of_the_hub_are_asked_for_by_name_and_revision(monkeypatch):
    asked = []

    def load_from_hub(name, revision, **options):
        asked.append((name, revision, options))
        return DatasetDict({"valid": make_labelled([1, 0], ClassLabel(names=["a", "b"]))})

    monkeypatch.setattr(zero_shot, "load_from_hub", load_from_hub)
    assert load_labelled("org/name", revision="v2", cache_dir="here").labels.tolist() == [1, 0]
    assert asked == [("org/name", "v2", {"cache_dir": "here"})]


def test_columns_of_strings_and_of_numbers_are_labels():
    words = make_labelled(["deep red", "grass green", "blue"], Value("string"))
    record = zero_shot_classification(ColourEncoder(), labelled_images(words, label_column="kind"), ["{}"])
    assert record["top1"] == 100 and list(record["per_class"]) == ["blue", "deep red", "grass green"]
    numbers = make_labelled([0, 1, 2], Value("int64"))
    names = ["deep red", "grass green", "blue"]
    labelled = labelled_images(numbers, label_column="kind", class_names=names)
    assert zero_shot_classification(ColourEncoder(), labelled)["top1"] == 100


def test_labels_that_are_unclear_are_refused():
    labelled = make_labelled([0, -1], ClassLabel(names=["a", "b"]))
    numbers, words = make_labelled([0, 1], Value("int64")), make_labelled(["a", None], Value("string"))
    for dataset, options, message in (
        (labelled, {}, "'kind' has -1 in row 1, none of the 2 classes"),
        (words, {"label_column": "kind", "class_names": ["a"]}, "class_names has 1 names"),
        (make_labelled(["a", None, "b"], Value("string")), {"label_column": "kind"}, "has None in row 1"),
        (numbers, {}, "label_column is ambiguous among the columns photo, kind"),
        (numbers, {"label_column": "kind"}, "'kind' has numbers without names: give class_names"),
        (labelled, {"image_column": "picture"}, "image_column='picture' is not among the columns photo, kind"),
        (labelled, {"class_names": ["a", "b", "c"]}, "class_names has 3 names for the 2 classes of 'kind'"),
        (make_labelled([0, 1], ClassLabel(names=["a_b", "a b"])), {}, "class name 'a b' appears twice"),
    ):
        with pytest.raises(ValueError, match=message):
            labelled_images(dataset, **options)


def test_places_without_labelled_images_are_refused(tmp_path):
    for nowhere in (tmp_path / "nowhere", "/nowhere", "nowhere"):
        with pytest.raises(FileNotFoundError, match="does not exist: give a folder or a Hub id"):
            load_labelled(nowhere)
    with pytest.raises(FileNotFoundError, match="holds no folders of images"):
        load_labelled(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "broken.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        zero_shot_classification(ColourEncoder(), load_labelled(tmp_path))
