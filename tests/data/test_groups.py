"""Near-duplicate photographs are found, stay together when images are held out, and are no negatives of each other."""

import logging
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, DatasetDict, Image, IterableDatasetDict

from hf_vse.cli.main import main
from hf_vse.data import image_hashes as hashes_module
from hf_vse.data.features import features_dataset
from hf_vse.data.groups import connected, equal_pairs, group_counts, hold_out, near_pairs, with_group_ids, with_groups
from hf_vse.data.image_hashes import LENGTH, NEAR, UNIT, KeptHashes, image_hash, image_hashes
from hf_vse.data.pairs import PairDataset
from hf_vse.data.schema import GROUP_ID, IMAGE_ID
from hf_vse.data.sources import with_validation
from hf_vse.data.spec import DataSpec
from hf_vse.data.streams import StreamedPairs
from hf_vse.model.losses_vse import contrastive_loss
from hf_vse.training.build import load_splits
from hf_vse.training.pictures import draw_groups
from hf_vse.training.recipe import build_recipe
from hf_vse.training.run import run_recipe
from tests.conftest import make_captions, make_feature_pairs, make_pairs
from tests.data.test_spec import TINY


def photograph(seed: int, side: int = 160) -> PIL.Image.Image:
    """Blurred noise with the spectrum of photographs, 1/f."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = np.inf
    waves = np.fft.fft2(rng.normal(size=(3, side, side))) / frequency
    pixels = np.fft.ifft2(waves).real
    pixels = pixels[:1] + 0.3 * pixels  # brightness varies more than colour
    return PIL.Image.fromarray((128 + 45 * pixels / pixels.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def encoded(image: PIL.Image.Image, quality: int) -> PIL.Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return PIL.Image.open(file).convert("RGB")


def burst(seed: int) -> list[PIL.Image.Image]:
    """A photograph, one of lower quality, a smaller one, a crop, and a brighter one."""
    first = photograph(seed)
    side, cut = first.width, first.width // 40
    brighter = PIL.Image.fromarray((np.asarray(first) * 1.1).clip(0, 255).astype(np.uint8))
    return [
        first,
        encoded(first, 40),
        first.resize((70, 50)),
        first.crop((cut, cut, side - cut, side - cut)),
        brighter,
    ]


BURSTS, ALONE = 4, 30


@pytest.fixture(scope="module")
def bursts() -> Dataset:
    """Four bursts of five images, of which the images are far apart, and thirty images without a near-duplicate."""
    images = [image for seed in range(BURSTS) for image in burst(seed)]
    images += [photograph(seed) for seed in range(BURSTS, BURSTS + ALONE)]
    truth = [place // 5 if place < 5 * BURSTS else -1 for place in range(len(images))]
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    rows = {
        "image": [images[place] for place in order],
        "image_id": list(range(len(images))),
        "captions": [make_captions(place, 2) for place in order],
        "caption_ids": [[2 * place, 2 * place + 1] for place in range(len(images))],
        "scene": [truth[place] for place in order],
    }
    return Dataset.from_dict(rows).cast_column("image", Image())


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(hashes_module.datasets.config, "HF_CACHE_HOME", tmp_path)
    return tmp_path / hashes_module.CACHE


def same_groups(groups: list[int | None], truth: list[int]) -> bool:
    """Whether two numberings divide the same images in the same way; -1 and None belong to no group."""
    pairs = {(group, scene) for group, scene in zip(groups, truth, strict=True) if (group, scene) != (None, -1)}
    return all(None not in pair and -1 not in pair for pair in pairs) and len(pairs) == len({*dict(pairs)}) == BURSTS


def test_bursts_are_found_and_nothing_else(bursts, cache):
    found = with_groups(DatasetDict({"train": bursts}), None, [image_hashes(bursts)], NEAR)["train"]
    assert same_groups(found[GROUP_ID][:], bursts["scene"][:])
    assert group_counts(found[GROUP_ID][:]) == {"groups": BURSTS, "images": 5 * BURSTS, "largest": 5}
    assert found.column_names == [*bursts.column_names, GROUP_ID] and found[IMAGE_ID][:] == bursts[IMAGE_ID][:]


@pytest.mark.parametrize("seed", range(10))
def test_no_pair_of_a_burst_lies_across_the_held_out_split(bursts, tmp_path_factory, cache, seed):
    folder = tmp_path_factory.getbasetemp() / "bursts"
    if not folder.exists():
        DatasetDict({"train": bursts}).save_to_disk(str(folder))
    spec = DataSpec(str(folder), validation_share=0.3, seed=seed, near_duplicates="auto")
    splits = spec.load()
    scene = dict(zip(bursts[IMAGE_ID][:], bursts["scene"][:], strict=True))
    scenes = {name: {scene[image_id] for image_id in splits[name][IMAGE_ID][:]} - {-1} for name in splits}
    assert len(splits["train"]) + len(splits["validation"]) == len(bursts)
    assert not scenes["train"] & scenes["validation"] and len(scenes["train"] | scenes["validation"]) == BURSTS
    again = DataSpec.of_dict(spec.to_dict(), "here").load()
    assert again["validation"][IMAGE_ID][:] == splits["validation"][IMAGE_ID][:]
    column = DataSpec(str(folder), validation_share=0.3, seed=seed, group_column="scene").load()
    assert not {*column["train"]["scene"]} & {*column["validation"]["scene"]}  # -1 is a scene here
    if seed == 0:  # not by chance: without groups the scenes are torn apart
        plain = DataSpec(str(folder), validation_share=0.3, seed=seed).load()
        assert {scene[i] for i in plain["train"][IMAGE_ID]} & {scene[i] for i in plain["validation"][IMAGE_ID]} - {-1}


def test_without_groups_the_same_images_are_held_out_as_ever(bursts):
    parts = bursts.train_test_split(test_size=0.2, seed=5)
    for train in (bursts, with_group_ids(bursts, [None] * len(bursts))):
        found = with_validation({"train": train}, 0.2, 5)
        assert found["validation"][IMAGE_ID][:] == parts["test"][IMAGE_ID][:]
        assert found["train"][IMAGE_ID][:] == parts["train"][IMAGE_ID][:]


def test_one_group_cannot_be_divided(bursts):
    with pytest.raises(ValueError, match="all images of the train split are of one group"):
        hold_out(with_group_ids(bursts, [7] * len(bursts)), 0.2, 0)


def test_images_of_a_group_are_no_negatives(bursts, cache):
    """No gradient passes between an image and the captions of its near-duplicates, and one passes elsewhere."""
    found = with_groups(DatasetDict({"train": bursts}), None, [image_hashes(bursts)], NEAR)["train"]
    ids = torch.tensor(PairDataset(found).image_ids)
    scenes = np.array(bursts["scene"][:])
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(len(ids), 8, generator=generator), dim=1)
    texts = torch.nn.functional.normalize(torch.randn(len(ids), 8, generator=generator), dim=1).requires_grad_()
    first = int(np.flatnonzero(scenes == 0)[0])
    alone = images.clone()
    alone[torch.arange(len(ids)) != first] = 0  # the gradient of the texts comes from one image
    [gradient] = torch.autograd.grad(
        contrastive_loss(alone, texts, loss_type="hinge_sum", image_ids=ids, temperature=1.0, margin=2.0), texts
    )
    moved = gradient.abs().sum(1).numpy() > 0
    others = (scenes == 0) & (np.arange(len(ids)) != first)
    assert others.sum() == 4 and not moved[others].any() and moved[scenes != 0].all()


def test_a_run_reports_its_groups_and_evaluation_finds_them_again(bursts, cache, tmp_path, capsys, caplog):
    folder, run = tmp_path / "bursts", tmp_path / "run"
    titles = ["A red circle." if row % 2 else f"Number {row}" for row in range(len(bursts))]
    bursts = bursts.remove_columns("captions").add_column("captions", [[each, f"{each} !"] for each in titles])
    DatasetDict({"train": bursts}).save_to_disk(str(folder))
    recipe = build_recipe(TINY | {"dataset": str(folder), "output_dir": str(run), "validation_share": 0.5, "seed": 3})
    with caplog.at_level(logging.INFO, logger="hf_vse"):
        result = run_recipe(recipe)
    record, splits = result["metrics"]["validation"], load_splits(recipe.data)
    held_out, train = splits["validation"], splits["train"]
    learned = {name: result["training_data"][name] for name in ("images", "captions", "equal_captions")}
    equal = [number for number in train[IMAGE_ID] if number % 2]
    counts = {"captions": 2 * len(equal), "images": len(equal), "sentences": 2}
    assert learned == {"images": len(train), "captions": 2 * len(train), "equal_captions": counts} and len(equal) > 5
    assert f"{2 * len(equal)} of {2 * len(train)} training captions are word for word captions of" in caplog.text
    of_group = [scene for scene in train["scene"] if scene != -1]
    assert result["training_data"]["groups"] == {"groups": len({*of_group}), "images": len(of_group), "largest": 5}
    card = (run / "README.md").read_text()
    assert f"{2 * len(equal)} of {2 * len(train)} training captions are" in card
    assert f"{len(of_group)} of {len(train)} training images are in {len({*of_group})} groups" in card
    scenes = [scene for scene in held_out["scene"] if scene != -1]
    assert record["groups"] == {"groups": len({*scenes}), "images": len(scenes), "largest": 5} and scenes
    assert all((run / f"{name}.png").is_file() for name in ("retrieval", "near_duplicates"))
    assert main(["evaluate", str(run), "--split", "validation", "--quiet"]) == 0
    assert f"{len(scenes)} of {len(held_out)} images are in {len({*scenes})} groups" in capsys.readouterr().out


def test_near_pairs_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    vectors = rng.integers(-3, 4, size=(70, 5)).astype(np.int8)
    plain = vectors.astype(int)
    for squared in (3, 7, 20):
        near = {(i, j) for i in range(70) for j in range(i + 1, 70) if ((plain[i] - plain[j]) ** 2).sum() <= squared}
        for block in (1, 16, 33, 1024):
            found = [tuple(pair) for pairs in near_pairs(vectors, squared, block) for pair in pairs.tolist()]
            assert len(found) == len(set(found)) and set(found) == near and near
    furthest = np.array([[UNIT] * LENGTH, [-UNIT] * LENGTH], np.int8)  # exact also for the largest numbers
    distance = LENGTH * (2 * UNIT) ** 2
    assert [len(list(near_pairs(furthest, squared))) for squared in (distance - 1, distance)] == [0, 1]


def test_connected_is_the_closure_whatever_the_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        links = rng.integers(0, 30, size=(20, 2))
        parent = connected(30, [links[:7], links[7:7], links[7:]])
        reach = np.eye(30, dtype=int)
        reach[links[:, 0], links[:, 1]] = reach[links[:, 1], links[:, 0]] = 1
        reach = np.linalg.matrix_power(reach, 30) > 0
        assert ((parent[:, None] == parent[None]) == reach).all() and (parent == reach.argmax(1)).all()
    assert equal_pairs(["a", None, "b", "a", None]).tolist() == [[0, 0], [2, 2], [0, 3]]


def test_groups_of_a_column_join_with_near_duplicates_over_all_splits(caplog):
    train, test = make_pairs(6), make_pairs(4)
    train = train.add_column("event", ["a", "a", None, "b", "", "c"])
    test = test.add_column("event", ["b", "d", "", None])
    near = [np.eye(6)[[0, 1, 1, 3, 4, 5]] * 9, np.eye(6)[[2, 5, 2, 2]] * 9]
    near[0][4] = 0  # nothing is known of this image
    with caplog.at_level(logging.INFO):
        found = with_groups(DatasetDict({"train": train, "test": test}), "event", near, 0.5)
    ids = [*found["train"][GROUP_ID][:], *found["test"][GROUP_ID][:]]
    first, other, third = ids[0], ids[3], ids[5]
    assert ids == [first, first, first, other, None, third, other, third, other, other]
    assert len({first, other, third}) == 3
    assert "test: 4 of 4 images have a near-duplicate in the training split" in caplog.text
    with pytest.raises(ValueError, match="group_column='vent' is not among the columns image, image_id"):
        with_groups(DatasetDict({"train": train}), "vent")


def test_a_selection_of_rows_gets_groups_without_a_copy_of_its_images(bursts):
    chosen = bursts.select([7, 3, 20, 1])
    found = with_group_ids(with_group_ids(chosen, [1, 1, None, 2]), [4, None, 4, None])
    assert found[GROUP_ID][:] == [4, None, 4, None] and found[IMAGE_ID][:] == [7, 3, 20, 1]
    assert found.select([2, 0])[GROUP_ID][:] == [4, 4] and found.data.num_rows == len(bursts)
    np.testing.assert_array_equal(np.asarray(found[0]["image"]), np.asarray(bursts[7]["image"]))


def test_hashes_are_computed_once_for_each_content(bursts, cache, monkeypatch, caplog):
    few = bursts.select(range(8))
    first = image_hashes(few)
    asked: list = []
    monkeypatch.setattr(hashes_module, "hash_of", lambda value: asked.append(value) or np.ones(LENGTH, np.int8))
    np.testing.assert_array_equal(image_hashes(few.select([3, 1])), first[[3, 1]])
    assert not asked
    image_hashes(bursts.select(range(6, 10)))
    assert len(asked) == 2
    cache.write_bytes(b"damaged" * 1000)
    assert image_hashes(few).min() == 1 and "cannot keep hashes" in caplog.text
    kept = KeptHashes(cache / "below a file")
    kept.write({b"a": first[0]})
    assert kept.read([b"a"]) == {}


def test_what_shows_nothing_is_like_nothing(tmp_path, cache):
    blank = PIL.Image.new("RGB", (64, 48), (200, 30, 30))
    assert not image_hash(blank).any()
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    rows = Dataset.from_dict({"image": [str(broken), str(tmp_path / "gone.jpg")], "image_id": [0, 1]})
    rows = rows.cast_column("image", Image())
    assert not image_hashes(rows).any()
    found = with_groups(DatasetDict({"train": rows}), None, [image_hashes(rows)], NEAR)["train"]
    assert found[GROUP_ID][:] == [None, None]


def test_the_search_for_twenty_thousand_images_takes_seconds():
    rng = np.random.default_rng(0)
    hashes = rng.integers(-30, 31, size=(20_000, LENGTH)).astype(np.int8)
    hashes[1::1000] = hashes[::1000]
    start = time.process_time()
    pairs = np.concatenate(list(near_pairs(hashes, NEAR)))
    assert pairs.tolist() == [[place, place + 1] for place in range(0, 20_000, 1000)]
    assert time.process_time() - start < 15  # about 3 s


@pytest.mark.parametrize("regions", [1, 3])
def test_vectors_are_compared_by_their_cosine(regions):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 24)).astype(np.float32)
    near, far = (features[:4] / np.linalg.norm(features[:4], axis=1, keepdims=True) * 5 for _ in range(2))
    side = rng.normal(size=(4, 24))
    side -= (side * near).sum(1, keepdims=True) / 25 * near  # orthogonal
    side *= 5 / np.linalg.norm(side, axis=1, keepdims=True)
    near, far = 0.91 * near + np.sqrt(1 - 0.91**2) * side, 0.89 * far - np.sqrt(1 - 0.89**2) * side
    rows = np.concatenate([features, near, far]).astype(np.float32)
    ids, captions = list(range(len(rows))), [["a"]] * len(rows)
    given = rows if regions == 1 else np.stack([0.5 * rows, 2.0 * rows, 0.5 * rows], axis=1)
    split = features_dataset(given, ids, captions, [[each] for each in ids])
    found = DataSpec("photos", near_duplicates="vectors").with_groups(DatasetDict({"train": split}))["train"][GROUP_ID]
    assert found[:4] == found[40:44] and len({*found[:4]}) == 4 and {*found[4:40], *found[44:]} == {None}
    with pytest.raises(ValueError, match="near_duplicates=vectors compares precomputed features, and photos has none"):
        DataSpec("photos", near_duplicates="vectors").with_groups(DatasetDict({"train": make_pairs(3)}))


def test_groups_of_a_stream_are_those_of_its_column(caplog, tmp_path):
    """Its pairs are equal where those of the same rows that are not streamed are, and different elsewhere."""
    events = ["a", "A", None, "b", "", "a", None, "b"]
    split = make_pairs(8).add_column("event", events)
    whole = DataSpec("photos", group_column="event").with_groups(DatasetDict({"train": split}))["train"]
    spec = DataSpec("photos", group_column="event", near_duplicates="auto")
    with caplog.at_level(logging.INFO, logger="hf_vse"):
        found = spec.with_groups(IterableDatasetDict({"train": split.to_iterable_dataset(num_shards=2)}))["train"]
    assert "images of one event are no negatives of each other; near-duplicates are not looked for" in caplog.text
    assert found.features["image"] == Image() and next(iter(found))["event"] == "a"
    of_captions = {tuple(row["captions"]): row for row in (*StreamedPairs(found), *StreamedPairs(found, seed=3))}
    rows = [of_captions[tuple(captions)] for captions in split["captions"]]
    assert isinstance(rows[0]["image"]["bytes"], bytes), "not decoded before the collator"
    ids, expected = (np.array(each) for each in ([row[IMAGE_ID] for row in rows], PairDataset(whole).image_ids))
    assert ((ids[:, None] == ids) == (expected[:, None] == expected)).all() and len({*ids}) == 6
    assert draw_groups(found, tmp_path / "groups.png") == [], "nothing is read for a picture"
    with pytest.raises(ValueError, match="group_column='vent' is not among the columns image, image_id.* of train"):
        DataSpec("photos", group_column="vent").with_groups(IterableDatasetDict({"train": found}))


def test_streams_are_not_searched_and_scenes_are_not_hashed(caplog):
    stream = IterableDatasetDict({"train": make_pairs(3).to_iterable_dataset()})
    with caplog.at_level(logging.INFO, logger="hf_vse"):
        for source, near, said in (("photos", "auto", True), ("coco", "auto", False), ("photos", "none", False)):
            caplog.clear()
            assert DataSpec(source, near_duplicates=near).with_groups(stream) is stream
            assert ("near-duplicates are not looked for in a stream" in caplog.text) is said
    for near in ("hash", "vectors"):
        for column in (None, "event"):
            with pytest.raises(
                ValueError, match=f"near_duplicates={near} compares all .* use streaming=False, or gro"
            ):
                DataSpec("photos", near_duplicates=near, group_column=column).with_groups(stream)
    with pytest.raises(ValueError, match="near_duplicates=hash looks at all photographs, and photos has none"):
        DataSpec("photos", near_duplicates="hash").with_groups(DatasetDict({"train": make_feature_pairs(3)}))
    pairs = DatasetDict({"train": make_pairs(3)})
    for source in ("scenes", "coco", "flickr30k", "flickr8k"):
        assert DataSpec(source, near_duplicates="auto").with_groups(pairs) is pairs
    assert DataSpec("photos").with_groups(pairs) is pairs
    with pytest.raises(ValueError, match="here: near_duplicates is 'some', not one of auto, hash, vectors, none"):
        DataSpec.of_dict({"near_duplicates": "some"}, "here")
