"""The photographs of a folder: found in one order, and by one process for all."""

from pathlib import Path

import pytest

from hf_vse.search import build
from hf_vse.search.build import listed_images, told_to_all
from hf_vse.search.gallery_images import files_below
from tests.processes import in_processes
from tests.search.plain import PlainEncoder, fill

NAMES = ["b.png", "a/1.png", "a.png", "a/b/2.png", "a b/3.png", ".hidden/4.png", "a-/5.png", "A/6.png", "ä.png"]


def test_files_come_in_the_order_of_paths(tmp_path):
    folder = fill(tmp_path / "photographs", NAMES)
    (folder / "link").symlink_to(folder / "a")
    (folder / "link.png").symlink_to(folder / "b.png")
    (folder / "broken.png").symlink_to(folder / "nothing")
    expected = sorted(path for path in folder.rglob("*") if path.is_file())
    assert [folder / name for name in files_below(folder)] == expected
    assert len(expected) == len(NAMES) + 1 and list(files_below(tmp_path / "photographs" / "A")) == ["6.png"]


def list_together(rank: int, folder: str) -> None:
    build.TOLD_AT_ONCE = 4
    encoder = PlainEncoder()
    if rank == 1:  # looks at no file of its own
        build.of_folder = None
    images, facts = listed_images(folder, encoder, None)
    assert [image.item["file"] for image in images] == list(files_below(Path(folder)))
    assert facts["digest"] == encoder.digest and facts["root"] == folder
    for error in (ValueError("line 3 is wrong"), FileNotFoundError("no image")):

        def find(error=error):
            raise error

        with pytest.raises(type(error), match=str(error)):
            told_to_all(find if rank == 0 else None)


def test_one_process_lists_for_all(tmp_path):
    in_processes(2, list_together, str(fill(tmp_path / "photographs", NAMES)))
