"""The harness itself: it sees every write, and a writer that is not atomic is caught."""

import signal
from pathlib import Path

import pytest

from hf_vse.files import write_json, write_text
from tests.faults.killing import names_of_points, points_to_try, run

OLD, NEW = "old " * 100, "new " * 100


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "file.txt").write_text(OLD)
    return tmp_path / "work"


def contents(folder: Path) -> set[str]:
    """What a reader finds after each possible death of a writer."""
    return {(folder / "file.txt").read_text()}


def test_a_whole_file_is_the_old_or_the_new_one_at_every_point(folder):
    def action():
        write_text(folder / "file.txt", NEW)

    found = set()
    for at in points_to_try(action, folder):
        (folder / "file.txt").write_text(OLD)
        assert run(action, folder, at) == -signal.SIGKILL
        found |= contents(folder)
    assert found <= {OLD, NEW}
    assert run(action, folder) == 0 and contents(folder) == {NEW}


def test_a_plain_write_is_seen_torn(folder):
    def action():
        (folder / "file.txt").write_text(NEW)

    found = set()
    for at in points_to_try(action, folder):
        (folder / "file.txt").write_text(OLD)
        run(action, folder, at)
        found |= contents(folder)
    assert not found <= {OLD, NEW}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(folder):
    def action():
        write_json(folder / "file.txt", {"numbers": list(range(100))})

    for at in points_to_try(action, folder):
        assert run(action, folder, at, how="full") == 70
        assert contents(folder) == {OLD}
        assert [path.name for path in folder.iterdir()] == ["file.txt"]


def test_libraries_that_write_on_their_own_are_seen(folder):
    import faiss
    import numpy as np
    from safetensors.numpy import save_file

    def action():
        save_file({"a": np.ones(8, np.float32)}, folder / "a.safetensors")
        index = faiss.IndexFlatIP(2)
        index.add(np.ones((3, 2), np.float32))
        faiss.write_index(index, str(folder / "index.faiss"))
        np.lib.format.open_memmap(folder / "m.npy", mode="w+", dtype=np.float32, shape=(3,)).flush()

    assert run(action, folder) == 0
    names = names_of_points(folder)
    assert {"write a.safetensors", "write index.faiss", "flush m.npy"} <= set(names)
