"""Precomputed features: read as they lie on disk, laid under Arrow without a copy, and given back exactly."""

import json
import logging
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hf_vse.data.features import features_dataset, load_precomp, read_array


def normal(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def dataset_of(array: np.ndarray):
    rows = range(len(array))
    return features_dataset(array, list(rows), [[f"caption {row}"] for row in rows], [[row] for row in rows])


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(7, 4), (7, 3, 4)])
def test_read_array_maps_npy_and_safetensors(tmp_path, shape, dtype):
    array = normal(*shape, dtype=dtype)
    np.save(tmp_path / "a.npy", array)
    save_file({"features": array}, tmp_path / "a.safetensors", metadata={"model": "any"})
    for name in ("a.npy", "a.safetensors"):
        read = read_array(tmp_path / name)
        assert isinstance(read, np.memmap) and read.dtype == dtype and (read == array).all()


def test_read_array_takes_the_only_tensor_or_the_one_named(tmp_path):
    a, b = normal(3, 2), normal(5, 2)
    save_file({"pooled": a}, tmp_path / "one.safetensors")
    save_file({"a": a, "b": b, "features": a + 1}, tmp_path / "three.safetensors")
    assert (read_array(tmp_path / "one.safetensors") == a).all()
    assert (read_array(tmp_path / "three.safetensors") == a + 1).all()
    assert (read_array(tmp_path / "three.safetensors", key="b") == b).all()
    with pytest.raises(ValueError, match=r"three.safetensors: it has no tensor 'c' but \['a', 'b', 'features'\]"):
        read_array(tmp_path / "three.safetensors", key="c")


def test_read_array_converts_bfloat16(tmp_path):
    array = np.array([[1.0, -2.5], [0.15625, 3e38]], np.float32)
    halves = (array.view(np.uint32) >> 16).astype(np.uint16)
    header = json.dumps({"features": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + halves.tobytes())
    read = read_array(tmp_path / "a.safetensors")
    assert read.dtype == np.float32 and np.allclose(read, array, rtol=2**-7) and (read[0] == array[0]).all()


def save_and_read(path: Path, array: np.ndarray) -> np.ndarray:
    np.save(path, array)
    return read_array(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 2)), "holds float64: save the features as float16 or float32"),
        (np.zeros((3, 2), np.int64), "holds int64"),
        (np.zeros(3, np.float32), r"has shape \(3,\): features are \(images, dim\) or \(images, regions, dim\)"),
        (np.zeros((2, 2, 2, 2), np.float32), r"has shape \(2, 2, 2, 2\)"),
        (np.zeros((0, 4), np.float32), r"has shape \(0, 4\)"),
        (np.array([[1, 2], [3, np.nan]], np.float32), "non-finite values .nan or inf. in row 1"),
        (np.array([[np.inf, 2], [3, 4]], np.float16), "non-finite values .nan or inf. in row 0"),
        (np.array([[None]], object), "is not a complete .npy array"),
    ],
)
def test_read_array_names_what_is_wrong(tmp_path, array, message):
    with pytest.raises(ValueError, match=f"a.npy .*{message}|a.npy {message}"):
        save_and_read(tmp_path / "a.npy", array)


def test_read_array_finds_nan_in_the_last_of_many_rows(tmp_path):
    array = np.zeros((12_345, 2), np.float32)
    array[-1, 1] = np.nan
    with pytest.raises(ValueError, match="in row 12344"):
        save_and_read(tmp_path / "a.npy", array)


