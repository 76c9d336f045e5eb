"""`evaluate --embeddings` and `features`, killed at every write: the same command then ends as if it had not been."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from hf_vse.cli.main import main
from hf_vse.embed.adapters.vse import VSEEncoder
from hf_vse.embed.features import extract_features
from hf_vse.evaluation.evaluator import embed_pairs
from tests.conftest import make_pairs
from tests.faults.killing import SOAK, names_of_points, points_to_try, run


@pytest.fixture(scope="module")
def encoder(tiny_model):
    torch.set_num_threads(1)  # a forked process has no other threads
    return VSEEncoder.from_pretrained(tiny_model, "cpu")


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def some_of(points: list[int]) -> list[int]:
    """Of runs that take a second each, every third point."""
    return points if SOAK else points[::3]


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def test_kept_vectors_after_a_kill_are_those_of_an_uninterrupted_run(encoder, folder):
    split = make_pairs(6, captions=2)
    whole = embed_pairs(encoder, split, progress=False)

    def action():
        embed_pairs(encoder, split, batch_size=2, progress=False, keep=folder)

    points = points_to_try(action, folder)
    assert any(".arrow" in name for name in names_of_points(folder))
    for at in points:
        emptied(folder)
        assert run(action, folder, at) == -signal.SIGKILL
        again = embed_pairs(encoder, split, batch_size=2, progress=False, keep=folder)
        torch.testing.assert_close(again.image_embeds, whole.image_embeds, rtol=0, atol=1e-6)
        torch.testing.assert_close(again.text_embeds, whole.text_embeds, rtol=0, atol=1e-6)
        assert again.text_to_image.equal(whole.text_to_image) and again.broken == whole.broken
        for kind in ("images", "texts"):  # those before the kill, and the rest
            assert 1 <= len(list(folder.glob(f"{kind}-*/[!.]*.arrow"))) <= 2


def test_kept_vectors_on_a_full_disk_say_so_and_are_finished_later(encoder, folder):
    split = make_pairs(4, captions=1)
    whole = embed_pairs(encoder, split, progress=False)

    def action():
        embed_pairs(encoder, split, progress=False, keep=folder)

    for at in some_of(points_to_try(action, folder)):
        emptied(folder)
        assert run(action, folder, at, how="full") in (0, 70)  # 0 where only a flush was left
        again = embed_pairs(encoder, split, progress=False, keep=folder)
        torch.testing.assert_close(again.image_embeds, whole.image_embeds, rtol=0, atol=1e-6)


def test_an_array_of_features_is_whole_or_not_there(encoder, folder):
    rows = make_pairs(6).select_columns(["image"])
    prepare = encoder.processor.image_processor

    def action():
        extract_features(encoder.model, prepare, rows, folder / "f.npy", batch_size=2, progress=False)

    action()
    whole = np.load(folder / "f.npy").copy()
    emptied(folder)
    for at in points_to_try(action, folder):
        emptied(folder)
        assert run(action, folder, at) == -signal.SIGKILL
        if (folder / "f.npy").exists():
            np.testing.assert_array_equal(np.load(folder / "f.npy"), whole)
        action()
        np.testing.assert_allclose(np.load(folder / "f.npy"), whole, atol=2e-3)


def test_a_folder_of_features_is_the_old_or_the_new_one(tiny_model, photographs, folder):
    words = ["features", "--dataset", "imagefolder", "--data_dir", str(photographs), "--model", str(tiny_model)]

    def action() -> int:
        torch.set_num_threads(1)
        return main([*words, "--output", str(folder / "features"), "--quiet"])

    assert action() == 0
    whole = load_from_disk(str(folder / "features"))["train"].with_format("numpy")["image_features"][:]
    for at in some_of(points_to_try(action, folder)):
        assert run(action, folder, at) == -signal.SIGKILL
        if (folder / "features").exists():  # between two renames it is not
            found = load_from_disk(str(folder / "features"))["train"].with_format("numpy")["image_features"][:]
            np.testing.assert_array_equal(found, whole)
        assert action() == 0
        found = load_from_disk(str(folder / "features"))["train"].with_format("numpy")["image_features"][:]
        np.testing.assert_allclose(found, whole, atol=2e-3)
        assert all(name.startswith(("features/", ".")) for name in names_in(folder)), names_in(folder)
