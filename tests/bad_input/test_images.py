"""Photographs: each bad one alone in a folder is refused by `data show`, each odd one is read; `index` counts both."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image

from tests.bad_input.table import Case, one_clear_line

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def encoded(image: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


GREY = PIL.Image.fromarray(RAMP)
COLOUR = PIL.Image.merge("RGB", [GREY, GREY, GREY])
LARGE = PIL.Image.effect_noise((200, 200), 50)
GOOD = {kind: encoded(LARGE, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")}


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that say they are a large picture."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BROKEN: dict[str, bytes] = {f"half {kind}": data[: len(data) // 2] for kind, data in GOOD.items()}
BROKEN |= {f"start of {kind}": data[:12] for kind, data in GOOD.items()}
BROKEN |= {
    "nothing": b"",
    "text": b"no picture",
    "html": b"<!DOCTYPE html><html>404</html>",
    "zeros": bytes(5000),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "PostScript in a binary": b"\xc5\xd0\xd3\xc6" + bytes(60),
    "PDF": b"%PDF-1.7\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "Photoshop": b"8BPS\0\1" + bytes(60),
    "HEIC": b"\0\0\0\x18ftypheic" + bytes(60),
    "icon": encoded(GREY.resize((16, 16)), "ICO"),
    "JPEG 2000": encoded(GREY, "JPEG2000"),
    "targa": encoded(GREY, "TGA"),
    "ZIP": b"PK\x03\x04" + bytes(60),
    "a strip": encoded(PIL.Image.new("L", (1, 60_000)), "PNG"),
    "a strip of two": encoded(PIL.Image.new("L", (2, 60_000)), "PNG"),
    "large beyond what is held": png_of_size(13_000, 13_000),
    "larger than Pillow allows": png_of_size(100_000, 100_000),
    "of no size": png_of_size(0, 8),
    "negative whole numbers": encoded(PIL.Image.fromarray(RAMP.astype(np.int32) - 9), "TIFF"),
    "whole numbers without a range": encoded(PIL.Image.fromarray(RAMP.astype(np.int32) * 100_000), "TIFF"),
    "negative fractions": encoded(PIL.Image.fromarray(RAMP.astype(np.float32) - 9), "TIFF"),
    "not a number": encoded(PIL.Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"),
    "infinite": encoded(PIL.Image.fromarray(np.full((8, 8), np.inf, np.float32)), "TIFF"),
}


def exif(orientation: int) -> bytes:
    tags = PIL.Image.Exif()
    tags[0x0112] = orientation
    return encoded(COLOUR, "JPEG", exif=tags)


ODD: dict[str, bytes] = {f"a sound {kind}": data for kind, data in GOOD.items()}
ODD |= {f"mode {mode}": encoded(COLOUR.convert(mode), "PNG") for mode in ("1", "L", "P", "RGBA")}
ODD |= {f"orientation {number}": exif(number) for number in (0, 1, 6, 8, 9, 65535)}
ODD |= {
    "grey and alpha": encoded(PIL.Image.merge("LA", [GREY, GREY]), "PNG"),
    "CMYK": encoded(COLOUR.convert("CMYK"), "JPEG"),
    "16 bits": encoded(PIL.Image.fromarray(RAMP.astype(np.uint16) * 257), "PNG"),
    "16 bits in a TIFF": encoded(PIL.Image.fromarray(RAMP.astype(np.uint16) * 257), "TIFF"),
    "whole numbers": encoded(PIL.Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "fractions": encoded(PIL.Image.fromarray(RAMP.astype(np.float32) / 255), "TIFF"),
    "palette with transparency": encoded(COLOUR.quantize(4), "PNG", transparency=0),
    "animation": encoded(COLOUR.quantize(4), "GIF", save_all=True, append_images=[COLOUR.quantize(4)]),
    "one pixel": encoded(GREY.crop((0, 0, 1, 1)), "PNG"),
    "padding behind": GOOD["JPEG"] + bytes(5000),
    "a picture of another kind than its name": GOOD["PNG"],
    "damaged EXIF": encoded(COLOUR, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"),
    "as long as may be": encoded(PIL.Image.new("L", (100, 1)), "PNG"),
}
if PIL.features.check("avif"):
    ODD["AVIF"] = encoded(COLOUR, "AVIF")


def shown(put: Callable[[Path], None]):
    def make(_, folder: Path) -> list[str]:
        (folder / "data").mkdir()
        put(folder / "data" / "photo.jpg")
        (folder / "data" / "metadata.jsonl").write_text('{"file_name": "photo.jpg", "captions": ["a"]}\n')
        return ["data", "show", "--dataset", "imagefolder", "--data_dir", str(folder / "data")]

    return make


def holding(data: bytes):
    return shown(lambda path: path.write_bytes(data) and None)


def indexed(data: bytes):
    """One bad picture among thirteen is more than the share that may be broken."""

    def make(parts, folder: Path) -> list[str]:
        (folder / "photos").mkdir()
        for row, path in enumerate(sorted(parts.photographs.rglob("*.png"))):
            os.symlink(path, folder / "photos" / f"{row}.png")
        (folder / "photos" / "photo.png").write_bytes(data)
        return ["index", str(folder / "photos"), str(folder / "gallery"), "--model", str(parts.model), "--quiet"]

    return make


CASES = [
    Case(f"image/{name}", holding(data), "1 of 1 images are missing or broken .*photo.jpg")
    for name, data in BROKEN.items()
]
CASES += [Case(f"image/{name}", holding(data), accepted=True) for name, data in ODD.items()]
CASES += [
    Case("image/a folder", shown(lambda path: path.mkdir()), "not a regular file|missing or broken"),
    Case("image/a pipe", shown(lambda path: os.mkfifo(path)), "not a regular file|missing or broken"),
    Case("image/a link to nothing", shown(lambda path: path.symlink_to("nowhere.jpg")), "missing or broken"),
    Case("image/a link to itself", shown(lambda path: path.symlink_to("photo.jpg")), "missing or broken"),
    Case("image/a device", shown(lambda path: path.symlink_to("/dev/zero")), "not a regular file|missing or broken"),
]
CASES += [
    Case(f"index/picture {name}", indexed(BROKEN[name]), "1 of 13 images .*photo.png", may_write=("gallery",))
    for name in ("half PNG", "half GIF", "PostScript", "a strip of two", "large beyond what is held", "not a number")
]
CASES += [
    Case(f"index/picture {name}", indexed(ODD[name]), accepted=True) for name in ("16 bits", "mode P", "one pixel")
]

test_one_clear_line = one_clear_line(CASES)
