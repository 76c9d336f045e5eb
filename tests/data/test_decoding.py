"""One photograph: every kind of pixel becomes the picture that was meant, and no file makes more of itself."""

import io
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import CLIPImageProcessorPil

from hf_vse.data import decoding
from hf_vse.data.collator import VSECollator
from hf_vse.data.decoding import BrokenImageError, decode_image, groups_in_flight
from hf_vse.data.images import find_broken_images
from hf_vse.data.transforms import Augmentation, needed_side
from hf_vse.embed.batches import readable_batches
from hf_vse.model.processing_vse import VSEProcessor

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)  # black to white


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey_of(data: bytes) -> np.ndarray:
    pixels = np.asarray(decode_image({"bytes": data, "path": None}))
    assert pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(int)


def raw(values: np.ndarray) -> PIL.Image.Image:
    return PIL.Image.fromarray(values)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        (RAMP.astype(">u2") * 257, "TIFF"),
        (RAMP.astype(np.uint16) * 257, "PPM"),
        (RAMP.astype(np.int32), "TIFF"),
        (RAMP.astype(np.int32) * 257, "TIFF"),
        (RAMP.astype(np.float32) / 255, "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32) * 257, "TIFF"),
        (RAMP.astype(np.float32) / 255, "PPM"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.dtype} to {value.max():g}",
)
def test_pixels_of_many_bits_keep_their_greys(values, kind):
    assert np.abs(grey_of(encoded(raw(values), kind)) - RAMP).max() <= 1
    assert np.abs(np.asarray(decode_image(raw(values)))[..., 0].astype(int) - RAMP).max() <= 1


def pgm(values: np.ndarray, white: int) -> bytes:
    return f"P5 8 8 {white}\n".encode() + values.astype(">u2").tobytes()


def test_other_ranges_are_those_that_the_file_names():
    assert np.abs(grey_of(pgm(RAMP.astype(int) * 4, 1020)) - RAMP).max() <= 1
    data = bytearray(encoded(raw(RAMP.astype(np.uint16) * 257), "TIFF", tiffinfo={262: 0}))
    place = data.index((262).to_bytes(2, "little"))
    data[place + 8 : place + 10] = (0).to_bytes(2, "little")  # white is zero
    assert np.abs(grey_of(bytes(data)) - (255 - RAMP.astype(int))).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.int32) - 1,
        RAMP.astype(np.int32) * 70_000,
        RAMP.astype(np.float32) - 100,
        RAMP.astype(np.float32) * 1e6,
        np.where(RAMP == 0, np.nan, RAMP).astype(np.float32),
        np.where(RAMP == 0, np.inf, RAMP).astype(np.float32),
    ],
    ids=["int negative", "int large", "float negative", "float large", "nan", "inf"],
)
def test_pixels_of_unknown_range_are_refused(values, tmp_path):
    raw(values).save(tmp_path / "a.tif")
    with pytest.raises(
        BrokenImageError, match=r"a.tif: (float|32-bit) pixels from .* to .*: save it with 8 or 16 bits"
    ):
        decode_image(tmp_path / "a.tif")
    assert find_broken_images([tmp_path / "a.tif"])  # before the run


def test_what_was_assumed_of_a_range_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(decoding, "_said", set())
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            decode_image(raw(RAMP.astype(np.float32) / 255), "first")
        decode_image(raw(RAMP.astype(np.uint16)))  # its format says it
    assert [record.getMessage() for record in caplog.records] == [
        "first: pixel values of this and similar images are read as 0 (black) to 1 (white)"
    ]


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8).repeat(8, 0).repeat(8, 1)


def palette(transparency: int | bytes) -> bytes:
    return encoded(raw(COLOURS).quantize(4), "PNG", transparency=transparency)


