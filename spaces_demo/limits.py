"""What a visitor may send. Everything is checked before it costs memory or time."""

import warnings
from io import BytesIO

import PIL.Image
import PIL.ImageOps

MAX_FILE_BYTES = 10 * 2**20
MAX_REQUEST_BYTES = 2 * 2**20  # of a request that is no upload; pictures travel in it as small JPEG
MAX_PIXELS = 40_000_000
MAX_CHARACTERS = 300
MAX_LABELS = 30
MAX_LABEL_CHARACTERS = 60
MAX_RESULTS = 48
MAX_PICTURES = 50

PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


class RefusedError(ValueError):
    """An input of a visitor that is not taken; the message is one line with the remedy."""


def read_sentence(text: object, what: str = "sentence") -> str:
    """The sentence in one line, or RefusedError if it is empty or too long."""
    sentence = " ".join(text.split()) if isinstance(text, str) and len(text) <= 4 * MAX_CHARACTERS else text
    if not isinstance(sentence, str) or len(sentence) > MAX_CHARACTERS:
        raise RefusedError(f"The {what} is too long: at most {MAX_CHARACTERS} characters, please.")
    if not sentence:
        raise RefusedError(f"There is no {what} yet: type one first.")
    return sentence


def read_labels(text: object) -> list[str]:
    """Distinct labels of a comma-separated list, in its order; at least two."""
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
    """A sentence with one place `{}` for the label."""
    template = read_sentence(text, "template")
    if template.count("{}") != 1:
        raise RefusedError("The template needs the place of the label once, as {}, e.g. a photo of a {}")
    return template


def read_image(data: bytes) -> PIL.Image.Image:
    """The upright RGB image in a visitor's file, or RefusedError; the header is judged before pixels are decoded."""
    if len(data) > MAX_FILE_BYTES:
        raise RefusedError(f"The picture is too large: at most {MAX_FILE_BYTES // 2**20} MB, please.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            image = PIL.Image.open(BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise PIL.Image.DecompressionBombError
            image.load()
        return PIL.ImageOps.exif_transpose(image).convert("RGB")
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        million = MAX_PIXELS // 1_000_000
        raise RefusedError(f"The picture has too many pixels: at most {million} million, please.") from None
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, struct.error, IndexError, ...
        raise RefusedError("This file is no picture that can be read: try a JPEG, PNG or WebP.") from None


class Guard:
    """ASGI middleware: refuses large requests that are no uploads, and to fetch addresses for a visitor."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        headers = dict(scope["headers"])
        if "/file=http" in path or "/proxy=" in path:
            return await _answer(send, 403, b"This demo fetches nothing from elsewhere.")
        if path.endswith("/upload"):
            return await self.app(scope, receive, send)  # limited by launch(max_file_size=...)
        length = headers.get(b"content-length", b"0")
        chunked = b"transfer-encoding" in headers
        if chunked or not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
            return await _answer(send, 413, b"The request is too large.")
        return await self.app(scope, receive, send)


async def _answer(send, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
