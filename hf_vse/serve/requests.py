"""From a request to queries. GET has its fields in the URL, POST in a form of the same fields, with a photograph.

q             a sentence; several times for several queries
image         a photograph (POST); with sentences, each of them refines it
image_weight  share of the photograph where there is a sentence too
k             results for each query
where         a condition, `FIELD OP VALUE`; several times for several conditions
"""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

from starlette.datastructures import ImmutableMultiDict, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from hf_vse.data.decoding import open_image, reason_of
from hf_vse.serve.limits import Limits, RefusedRequest

FIELDS = ("q", "k", "where", "image_weight", "image")
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
DEFAULT_K, DEFAULT_IMAGE_WEIGHT = 10, 0.5


class Query(NamedTuple):
    """One query: a text, the file of a photograph, or both."""

    text: str | None
    image: bytes | None = None
    image_weight: float = DEFAULT_IMAGE_WEIGHT
    k: int = DEFAULT_K
    where: tuple[str, ...] = ()


async def read_queries(request: Request, limits: Limits) -> list[Query]:
    """
    Raises:
        RefusedRequest: a field is unknown, missing, wrong or above a limit.
    """
    if request.method == "POST":
        return await queries_of_form(request, limits)
    return queries_of(request.query_params, None, limits)


async def queries_of_form(request: Request, limits: Limits) -> list[Query]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in FORMS:
        raise RefusedRequest(415, f"content-type is {kind!r:.100}: send a form, {' or '.join(FORMS)}")
    if request.query_params:
        raise RefusedRequest(400, "a POST has its fields in the form: leave them out of the URL")
    limited = Request(request.scope, limited_body(request.receive, limits.body_bytes))
    try:
        async with limited.form(max_files=1, max_part_size=limits.body_bytes) as form:
            files = [value for value in form.getlist("image") if isinstance(value, UploadFile)]
            image = await files[0].read(limits.image_bytes + 1) if files else None
            return queries_of(form, image, limits)
    except HTTPException as error:  # what the parser of forms refuses
        most = f"at most {limits.queries} q, {limits.conditions} where and one image"
        raise RefusedRequest(400, f"the form cannot be read ({error.detail}): send {most}") from error


def limited_body(receive: Receive, most: int) -> Receive:
    """Raises RefusedRequest as soon as a body is longer than `most` bytes, whatever its head says."""
    read = 0

    async def receive_some() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise RefusedRequest(413, f"the request is longer than {most:,} bytes: send less at once")
        return message

    return receive_some


def queries_of(fields: ImmutableMultiDict, image: bytes | None, limits: Limits) -> list[Query]:
    """One query for each sentence, or one for the photograph alone."""
    for name, value in fields.multi_items():
        if name not in FIELDS:
            raise RefusedRequest(400, f"there is no field {name!r:.60}: give {', '.join(FIELDS)}")
        if isinstance(value, UploadFile) != (name == "image"):
            remedy = "POST it as a file of a multipart form" if name == "image" else "give it as text"
            raise RefusedRequest(400, f"{name} is {'no file' if name == 'image' else 'a file'}: {remedy}")
    texts, where = (
        given_texts(fields, "q", limits.queries, limits),
        given_texts(fields, "where", limits.conditions, limits),
    )
    if not texts and image is None:
        raise RefusedRequest(400, "q is missing: give a sentence, such as q=two dogs in the snow, or POST an image")
    if image is not None:
        check_image(image, limits)
    weight = number_of_field(fields, "image_weight", DEFAULT_IMAGE_WEIGHT, 0, 1)
    if "image_weight" in fields and (image is None or not texts):
        raise RefusedRequest(400, "image_weight is of use for an image with a sentence alone: give both, or leave it")
    k = number_of_field(fields, "k", DEFAULT_K if limits.k >= DEFAULT_K else limits.k, 1, limits.k)
    return [Query(text, image, weight, int(k), tuple(where)) for text in (texts if texts else (None,))]


def given_texts(fields: ImmutableMultiDict, name: str, most: int, limits: Limits) -> Sequence[str]:
    found = fields.getlist(name)
    if len(found) > most:
        raise RefusedRequest(413, f"{name} is given {len(found)} times, at most {most} in one request: send several")
    for text in found:
        if len(text) > limits.text:
            raise RefusedRequest(413, f"{name} has {len(text):,} characters, at most {limits.text:,}: shorten it")
        if not text.strip():
            raise RefusedRequest(400, f"{name} is empty: leave it out, or write something")
        if "\ufffd" in text:
            raise RefusedRequest(400, f"{name} is not valid UTF-8: encode it as UTF-8")
    return found


def number_of_field(fields: ImmutableMultiDict, name: str, default: float, least: int, most: int) -> float:
    """`k` is a whole number; `image_weight` any."""
    found = fields.getlist(name)
    if len(found) > 1:
        raise RefusedRequest(400, f"{name} is given {len(found)} times: give it once")
    try:
        number = float(found[0]) if found else default
        whole = name != "k" or not found or found[0].strip().isdecimal()
    except ValueError:
        number, whole = math.nan, False
    if not whole or not least <= number <= most:
        kind = "whole number" if name == "k" else "number"
        raise RefusedRequest(400, f"{name} is {found[0]!r:.60}: give a {kind} from {least} to {most}")
    return number


def check_image(data: bytes, limits: Limits) -> None:
    """Reads the head of the file alone.

    Raises:
        RefusedRequest: too long, too many pixels, or no photograph.
    """
    if len(data) > limits.image_bytes:
        remedy = f"at most {limits.image_bytes:,}: make it smaller"
        raise RefusedRequest(413, f"image has more than the bytes that are read, {remedy}")
    try:
        if not data:
            raise ValueError("0 bytes")
        with open_image(BytesIO(data)) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ...
        raise RefusedRequest(400, f"image cannot be read, {reason_of(error)}: send a JPEG, PNG or WebP") from error
    if width * height > limits.image_pixels:
        size = f"{width:,} x {height:,} pixels"
        raise RefusedRequest(413, f"image has {size}, at most {limits.image_pixels:,} in all: make it smaller")