@pytest.mark.parametrize(
    ("data", "allowed"),
    [
        (palette(1), 0),
        (palette(b"\x00\x80\xff\xff"), 0),
        (encoded(raw(COLOURS).convert("RGBA"), "PNG"), 0),
        (encoded(raw(COLOURS).convert("CMYK"), "TIFF"), 0),
        (encoded(raw(COLOURS).convert("CMYK"), "JPEG", quality=100), 4),
        (encoded(raw(COLOURS), "JPEG", quality=100, subsampling=0), 4),
        (encoded(raw(COLOURS), "WEBP", lossless=True), 0),
        (encoded(raw(COLOURS), "GIF"), 0),
        (encoded(raw(COLOURS), "BMP"), 0),
    ],
    ids=["P", "P bytes", "RGBA", "CMYK", "CMYK JPEG", "YCbCr JPEG", "WEBP", "GIF", "BMP"],
)
def test_colours_are_those_of_the_picture(data, allowed):
    found = np.asarray(decode_image({"bytes": data, "path": None})).astype(int)
    assert np.abs(found - COLOURS).max() <= allowed


def test_greys_with_alpha_and_one_bit():
    alpha = PIL.Image.merge("LA", [raw(RAMP), raw(255 - RAMP)])
    assert (grey_of(encoded(alpha, "PNG")) == RAMP).all()
    assert (grey_of(encoded(raw(RAMP).point(lambda grey: 255 * (grey > 127), "1"), "PNG")) == 255 * (RAMP > 127)).all()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_every_orientation_is_turned_upright(orientation):
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # what Pillow calls the way back, applied to the picture
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored = raw(RAMP[:5])
    found = np.asarray(decode_image({"bytes": encoded(stored, "PNG", exif=exif), "path": None}))[..., 0]
    assert (found == np.asarray(stored.transpose(turns[orientation]))).all()


# What is not opened


NOT_READ = {
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "PDF": b"%PDF-1.4\n",
    "Photoshop": b"8BPS\0\1" + bytes(40),
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(40),
    "SVG": b"\n<svg xmlns='http://www.w3.org/2000/svg'/>",
}


@pytest.mark.parametrize("kind", NOT_READ)
def test_other_formats_are_named_and_reach_no_program(tmp_path, monkeypatch, kind):
    def forbidden(*_, **__):
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setattr(subprocess, "check_call", forbidden)
    file = tmp_path / "photo.jpg"
    file.write_bytes(NOT_READ[kind])
    with pytest.raises(BrokenImageError, match=f"photo.jpg: {kind} is not supported: convert it"):
        decode_image(file)
    assert f"{kind} is not supported" in find_broken_images([file])[file]


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "."):
        with pytest.raises(BrokenImageError, match="not a regular file"):
            decode_image(tmp_path / name)


# Size


def blank(width: int, height: int, kind: str = "PNG", mode: str = "L") -> bytes:
    return encoded(PIL.Image.new(mode, (width, height)), kind)


@pytest.mark.parametrize(("width", "height"), [(1, 60_000), (2, 60_000), (202, 2)])
def test_strips_are_refused(width, height):
    with pytest.raises(BrokenImageError, match=f"{width:,} x {height:,} pixels, more than 100 times as long as wide"):
        decode_image({"bytes": blank(width, height), "path": None})
    with pytest.raises(BrokenImageError, match="more than 100 times"):
        decode_image(PIL.Image.new("L", (width, height)))


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 10_000)
    assert decode_image({"bytes": blank(100, 100), "path": None}).size == (100, 100)
    for image in (PIL.Image.new("L", (101, 100)), {"bytes": blank(101, 100), "path": None}):
        with pytest.raises(BrokenImageError, match="101 x 100 pixels, more than 10,000: make it smaller"):
            decode_image(image)
    sizes = [decode_image({"bytes": blank(side, side, "JPEG"), "path": None}).width for side in (100, 150, 800)]
    assert sizes == [100, 75, 100]  # a JPEG is decoded at a half, a quarter or an eighth
    with pytest.raises(BrokenImageError, match="900 x 900 pixels, more than 10,000"):
        decode_image({"bytes": blank(900, 900, "JPEG"), "path": None})


