"""Broken images: every kind is recognised in one line, sound ones are not suspected, and a few do not stop a run."""

import io
import logging
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, Features, Image

from hf_vse.data.images import (
    BrokenImageError,
    BrokenImages,
    check_broken_share,
    decode_image,
    find_broken_images,
    find_broken_rows,
    image_keys,
)


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> PIL.Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def encoded(image: PIL.Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_decode_image_takes_bytes_paths_urls_and_pil_images(tmp_path):
    file = tmp_path / "a.png"
    picture().save(file)
    expected = np.asarray(picture())
    values = [
        file,
        str(file),
        {"bytes": None, "path": str(file)},
        {"bytes": file.read_bytes(), "path": "elsewhere.png"},
        {"path": f"file://{file}", "bytes": None},
        picture(),
    ]
    for value in values:
        image = decode_image(value)
        assert image.mode == "RGB" and (np.asarray(image) == expected).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_decode_image_gives_rgb_from_every_mode(mode):
    data = encoded(picture().convert("L").convert("LA") if mode == "LA" else picture(mode=mode), "TIFF")
    assert decode_image({"bytes": data, "path": None}).mode == "RGB"


def test_decode_image_turns_the_image_upright():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    data = encoded(picture(size=(40, 30)), exif=exif)
    assert PIL.Image.open(io.BytesIO(data)).size == (40, 30)
    assert decode_image({"bytes": data, "path": None}).size == (30, 40)
    assert decode_image(PIL.Image.open(io.BytesIO(data))).size == (30, 40)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_decode_image_forgives_damaged_exif():
    data = encoded(picture(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12")
    assert decode_image({"bytes": data, "path": None}).size == (40, 30)


def test_decode_image_names_file_and_reason_in_one_line(tmp_path, monkeypatch):
    sound = encoded(picture(size=(200, 200)))
    cases = {
        "missing.jpg": (None, "does not exist"),
        "empty.jpg": (b"", ""),
        "cut.jpg": (sound[: len(sound) // 2], "truncated"),
        "text.jpg": (b"<html>404</html>", "not an image"),
    }
    for name, (data, reason) in cases.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(BrokenImageError) as caught:
            decode_image(tmp_path / name)
        message = str(caught.value)
        assert name in message and reason in message and "\n" not in message
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BrokenImageError, match="row 7: .*decompression bomb"):
        decode_image({"bytes": sound, "path": None}, name="row 7")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"bytes": b"", "path": None}, "image: 0 bytes"),
        ({"bytes": None, "path": None}, "image: neither bytes nor a path"),
        (None, "image: neither"),
        (7, "image: neither"),
    ],
)
def test_decode_image_names_what_holds_no_image(value, reason):
    with pytest.raises(BrokenImageError, match=reason):
        decode_image(value)


