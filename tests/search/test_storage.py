"""What stays in the folder of a gallery, what goes, and what is taken over."""

import errno
import io
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hf_vse.search import build, storage
from hf_vse.search.build import build_gallery
from hf_vse.search.gallery import GalleryIndex
from hf_vse.search.header import FORMAT
from tests.search.plain import PlainEncoder, fill

NAMES = [f"{row:02d}.png" for row in range(12)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("hf_vse.embed.store.SHARD", 5)


@pytest.fixture
def photographs(tmp_path) -> Path:
    return fill(tmp_path / "photographs", NAMES)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "index"


def index(photographs: Path, folder: Path, weights: str = "a", **options) -> tuple[GalleryIndex, int]:
    """The gallery, and how many photographs were encoded for it."""
    encoder = PlainEncoder(weights)
    return build_gallery(photographs, encoder, folder, batch_size=5, progress=False, **options), encoder.seen


def fill_text(folder: Path, names: list[str]) -> None:
    """Files that hold their names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def true_vectors(gallery: GalleryIndex, photographs: Path, weights: str = "a") -> bool:
    expected = PlainEncoder(weights).vectors_of([photographs / item["file"] for item in gallery.items])
    return np.array_equal(gallery.embeds, expected)


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_what_has_not_changed_is_not_written_again(kind, photographs, folder):
    index(photographs, folder, kind=kind, query_bank=["red"])
    before = files(folder)
    gallery, encoded = index(photographs, folder, kind=kind, query_bank=["red"])
    assert encoded == 0 and files(folder) == before and len(gallery) == 12
    gallery, encoded = index(photographs, folder, kind=kind, query_bank=["blue"])
    assert encoded == 0 and files(folder) != before


def test_photographs_that_change_places_are_seen(photographs, folder):
    """Equal size and time: as after renaming two pictures of one camera."""
    index(photographs, folder)
    one, two = photographs / "03.png", photographs / "04.png"
    assert one.stat().st_size == two.stat().st_size
    os.utime(two, ns=(one.stat().st_atime_ns, one.stat().st_mtime_ns))
    index(photographs, folder)
    status = one.stat()
    first, second = one.read_bytes(), two.read_bytes()
    for path, content in ((one, second), (two, first)):
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    gallery, encoded = index(photographs, folder)
    assert encoded == 2 and true_vectors(gallery, photographs)


def test_large_photographs_are_known_by_samples(photographs, folder):
    file = io.BytesIO()
    Image.frombytes("RGB", (260, 260), os.urandom(260 * 260 * 3)).save(file, "BMP")
    content = bytearray(file.getvalue())
    for at in (100, len(content) // 2, len(content) - 1):
        (photographs / "03.png").write_bytes(content)
        os.utime(photographs / "03.png", (1, 1))
        index(photographs, folder)
        content[at] ^= 1
        (photographs / "03.png").write_bytes(content)
        os.utime(photographs / "03.png", (1, 1))
        gallery, encoded = index(photographs, folder)
        assert encoded == 1 and true_vectors(gallery, photographs)


def test_nothing_of_anybody_is_removed(photographs, folder):
    index(photographs, folder)
    mine = [
        "notes.txt",
        "parts/engine.json",
        "versions/mine/items.jsonl",
        "parts/0/0123456789abcdef.json",
        "keys.json",
    ]
    fill_text(folder, mine)
    (folder / "parts" / "empty").mkdir()
    fill(photographs, ["new.png"])
    gallery, _ = index(photographs, folder)
    assert len(gallery) == 13
    assert all((folder / name).read_text() == name for name in mine)
    assert (folder / "parts" / "empty").is_dir()


@pytest.mark.parametrize("name", ["items-*.arrow", "vectors-*.safetensors"])
@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\xff\xfe garbage", None], ids=str)
def test_a_damaged_gallery_is_made_anew(name, content, photographs, folder, caplog):
    index(photographs, folder)
    [path] = folder.glob(f"versions/*/{name}")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    gallery, encoded = index(photographs, folder)
    assert true_vectors(gallery, photographs) and len(gallery) == 12
    assert encoded == 12 and "is not used" in caplog.text
    assert index(photographs, folder)[1] == 0, "the new one is whole"


@pytest.mark.parametrize("content", [b"", b"null", b"\xff\xfe garbage", "flip"], ids=str)
def test_a_damaged_part_is_encoded_anew(content, photographs, folder, caplog, monkeypatch):
    with monkeypatch.context() as interrupted, pytest.raises(ZeroDivisionError):
        interrupted.setattr(build, "write_gallery", lambda *arguments, **options: 1 / 0)
        index(photographs, folder)
    path = max(folder.glob("parts/*/*.arrow"))
    held = path.read_bytes()
    path.write_bytes(held[:-3] + b"\0" + held[-2:] if content == "flip" else content)
    gallery, encoded = index(photographs, folder)
    assert encoded in (2, 5) and true_vectors(gallery, photographs)
    assert "is damaged" in caplog.text


@pytest.mark.parametrize(
    "header", [{"format": 2, "items": 1, "dim": 8}, {"format": FORMAT}, {"name": "my holidays"}, []]
)
def test_a_gallery_of_another_program_is_left_alone(header, photographs, folder):
    fill_text(folder, ["items.jsonl", "keys.json"])
    (folder / "gallery.json").write_text(json.dumps(header))
    before = files(folder)
    with pytest.raises(ValueError, match="gallery.json"):
        index(photographs, folder)
    assert files(folder) == before


def test_an_empty_folder_stays_where_nothing_comes(photographs, folder):
    folder.mkdir()
    for path in photographs.iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="12 of 12 images are missing or broken"):
        index(photographs, folder)
    assert folder.is_dir() and not list(folder.iterdir())


def test_a_newer_gallery_is_left_alone(photographs, folder):
    index(photographs, folder)
    header = json.loads((folder / "gallery.json").read_text()) | {"format": FORMAT + 1}
    (folder / "gallery.json").write_text(json.dumps(header))
    before = files(folder)
    with pytest.raises(ValueError, match="made by a newer hf_vse"):
        index(photographs, folder)
    assert files(folder) == before


def test_what_is_left_out_is_counted_and_named(photographs, folder, caplog):
    fill(photographs, ["IMG_1.HEIC", "trip/2.avif", "film.mp4", "metadata.csv"])
    lines = [{"file_name": "./00.png", "year": 1}, {"file_name": "none.png"}, {"file_name": "00.png", "year": 2}]
    (photographs / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    gallery, _ = index(photographs, folder)
    assert gallery.items[0] == {"file": "00.png", "year": 2}
    assert gallery.facts["passed_over"] == {"count": 2, "first": ["IMG_1.HEIC", "trip/2.avif"]}
    assert gallery.facts["unmatched"] == {"count": 1, "first": ["none.png"]}
    assert gallery.facts["repeated"] == {"count": 1, "first": ["00.png"]}
    for said in (
        "2 (IMG_1.HEIC, trip/2.avif) are pictures of a kind",
        "1 (none.png) name no image",
        "metadata.csv is not",
    ):
        assert said in caplog.text


def test_a_field_of_metadata_does_not_take_the_place_of_the_file(photographs, folder):
    (photographs / "metadata.jsonl").write_text('{"file_name": "00.png", "file": "../../secret.png"}')
    assert index(photographs, folder)[0].items[0] == {"file": "00.png"}


def test_names_that_are_no_unicode(photographs, folder, caplog):
    """Of old disks: bytes that no UTF-8 decoder takes."""
    caplog.set_level(logging.CRITICAL, "hf_vse")  # a report of several processes cannot hold such a name
    name = os.fsdecode(b"caf\xe9.png")
    try:
        fill(photographs, [name])
    except OSError:
        pytest.skip("this disk takes no such name")
    (photographs / name).write_bytes(b"")
    gallery, _ = index(photographs, folder, max_broken_share=0.5)
    assert gallery.facts["broken"] == [name]
    fill(photographs, [name])
    gallery, encoded = index(photographs, folder)
    assert encoded == 1 and gallery.items[-1] == {"file": name} and true_vectors(gallery, photographs)


def test_vectors_that_are_no_numbers_are_refused(photographs, folder):
    encoder = PlainEncoder()
    encoder.vector = lambda content: np.full(8, np.nan, np.float32)
    with pytest.raises(ValueError, match="plain gives what is not a number"):
        build_gallery(photographs, encoder, folder, progress=False)
    assert not folder.exists()


def test_a_gallery_that_learns_more_is_not_taken_for_what_it_was(photographs, folder):
    gallery, _ = index(photographs, folder)
    gallery.learn_hubs(PlainEncoder().query(["red"]))
    gallery.save(folder)
    assert GalleryIndex.load(folder).hubs is not None
    again, encoded = index(photographs, folder)
    assert again.hubs is None, "an index without a query bank has no hubs"
    assert encoded == 0, "the vectors are still known"


def test_many_vectors_are_checked_where_they_are_read_anyway(photographs, folder, monkeypatch):
    """They are not read as a whole to answer one query, but before they are taken into another gallery."""
    index(photographs, folder)
    [path] = folder.glob("versions/*/vectors-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="vectors-.*safetensors is damaged"):
        GalleryIndex.load(folder)
    monkeypatch.setattr(storage, "UNREAD_ABOVE", 0)
    assert len(GalleryIndex.load(folder)) == 12
    gallery, encoded = index(photographs, folder)
    assert encoded == 12 and true_vectors(gallery, photographs)


def test_a_damaged_bank_or_compression_is_one_line(tmp_path):
    from hf_vse.embed.hub_correction import QueryBank
    from hf_vse.search.compression import Compression

    for content in (b"", b"garbage" * 10, b"\x02\0\0\0\0\0\0\0{}"):
        (tmp_path / "file").write_bytes(content)
        for kind in (QueryBank, Compression):
            with pytest.raises(ValueError, match="file is damaged or of another kind"):
                kind.load(tmp_path / "file")


def test_too_little_room_is_found_before_the_work(photographs, folder, monkeypatch):
    monkeypatch.setattr("hf_vse.files.shutil.disk_usage", lambda path: SimpleNamespace(free=12 * 8 * 4 - 1))
    encoder = PlainEncoder()
    with pytest.raises(OSError, match=r"index .*the disk has 0 MB free, at least"):
        build_gallery(photographs, encoder, folder, progress=False)
    with pytest.raises(OSError, match=r"index .*the disk has 0 MB free, at least"):
        GalleryIndex(np.eye(100, 16)[:16]).save(folder)
    assert encoder.seen == 0 and not folder.exists()


def test_a_disk_without_locks_is_said(photographs, folder, monkeypatch, caplog):
    def without_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(storage.fcntl, "flock", without_locks)
    assert len(build_gallery(photographs, PlainEncoder(), folder)) > 0
    assert "is written without a lock" in caplog.text