def test_read_array_names_files_that_are_missing_cut_or_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="a.npy does not exist"):
        read_array(tmp_path / "a.npy")
    (tmp_path / "a.pt").touch()
    with pytest.raises(ValueError, match="a.pt must be .npy or .safetensors"):
        read_array(tmp_path / "a.pt")
    np.save(tmp_path / "cut.npy", normal(100, 10))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:500])
    with pytest.raises(ValueError, match="cut.npy is not a complete .npy array"):
        read_array(tmp_path / "cut.npy")
    save_file({"features": normal(100, 10)}, tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    for size in (4, 30, 500):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="cannot read features from .*cut.safetensors: "):
            read_array(tmp_path / "cut.safetensors")
    save_file({"features": np.zeros((2, 2), np.int64)}, tmp_path / "int.safetensors")
    with pytest.raises(ValueError, match="tensor 'features' is I64: save the features as float16 or float32"):
        read_array(tmp_path / "int.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(20, 6), (20, 3, 6)])
def test_features_dataset_gives_rows_slices_and_selections_back(shape, dtype):
    array = normal(*shape, dtype=dtype)
    plain = dataset_of(array)
    numpy = plain.with_format("numpy")
    assert plain.column_names == ["image_features", "image_id", "captions", "caption_ids"]
    assert numpy[3]["image_features"].shape == shape[1:] and numpy[3]["image_features"].dtype == np.float32
    assert (numpy[3]["image_features"] == array[3]).all()
    assert (numpy[5:9]["image_features"] == array[5:9]).all()
    rows = [7, 2, 2, 19]
    assert (numpy[rows]["image_features"] == array[rows]).all()
    chosen = numpy.select(rows)
    assert (chosen[3]["image_features"] == array[19]).all() and chosen[3]["captions"][0] == "caption 19"
    assert (numpy.select(range(4, 12))[2:5]["image_features"] == array[6:9]).all()
    kept = plain.with_format("numpy", dtype=dtype)[0]["image_features"]
    assert kept.dtype == dtype and (kept == array[0]).all()


def test_features_dataset_lies_over_the_memory_map(tmp_path):
    np.save(tmp_path / "a.npy", normal(50, 3, 8))
    array = read_array(tmp_path / "a.npy")
    column = dataset_of(array).data.table["image_features"].chunk(0)
    assert column.values.values.buffers()[1].address == array.ctypes.data


def test_features_dataset_is_fingerprinted_without_hashing_the_array(tmp_path, monkeypatch):
    array = normal(50, 8)
    monkeypatch.setattr(pickle, "dumps", None)
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", None)
    same, other = dataset_of(array), dataset_of(array + 1)
    assert dataset_of(array)._fingerprint == same._fingerprint != other._fingerprint


def test_reading_a_batch_takes_milliseconds():
    features = dataset_of(normal(4000, 1280, dtype=np.float16)).with_format("numpy")
    rows = np.random.default_rng(0).permutation(4000)[:128]
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        assert features[rows]["image_features"].shape == (128, 1280)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.1  # about 0.005 on two idle cores; copying the column would take longer


def test_features_dataset_needs_one_entry_per_row():
    with pytest.raises(ValueError, match="features have 3 rows but there are 2 captions: give one per row"):
        features_dataset(normal(3, 2), [1, 2, 3], [["a"], ["b"]], [[0], [1], [2]])


def precomp(folder: Path, name: str, array: np.ndarray, captions: list[str]) -> None:
    np.save(folder / f"{name}_ims.npy", array)
    (folder / f"{name}_caps.txt").write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")


def numbered(count: int) -> list[str]:
    return [f"caption {number}" for number in range(count)]


def test_load_precomp_reads_one_row_per_image(tmp_path):
    for name in ("train", "dev", "test", "testall"):
        precomp(tmp_path, name, normal(3, 4), numbered(15))
    pairs = load_precomp(tmp_path)
    assert list(pairs) == ["train", "validation", "test", "testall"]
    row = pairs["validation"].with_format("numpy")[1]
    assert list(row["captions"]) == [f"caption {number}" for number in range(5, 10)]
    assert list(row["caption_ids"]) == [5, 6, 7, 8, 9] and (row["image_features"] == normal(3, 4)[1]).all()


def test_load_precomp_reduces_images_repeated_for_every_caption(tmp_path):
    array = normal(4, 2, 3)
    precomp(tmp_path, "test", np.repeat(array, 5, axis=0), numbered(20))
    test = load_precomp(tmp_path)["test"].with_format("numpy")
    assert len(test) == 4 and len(set(test["image_id"])) == 4
    assert (np.stack([test[row]["image_features"] for row in range(4)]) == array).all()
    assert list(test[3]["captions"]) == [f"caption {number}" for number in range(15, 20)]


@pytest.mark.parametrize("count", [10, 7])
def test_load_precomp_takes_different_rows_as_pairs(tmp_path, count):
    precomp(tmp_path, "train", normal(count, 4), numbered(count))
    train = load_precomp(tmp_path)["train"]
    assert len(train) == count and train[6]["captions"] == ["caption 6"]


def test_load_precomp_drops_empty_captions_but_keeps_the_alignment(tmp_path, caplog):
    captions = numbered(10)
    captions[1] = " "
    captions[5:] = [""] * 5
    precomp(tmp_path, "train", normal(2, 4), captions)
    with caplog.at_level(logging.WARNING):
        train = load_precomp(tmp_path)["train"]
    assert len(train) == 1 and train[0]["caption_ids"] == [0, 2, 3, 4]
    assert "6 empty captions left out" in caplog.records[0].getMessage()


def test_load_precomp_breaks_lines_only_at_newlines(tmp_path):
    precomp(tmp_path, "train", normal(1, 4), ["a\u2028b", "c\x0bd", "e", "f", "g"])
    assert load_precomp(tmp_path)["train"][0]["captions"][0] == "a\u2028b"


def test_load_precomp_names_what_does_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="has none of train_ims.npy, dev_ims.npy"):
        load_precomp(tmp_path)
    precomp(tmp_path, "train", normal(3, 4), numbered(8))
    with pytest.raises(ValueError, match="train_caps.txt has 8 captions for 3 image rows: there must be five per row"):
        load_precomp(tmp_path)
    precomp(tmp_path, "train", normal(2, 4), [""] * 10)
    with pytest.raises(ValueError, match="train_caps.txt holds no caption"):
        load_precomp(tmp_path)
    (tmp_path / "train_caps.txt").unlink()
    with pytest.raises(FileNotFoundError, match="train_caps.txt does not exist: it must hold the captions"):
        load_precomp(tmp_path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(3000, 4), (3000, 2, 4)])
def test_every_row_is_looked_at(tmp_path, monkeypatch, shape, dtype):
    array = normal(*shape, dtype=dtype)
    np.save(tmp_path / "f.npy", array)
    assert len(read_array(tmp_path / "f.npy")) == 3000
    monkeypatch.setattr("hf_vse.data.features._CHUNK_BYTES", 700)  # with a last, shorter chunk
    for row, value in ((0, np.nan), (1, np.inf), (1234, -np.inf), (2999, np.nan)):
        bad = array.copy()
        bad[row, ..., -1] = value
        np.save(tmp_path / "f.npy", bad)
        with pytest.raises(ValueError, match=rf"f.npy has non-finite values \(nan or inf\) in row {row}: compute"):
            read_array(tmp_path / "f.npy")


def test_the_largest_numbers_are_numbers(tmp_path):
    for dtype in (np.float16, np.float32):
        np.save(tmp_path / "f.npy", np.full((2, 2), np.finfo(dtype).max, dtype))
        assert (read_array(tmp_path / "f.npy") == np.finfo(dtype).max).all()