def test_find_broken_images_finds_exactly_the_broken_ones(tmp_path):
    jpeg, png = encoded(picture(size=(200, 200))), encoded(picture(size=(200, 200)), "PNG")
    files = {
        "good.jpg": jpeg,
        "padded.jpg": jpeg + b"\0" * 500,
        "much_padded.jpg": jpeg + b"\0" * 5000,  # the mark lies before the tail: decoded to be sure
        "good.png": png,
        "good.gif": encoded(picture(), "GIF"),
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut.png": png[: len(png) // 2],
        "empty.jpg": b"",
        "text.jpg": b"not an image at all",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    broken = find_broken_images([tmp_path / name for name in [*files, "missing.jpg"]])
    reasons = {path.name: reason for path, reason in broken.items()}
    assert reasons.keys() == {"cut.jpg", "cut.png", "empty.jpg", "text.jpg", "missing.jpg"}
    assert reasons["missing.jpg"] == "file does not exist" and reasons["empty.jpg"] == "0 bytes"
    assert "truncated" in reasons["cut.jpg"] and "not an image" in reasons["text.jpg"]


def test_find_broken_images_decodes_only_what_is_suspect(tmp_path, monkeypatch):
    decoded: list[Path] = []
    monkeypatch.setattr("hf_vse.data.images.decode_image", lambda path, **_: decoded.append(path))
    (tmp_path / "a.jpg").write_bytes(encoded(picture()))
    (tmp_path / "b.jpg").write_bytes(encoded(picture())[:-2])
    find_broken_images([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    assert decoded == [tmp_path / "b.jpg"]


@pytest.mark.parametrize("shown", [False, True])
def test_find_broken_images_shows_progress_only_for_many_files(tmp_path, monkeypatch, capsys, shown):
    monkeypatch.setattr("hf_vse.data.images._PROGRESS_FROM", 2 if shown else 3)
    find_broken_images([tmp_path / f"{number}.jpg" for number in range(3)])
    assert ("checking images" in capsys.readouterr().err) == shown


def test_check_broken_share_warns_below_and_raises_above(caplog):
    with caplog.at_level(logging.WARNING):
        check_broken_share({}, 100, 0.01)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        check_broken_share({"a.jpg": "0 bytes"}, 100, 0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 100 images are missing or broken (first: a.jpg: 0 bytes) and are left out"
    ]
    with pytest.raises(ValueError, match=r"2 of 100 .*a.jpg.*max_broken_share=0.01: repair the files or raise"):
        check_broken_share({"a.jpg": "0 bytes", "b.jpg": "0 bytes"}, 100, 0.01)


def test_broken_images_warns_once_per_file_and_counts_all(caplog):
    counter = BrokenImages(max_share=0.5)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            counter.seen_broken(BrokenImageError("a.jpg: 0 bytes"))
        counter.seen_broken(BrokenImageError("b.jpg: 0 bytes"))
        counter.seen_good()
    assert (counter.seen, counter.broken) == (5, 4) and len(caplog.records) == 2


def test_broken_images_tolerates_early_ones_and_stops_at_the_share():
    counter = BrokenImages(max_share=0.01, min_seen=100)
    counter.seen_broken(BrokenImageError("first.jpg: 0 bytes"))
    for _ in range(149):
        counter.seen_good()
    with pytest.raises(ValueError, match=r"2 of 151 .*last: second.jpg.*max_broken_share=0.01: repair .* or raise"):
        counter.seen_broken(BrokenImageError("second.jpg: 0 bytes"))


def test_broken_images_judges_early_ones_once_enough_were_seen():
    counter = BrokenImages(max_share=0.01, min_seen=100)
    for number in range(5):
        counter.seen_broken(BrokenImageError(f"{number}.jpg: 0 bytes"))
    for _ in range(94):
        counter.seen_good()
    with pytest.raises(ValueError, match="5 of 100"):
        counter.seen_good()


def test_broken_images_rejects_a_share_that_is_none():
    with pytest.raises(ValueError, match="between 0 and 1, got 5"):
        BrokenImages(max_share=5)


def stored(rows: list[dict | None]) -> Dataset:
    return Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))


def test_find_broken_rows_looks_at_local_files_and_at_what_the_data_set_holds(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture()))
    (tmp_path / "b.jpg").write_bytes(b"")
    rows = [
        {"path": str(tmp_path / "a.jpg"), "bytes": None},
        {"path": str(tmp_path / "b.jpg"), "bytes": None},
        {"path": "inside.jpg", "bytes": b"no image"},
        {"path": "inside.jpg", "bytes": encoded(picture())},
        {"path": "hf://datasets/org/name/c.jpg", "bytes": None},
        None,
    ]
    broken = find_broken_rows(stored(rows), max_share=0.5)
    assert broken == {1: "0 bytes", 2: "not an image, or an unknown format", 5: "no image"}
    with pytest.raises(ValueError, match="3 of 6 images are missing or broken"):
        find_broken_rows(stored(rows), max_share=0.1)


def test_image_keys_tell_images_of_one_name_apart():
    a, b = encoded(picture(1)), encoded(picture(2))
    keys = image_keys(stored([{"path": "image.jpg", "bytes": data} for data in (a, b, a)]))
    assert keys[0] == keys[2] != keys[1]
    keys = image_keys(stored([{"path": path, "bytes": None} for path in ("x.jpg", "y.jpg", "x.jpg")]))
    assert keys[0] == keys[2] != keys[1]
    assert image_keys(stored([{"path": None, "bytes": a}])) == [None]
