"""Limits on the input of visitors. Everything is checked before it uses memory or time."""

import warnings
from io import BytesIO

import PIL.Image
import PIL.ImageOps

MAX_FILE_BYTES = 10 * 2**20
MAX_REQUEST_BYTES = 2 * 2**20  # of a request other than an upload; it contains images as small JPEG
MAX_UPLOAD_BYTES = 100 * 2**20  # of all files in one upload
MAX_PIXELS = 40_000_000
MAX_ASPECT = 10  # the longer side over the shorter one
MAX_CHARACTERS = 300
MAX_LABELS = 30
MAX_LABEL_CHARACTERS = 60
MAX_RESULTS = 48
MAX_PICTURES = 50

PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS
TOO_MANY_PIXELS = f"The picture has too many pixels: at most {MAX_PIXELS // 1_000_000} million, please."
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class RefusedError(ValueError):
    """A rejected input of a visitor; the message is one line with the remedy."""


def read_sentence(text: object, what: str = "sentence") -> str:
    """The sentence in one line, or RefusedError if it is empty or too long."""
    sentence = " ".join(text.split()) if isinstance(text, str) and len(text) <= 4 * MAX_CHARACTERS else text
    if not isinstance(sentence, str) or len(sentence) > MAX_CHARACTERS:
        raise RefusedError(f"The {what} is too long: at most {MAX_CHARACTERS} characters, please.")
    if not sentence:
        raise RefusedError(f"There is no {what} yet: type one first.")
    return sentence


def read_labels(text: object) -> list[str]:
    """Distinct labels of a comma-separated list, in order; at least two."""
    longest = MAX_LABELS * (MAX_LABEL_CHARACTERS + 2)
    if not isinstance(text, str) or len(text) > longest:
        raise RefusedError(f"The labels are too long: at most {longest} characters in all, please.")
    labels = list(dict.fromkeys(" ".join(label.split()) for label in text.replace("\n", ",").split(",")))
    labels = [label for label in labels if label]
    if len(labels) < 2:
        raise RefusedError("Type at least two labels, with commas between them.")
    if len(labels) > MAX_LABELS:
        raise RefusedError(f"{len(labels)} labels are too many: at most {MAX_LABELS}, please.")
    if any(len(label) > MAX_LABEL_CHARACTERS for label in labels):
        raise RefusedError(f"A label is too long: at most {MAX_LABEL_CHARACTERS} characters each, please.")
    return labels


def read_template(text: object) -> str:
    """A sentence with exactly one `{}` for the label."""
    template = read_sentence(text, "template")
    if template.count("{}") != 1:
        raise RefusedError("The template needs the place of the label once, as {}, e.g. a photo of a {}")
    return template


def judge_size(size: tuple[int, int]) -> None:
    """Rejects an image with too many pixels, before or after resizing by the image processor.

    The processor resizes the shorter side to a few hundred pixels, so the aspect ratio decides the final size: 1 x
    60,000 pixels (a file of 196 bytes) become 256 x 15,360,000.
    """
    if size[0] * size[1] > MAX_PIXELS:
        raise RefusedError(TOO_MANY_PIXELS)
    if max(size) > MAX_ASPECT * min(size):
        raise RefusedError(f"The picture is too long: at most {MAX_ASPECT} times as long as wide, please.")


def read_image(data: bytes) -> PIL.Image.Image:
    """The upright RGB image in a visitor's file, or RefusedError; checks the header before decoding pixels."""
    if len(data) > MAX_FILE_BYTES:
        raise RefusedError(f"The picture is too large: at most {MAX_FILE_BYTES // 2**20} MB, please.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            image = PIL.Image.open(BytesIO(data), formats=FORMATS)
            judge_size(image.size)
            image.load()
            return PIL.ImageOps.exif_transpose(image).convert("RGB")
    except RefusedError:
        raise
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        raise RefusedError(TOO_MANY_PIXELS) from None
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, struct.error, IndexError, ...
        raise RefusedError("This file is not a readable picture: try a JPEG, PNG or WebP.") from None
