"""One photograph out of a file: which formats are read, how large it may be, and what its numbers mean.

Formats are named, because Pillow would hand others to programs beside it (PostScript to Ghostscript). Size is limited
by what has to be held, not by what a file weighs: a PNG of 200 kB can be 500 MB of pixels, and a strip of one pixel by
60,000 becomes 9 GB when its shorter side is brought to 224. Pixels of more than eight bits are brought to eight by
the range that their format has, or refused where it does not say.
"""

import logging
import stat
import warnings
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageOps

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(["AVIF"] if PIL.features.check("avif") else []))
MAX_PIXELS = 90_000_000  # decoded at once: 270 MB as RGB; of a larger JPEG a half, a quarter or an eighth is decoded
MAX_ASPECT = 100  # longer side by shorter
SPARE = 4  # a photograph is shrunk early to this many times the side that is needed, so that the filter sees enough
PIXELS_IN_FLIGHT = 32_000_000  # decoded photographs that wait for the image processor together: 96 MB
DRAFTS = (1, 2, 4, 8)  # what a JPEG can be divided by while it is decoded
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF
ORIENTATION = 0x0112  # of EXIF
# How files begin that people take for photographs and that are not read.
NOT_READ = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "ZIP",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
}
HEIF = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis")

_said: set[tuple[str, int]] = set()  # so that a folder of such images is told of once

# What Pillow warns of from 89 million pixels on is refused here, or decoded smaller.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)


class BrokenImageError(ValueError):
    """An image that cannot be opened or decoded; the message is one line with the file and the reason."""


def decode_image(value: Any, name: str = "image", needed: int | None = None) -> PIL.Image.Image:
    """The image as RGB, turned upright as its EXIF orientation says. Transparency is left out, as in most data sets.

    Args:
        value: `{"bytes": ..., "path": ...}` as a column of `datasets.Image(decode=False)` gives it, a path or URL, or
            a PIL image.
        name: what to call the image in an error when it has no path.
        needed: length in pixels to which the shorter side will be brought. A photograph that is eight times as large
            or larger is shrunk while it is read, to not less than four times this; any other stays as it is.

    Raises:
        BrokenImageError: missing or empty file, truncated or unknown data, too many pixels, a strip, or pixels whose
            range nobody can know.
    """
    path, data = path_and_bytes(value)
    name = path or name
    try:
        if isinstance(value, PIL.Image.Image):
            return finish(value, name, needed)
        with open_file(path, data) as file, open_image(file) as image:
            return finish(image, name, needed)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, IndexError, ...
        raise BrokenImageError(f"{name}: {reason_of(error)}") from error


def path_and_bytes(value: Any) -> tuple[str | None, bytes | None]:
    if isinstance(value, Mapping):
        return value.get("path"), value.get("bytes")
    if isinstance(value, str | Path):
        return str(value), None
    return None, None


def open_file(path: str | None, data: bytes | None = None) -> BinaryIO:
    """The content of an image: bytes, a regular file, or what a streamed data set refers to in an archive."""
    if data is not None:
        if not data:
            raise ValueError("0 bytes")
        return BytesIO(data)
    if path is None:
        raise ValueError("neither bytes nor a path")
    if "://" in path:
        return fsspec.open(path, "rb").open()
    if not stat.S_ISREG(Path(path).stat().st_mode):  # a named pipe would wait for ever
        raise ValueError("no regular file")
    return open(path, "rb")


def open_image(file: BinaryIO) -> PIL.Image.Image:
    """The header of an image of one of `FORMATS`; its pixels are not decoded yet.

    Raises:
        ValueError: another format, or more pixels than can be decoded.
    """
    try:
        image = PIL.Image.open(file, formats=FORMATS)
    except PIL.UnidentifiedImageError as error:
        file.seek(0)
        raise ValueError(unknown_format(file.read(32))) from error
    check_extent(image)
    return image


def unknown_format(head: bytes) -> str:
    found = next((name for magic, name in NOT_READ.items() if head.lstrip().startswith(magic)), None)
    if head[4:8] == b"ftyp" and head[8:12] in HEIF:
        found = "AVIF" if head[8:12].startswith(b"avi") else "HEIC"
    if found is None:
        return "not an image, or of an unknown format"
    return f"not an image that is read but {found}: convert it to JPEG or PNG"


def check_extent(image: PIL.Image.Image) -> None:
    """Raises ValueError for a strip, and for more pixels than may be held even after a JPEG was shrunk."""
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels, more than {MAX_ASPECT} times as long as wide")
    if smallest_draft(image) is None:
        raise ValueError(f"{width:,} x {height:,} pixels, more than {MAX_PIXELS:,}: make it smaller")


def smallest_draft(image: PIL.Image.Image) -> int | None:
    """The smallest divisor with which few enough pixels are decoded; None if there is none."""
    width, height = image.size
    possible = DRAFTS if image.format in ("JPEG", "MPO") else DRAFTS[:1]
    return next((each for each in possible if (width // each) * (height // each) <= MAX_PIXELS), None)


def finish(image: PIL.Image.Image, name: str, needed: int | None) -> PIL.Image.Image:
    """The opened image decoded, upright, in RGB, and not much larger than needed."""
    check_extent(image)
    side = needed and SPARE * needed
    shrink = max(smallest_draft(image) or 1, min(image.size) // side if side else 1)
    if shrink > 1:
        image.draft(None, (max(1, image.width // shrink), max(1, image.height // shrink)))
    image.load()
    image = upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = eight_bits(image, name)
    rgb = image.convert("RGB")
    factor = min(rgb.size) // side if side else 1
    return rgb.reduce(factor) if factor > 1 else rgb


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    try:
        return image if image.getexif().get(ORIENTATION, 1) == 1 else PIL.ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata around sound pixels
        return image


def eight_bits(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """A picture of 12, 16 or 32 bits in 0 to 255."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    white = white_of(image, values, tags.get(BITS_PER_SAMPLE, (16,))[0], name)
    scaled = np.rint(values * np.float32(255 / white))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    return PIL.Image.fromarray(scaled.astype(np.uint8))


def white_of(image: PIL.Image.Image, values: np.ndarray, bits: int, name: str) -> int:
    """The number that is white: by the format where that says it, else by the range in which all numbers lie."""
    if image.mode.startswith("I;16"):
        return 2**bits - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # which Pillow has brought to 16 bits
        return 2**16 - 1
    low, high = float(values.min()), float(values.max())
    ranges = [1, 255, 65535] if image.mode == "F" else [255, 65535]
    if not low >= 0 or not high <= ranges[-1]:  # also where one is not a number
        kind = "float" if image.mode == "F" else "32-bit"
        raise ValueError(f"{kind} pixels from {low:g} to {high:g}: save it with 8 or 16 bits, black at 0")
    white = next(each for each in ranges if high <= each)
    if (image.mode, white) not in _said:
        _said.add((image.mode, white))
        logger.warning("%s: its numbers, and others like these, are read as 0 (black) to %d (white)", name, white)
    return white


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    if isinstance(error, FileNotFoundError):
        return "file does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def groups_in_flight(images: Iterable[PIL.Image.Image | None]) -> Iterator[list[PIL.Image.Image | None]]:
    """Consecutive images, decoded one after the other, in groups of `PIXELS_IN_FLIGHT` at most (or of one image)."""
    group: list[PIL.Image.Image | None] = []
    pixels = 0
    for image in images:
        more = 0 if image is None else image.width * image.height
        if group and pixels + more > PIXELS_IN_FLIGHT:
            yield group
            group, pixels = [], 0
        group.append(image)
        pixels += more
    if group:
        yield group
