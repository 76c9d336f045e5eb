"""A gallery is the old or the new one, whenever the run that makes it dies, and the same command makes it whole."""

import os
import shutil
import signal
import threading
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

from hf_vse.errors import refusal
from hf_vse.search.build import build_gallery
from hf_vse.search.gallery import GalleryIndex
from tests.faults.killing import names_of_points, points_to_try, run
from tests.search.plain import PlainEncoder, fill

NAMES = [f"{row:02d}.png" for row in range(12)]
LOOPS = 12


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch):
    monkeypatch.setattr("hf_vse.embed.store.SHARD", 6)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # matters when the power fails, not at a kill


@pytest.fixture
def photographs(tmp_path) -> Path:
    return fill(tmp_path / "photographs", NAMES)


def change(photographs: Path) -> None:
    """One is another, two are new, one is gone."""
    fill(photographs, ["03.png"], "another")
    fill(photographs, ["03b.png", "new/20.png"])
    (photographs / "07.png").unlink()


def index(photographs: Path, folder: Path, kind: str, weights: str = "a", bank: bool = True) -> PlainEncoder:
    encoder = PlainEncoder(weights)
    options = {"batch_size": 6, "progress": False, "query_bank": ["red", "blue"] if bank else []}
    build_gallery(photographs, encoder, folder, kind=kind, **options)
    return encoder


def action_of(*arguments):
    """The same as a run of its own, which ends with one line where it is refused."""

    def action() -> int:
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        try:
            index(*arguments)
        except Exception as error:
            line = refusal(error)
            os.write(1, f"error: {line}\n".encode())
            if line is None:
                raise
            return 1
        return 0

    return action


def points_of(action, folder: Path) -> list[int]:
    """Those of the harness, and all around the rename that replaces the gallery."""
    points = points_to_try(action, folder)
    rename = 1 + names_of_points(folder).index("os.rename gallery.json")
    return sorted({*points, *range(rename - 2, rename + 4)})


def content(folder: Path) -> tuple | None:
    """All that a reader gets: what each vector stands for, the vectors, what is found; None without a gallery."""
    try:
        gallery = GalleryIndex.load(folder)
    except FileNotFoundError:
        return None
    queries = PlainEncoder().query(["a red circle", "two dogs"])
    corrections = [None] if gallery.hubs is None else [None, "qbnorm"]
    found = [gallery.search(queries, k=5, correction=correction)[1] for correction in corrections]
    rows = {item["file"]: gallery.embeds[row].tobytes() for row, item in enumerate(gallery.items)}
    return rows, gallery.facts, str(found)


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).parts[0] for path in folder.iterdir())


CASES = [
    ("exact", "nothing"),
    ("exact", "other photographs"),
    ("exact", "other weights"),
    ("hnsw", "other photographs"),
    ("hnsw", "other photographs, grows"),
]


@pytest.mark.parametrize(("kind", "before"), CASES)
def test_killed_anywhere_the_gallery_is_the_old_or_the_new_one(kind, before, photographs, tmp_path, monkeypatch):
    folder, kept = tmp_path / "work" / "index", tmp_path / "kept"
    bank = "grows" not in before
    if not bank:  # by a segment, as large galleries do
        monkeypatch.setattr("hf_vse.search.change.GROWS_ABOVE", 0)
        monkeypatch.setattr("hf_vse.search.change.MOST_DEAD", 1.0)
    if before != "nothing":
        index(photographs, kept, kind, "b" if before == "other weights" else "a", bank)
    if before.startswith("other photographs"):
        change(photographs)
    index(photographs, tmp_path / "whole", kind, bank=bank)
    old, new = content(kept), content(tmp_path / "whole")
    assert old != new

    def restore():
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.parent.mkdir()
        if kept.exists():
            shutil.copytree(kept, folder)

    restore()
    action, found = action_of(photographs, folder, kind, "a", bank), []
    for at in points_to_try(action, folder):
        restore()
        assert run(action, folder, at) == -signal.SIGKILL
        point = names_of_points(folder)[-1]
        found.append(content(folder))
        assert found[-1] in (old, new), point
        encoder = index(photographs, folder, kind, bank=bank)
        assert content(folder) == new, point
        assert (GalleryIndex.load(folder).alive is None) == bank, "the one that grows keeps its dead rows"
        assert names_in(folder) == ["gallery.json", "versions"], point
        assert len(list((folder / "versions").iterdir())) == 1
        assert "versions" not in point or encoder.seen == 0, "what was encoded is kept"
    assert found[0] == old and found[-1] == new


@pytest.mark.parametrize("kind", ["hnsw"])
def test_on_a_full_disk_the_old_gallery_stays_and_what_was_encoded(kind, photographs, tmp_path):
    folder, kept = tmp_path / "work" / "index", tmp_path / "kept"
    index(photographs, kept, kind)
    old = content(kept)
    change(photographs)
    index(photographs, tmp_path / "whole", kind)
    new = content(tmp_path / "whole")
    folder.parent.mkdir()
    shutil.copytree(kept, folder)
    action = action_of(photographs, folder, kind)
    refused = 0
    for at in points_to_try(action, folder):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        code = run(action, folder, at, how="full")
        said = (folder.parent / "output.log").read_text()
        assert code == (1 if content(folder) == old else 0), said
        if code == 1:
            refused += 1
            assert said.splitlines()[-1].startswith(f"error: index {folder}: the disk is full; make room"), said
            assert len(list((folder / "versions").iterdir())) == 1, "what is not finished goes"
        index(photographs, folder, kind)
        assert content(folder) == new
    assert refused > 5


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_readers_see_one_gallery_or_the_other_while_it_is_replaced(kind, photographs, tmp_path):
    folder = tmp_path / "index"
    index(photographs, folder, kind, "a")
    index(photographs, tmp_path / "other", kind, "b")
    allowed, seen, wrong, stop = [content(folder), content(tmp_path / "other")], set(), [], threading.Event()
    mapped = GalleryIndex.load(folder)
    vectors = mapped.embeds.copy()

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add(allowed.index(content(folder)))
            except Exception as error:
                wrong.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for loop in range(LOOPS):
        index(photographs, folder, kind, "ba"[loop % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert not wrong and seen == {0, 1}
    assert np.array_equal(mapped.embeds, vectors), "who has the old one mapped into memory keeps it"


def test_only_one_writes(photographs, tmp_path):
    from hf_vse.search.storage import locked

    with locked(tmp_path / "index"), pytest.raises(ValueError, match="is being written by another process"):
        index(photographs, tmp_path / "index", "exact")
    assert not (tmp_path / "index").exists()
