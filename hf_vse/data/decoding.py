"""Decodes one image file: the accepted formats, the size limits, and the range of the pixel values.

Only listed formats are read, because Pillow runs external programs for others (Ghostscript for PostScript). The limit
is on pixels, not on file size: a 200 kB PNG can decode to 500 MB, and a strip of 1 x 60,000 pixels grows to 9 GB when
its shorter side is resized to 224. Pixels with more than eight bits are scaled to eight by the range of their format;
if that range is unknown, the image is rejected.
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
MAX_PIXELS = 90_000_000  # decoded at once: 270 MB as RGB; a larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size
MAX_ASPECT = 100  # longer side / shorter side
SPARE = 4  # early shrinking keeps this multiple of the needed side, so that the final resize filter has enough pixels
PIXELS_IN_FLIGHT = 32_000_000  # decoded pixels waiting for the image processor: 96 MB
DRAFTS = (1, 2, 4, 8)  # divisors that a JPEG decoder offers
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF tags and a value
ORIENTATION = 0x0112  # EXIF tag
# First bytes of unsupported formats that users may mistake for images.
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

_said: set[tuple[str, int]] = set()  # (mode, white) pairs already warned about

# Pillow warns above 89 million pixels; this module rejects such images or decodes them smaller.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)


class BrokenImageError(ValueError):
    """An image cannot be opened or decoded; the message is one line with the file and the reason."""


def decode_image(value: Any, name: str = "image", needed: int | None = None) -> PIL.Image.Image:
    """The image as RGB, rotated upright by its EXIF orientation. Transparency is dropped, as in most data sets.

    Args:
        value: `{"bytes": ..., "path": ...}` as a column of `datasets.Image(decode=False)` gives it, a path or URL, or
            a PIL image.
        name: name for error messages if the image has no path.
        needed: length in pixels that the shorter side will be resized to. An image of at least eight times this size
            is shrunk while it is read, to no less than four times this size; any other image keeps its size.

    Raises:
        BrokenImageError: missing or empty file, truncated or unknown data, too many pixels, extreme aspect ratio, or
            pixel values of unknown range.
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
    """Opens the content of an image: bytes, a regular file, or a URL, such as a file inside a streamed archive."""
    if data is not None:
        if not data:
            raise ValueError("0 bytes")
        return BytesIO(data)
    if path is None:
        raise ValueError("neither bytes nor a path")
    if "://" in path:
        return fsspec.open(path, "rb").open()
    if not stat.S_ISREG(Path(path).stat().st_mode):  # a named pipe would block forever
        raise ValueError("not a regular file")
    return open(path, "rb")


def open_image(file: BinaryIO) -> PIL.Image.Image:
    """Opens the header of an image in one of `FORMATS`; the pixels are not decoded yet.

    Raises:
        ValueError: another format, too many pixels, or an extreme aspect ratio.
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
        return "not an image, or an unknown format"
    return f"{found} is not supported: convert it to JPEG or PNG"


def check_extent(image: PIL.Image.Image) -> None:
    """Raises ValueError for an extreme aspect ratio, or too many pixels even after JPEG shrinking."""
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width:,} x {height:,} pixels, more than {MAX_ASPECT} times as long as wide")
    if smallest_draft(image) is None:
        raise ValueError(f"{width:,} x {height:,} pixels, more than {MAX_PIXELS:,}: make it smaller")


def smallest_draft(image: PIL.Image.Image) -> int | None:
    """The smallest divisor that keeps the decoded image within `MAX_PIXELS`; None if there is none."""
    width, height = image.size
    possible = DRAFTS if image.format in ("JPEG", "MPO") else DRAFTS[:1]
    return next((each for each in possible if (width // each) * (height // each) <= MAX_PIXELS), None)


def finish(image: PIL.Image.Image, name: str, needed: int | None) -> PIL.Image.Image:
    """Decodes an opened image: upright, RGB, and not much larger than needed."""
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
    except Exception:  # damaged metadata, intact pixels
        return image


def eight_bits(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Scales an image with 12, 16 or 32 bits per pixel to the range 0 to 255."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # TIFF only
    white = white_of(image, values, tags.get(BITS_PER_SAMPLE, (16,))[0], name)
    scaled = np.rint(values * np.float32(255 / white))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        scaled = 255 - scaled
    return PIL.Image.fromarray(scaled.astype(np.uint8))


def white_of(image: PIL.Image.Image, values: np.ndarray, bits: int, name: str) -> int:
    """The pixel value of white: given by the format, or else guessed from the range of the values."""
    if image.mode.startswith("I;16"):
        return 2**bits - 1
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # Pillow scales these to 16 bits
        return 2**16 - 1
    low, high = float(values.min()), float(values.max())
    ranges = [1, 255, 65535] if image.mode == "F" else [255, 65535]
    if not low >= 0 or not high <= ranges[-1]:  # `not` also catches nan
        kind = "float" if image.mode == "F" else "32-bit"
        raise ValueError(f"{kind} pixels from {low:g} to {high:g}: save it with 8 or 16 bits, black at 0")
    white = next(each for each in ranges if high <= each)
    if (image.mode, white) not in _said:
        _said.add((image.mode, white))
        logger.warning("%s: pixel values of this and similar images are read as 0 (black) to %d (white)", name, white)
    return white


def reason_of(error: Exception) -> str:
    """Why an image cannot be read, in one line."""
    if isinstance(error, FileNotFoundError):
        return "file does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def groups_in_flight(images: Iterable[PIL.Image.Image | None]) -> Iterator[list[PIL.Image.Image | None]]:
    """Splits images, in order, into groups of at most `PIXELS_IN_FLIGHT` pixels (or of one image)."""
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