def noise(width: int, height: int, kind: str) -> bytes:
    rng = np.random.default_rng(0)
    small = raw(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return encoded(small.resize((width, height), PIL.Image.Resampling.BICUBIC), kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_ordinary_photographs_keep_every_bit_and_large_ones_nearly(kind):
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    assert needed_side(processor) == 32
    for (width, height), size in {(255, 300): (255, 300), (512, 640): None, (704, 600): None}.items():
        value = {"bytes": noise(width, height, kind), "path": None}
        whole, shrunk = decode_image(value), decode_image(value, needed=32)
        pixels = [processor([image], return_tensors="pt")["pixel_values"] for image in (whole, shrunk)]
        if size:
            assert shrunk.size == size and torch.equal(*pixels)
        else:
            assert 4 * 32 <= min(shrunk.size) < 8 * 32
            assert (pixels[0] - pixels[1]).abs().mean() < 0.02  # of a standard deviation


def test_the_side_that_is_needed_is_that_before_the_crop():
    sides = {"size": {"shortest_edge": 256}, "crop_size": 224}
    assert needed_side(CLIPImageProcessorPil(**sides)) == 256
    assert needed_side(CLIPImageProcessorPil(size={"height": 8, "width": 12}, do_center_crop=False)) == 12
    assert needed_side(CLIPImageProcessorPil(**sides, do_resize=False)) is None


def test_few_are_held_at_once(monkeypatch):
    monkeypatch.setattr(decoding, "PIXELS_IN_FLIGHT", 100)
    begun = []

    def images():
        for side in (9, 4, None, 20, 5):
            begun.append(side)
            yield None if side is None else PIL.Image.new("L", (side, side))

    groups = []
    for group in groups_in_flight(images()):
        groups.append([image and image.width for image in group])
        assert len(begun) <= sum(map(len, groups)) + 1
    assert groups == [[9, 4, None], [20], [5]]
    assert list(groups_in_flight([])) == []


@pytest.fixture
def processor(tokenizer):
    return VSEProcessor(CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=16), tokenizer)


def test_batches_in_parts_are_the_batches(processor, monkeypatch):
    values = [{"bytes": noise(64, 64 + 8 * row, "PNG"), "path": f"{row}.png"} for row in range(5)]
    values[2] = {"bytes": b"", "path": "broken.png"}
    rows = [{"image": value, "caption": "red", "image_id": row, "draw": row} for row, value in enumerate(values)]

    def everything():
        images = [{"image": value} for value in values]
        batches = list(readable_batches(images, lambda good: dict(processor(images=good)), 5))
        lists = list(readable_batches(images, lambda good: good, 5))
        return [
            *batches[0],
            [image.size for image in lists[0][1]],
            VSECollator(processor, max_broken_share=1)(rows),
            VSECollator(processor, Augmentation(), max_broken_share=1)(rows),
        ]

    at_once = everything()
    monkeypatch.setattr(decoding, "PIXELS_IN_FLIGHT", 1)
    parts = everything()
    assert at_once[0].tolist() == parts[0].tolist() == [True, True, False, True, True]
    assert torch.equal(at_once[1]["pixel_values"], parts[1]["pixel_values"]) and at_once[2] == parts[2]
    for whole, part in zip(at_once[3:], parts[3:], strict=True):
        assert all(torch.equal(whole[name], part[name]) for name in whole) and whole["image_ids"].tolist() == [
            0,
            1,
            3,
            4,
        ]


MEMORY = """
import resource, sys
from hf_vse.data.decoding import decode_image, groups_in_flight
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for group in groups_in_flight(decode_image(sys.argv[1], needed=int(sys.argv[2]) or None) for _ in range(8)):
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF"), reason="no such measure")
@pytest.mark.parametrize(("needed", "most"), [(0, 220), (32, 60)])
def test_memory_is_that_of_few_photographs_however_many_there_are(tmp_path, needed, most):
    """Eight of 12 MP: 290 MB if all were held."""
    path = tmp_path / "large.jpg"
    path.write_bytes(blank(3000, 4000, "JPEG", "RGB"))
    environment = os.environ | {"PYTHONPATH": str(Path(decoding.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(path), str(needed)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.splitlines()[-1]) < most  # MB
