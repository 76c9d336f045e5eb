"""Checks every request before gradio sees it: the route, the length, and the JSON.

Gradio reads any body into memory, keeps session names forever, and fails on nested or unusual JSON. Here such requests
get a one-line error.
"""

import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

from gradio.route_utils import MultiPartException
from limits import MAX_REQUEST_BYTES, MAX_UPLOAD_BYTES

logger = logging.getLogger("demo")

UPLOAD = "/gradio_api/upload"
QUESTIONS = re.compile(r"/gradio_api/(call/\w{1,64}|queue/join|cancel|reset)/?")
CANCEL = "/gradio_api/cancel"
READING = ("GET", "HEAD", "OPTIONS")
MAX_QUERY_BYTES = 512
MAX_NAME = 64  # characters of a session or event
MAX_TEXT = 20_000  # characters of a string that is not an image
MAX_VALUES = 5_000
MAX_NUMBER = 2**53
MAX_DEPTH = 16


class RefusedRequestError(ValueError):
    """A rejected request, with its HTTP status and a one-line message."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status


class Guard:
    """ASGI middleware around the whole page.

    Args:
        admits: takes a session name and returns whether the session may send another request now.
    """

    def __init__(self, app: Callable, admits: Callable[[str | None], bool]):
        self.app = app
        self.admits = admits

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        try:
            _judge_head(scope, path)
            if path == UPLOAD:
                receive = _counted(receive)
            elif scope["method"] not in READING:
                body = await _read(receive)
                if body is None:  # the visitor left
                    return
                question = json.dumps(self._judge(path, body)).encode()  # gradio reads exactly what was checked
                scope, receive = _with_length(scope, len(question)), _replayed(question, receive)
            await self._pass_on(scope, receive, send)
        except RefusedRequestError as refused:
            await _answer(send, refused.status, str(refused).encode())

    def _judge(self, path: str, body: bytes) -> dict[str, Any]:
        question = read_question(body)
        if not path.startswith(CANCEL) and not self.admits(question.get("session_hash")):
            raise RefusedRequestError(429, "Read the answers to your earlier questions first.")
        return question

    async def _pass_on(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answers also if gradio fails, for example on a request for an unknown function."""
        started = ended = False

        async def watched(message: dict) -> None:
            nonlocal started, ended
            started, ended = True, message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            logger.warning("a request was refused: %s", type(error).__name__)
            if not started:
                raise RefusedRequestError(400, "This is not a request that the demo accepts.") from None
            if not ended:  # a stream of answers, e.g. for an unknown event
                await send({"type": "http.response.body", "body": b""})


def _judge_head(scope: dict, path: str) -> None:
    headers = dict(scope["headers"])
    is_upload = path == UPLOAD
    if "/file=http" in path or "/proxy=" in path:
        raise RefusedRequestError(403, "This demo fetches nothing from elsewhere.")
    if len(scope["query_string"]) > MAX_QUERY_BYTES:
        raise RefusedRequestError(414, "The address is too long.")
    length = headers.get(b"content-length", b"0")
    most = MAX_UPLOAD_BYTES if is_upload else MAX_REQUEST_BYTES
    is_long = not length.isdigit() or len(length) > len(str(most)) or int(length) > most
    if is_long or (b"transfer-encoding" in headers and not is_upload):
        raise RefusedRequestError(413, "The request is too large.")
    if scope["method"] not in READING and not is_upload and not QUESTIONS.fullmatch(path):
        raise RefusedRequestError(404, "There is nothing here.")


def _counted(receive: Callable) -> Callable[[], Awaitable[dict]]:
    """Passes messages on until they exceed MAX_UPLOAD_BYTES, regardless of the announced length."""
    total = 0

    async def next_message() -> dict:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_UPLOAD_BYTES:  # on this error gradio deletes the partial upload and answers with 413
            raise MultiPartException(f"The upload exceeds the maximum allowed size of {MAX_UPLOAD_BYTES} bytes.")
        return message

    return next_message


async def _read(receive: Callable) -> bytes | None:
    """The whole body, or None if the visitor left before its end."""
    chunks, total, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        total += len(chunks[-1])
        if total > MAX_REQUEST_BYTES:
            raise RefusedRequestError(413, "The request is too large.")
        more = message.get("more_body", False)
    return b"".join(chunks)


def _replayed(body: bytes, receive: Callable) -> Callable[[], Awaitable[dict]]:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> dict:
        return messages.pop() if messages else await receive()

    return next_message


def _with_length(scope: dict, length: int) -> dict:
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    return scope | {"headers": [*headers, (b"content-length", str(length).encode())]}


def read_question(body: bytes) -> dict[str, Any]:
    """The JSON object of a request; RefusedRequestError if it is not valid or has unacceptable values."""
    try:
        question = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedRequestError(400, "The request is not valid JSON.") from None
    if not isinstance(question, dict):
        raise RefusedRequestError(400, "The request is not a JSON object.")
    for name in ("session_hash", "event_id"):
        value = question.get(name)
        if value is not None and not (isinstance(value, str) and 0 < len(value) <= MAX_NAME):
            raise RefusedRequestError(400, f"{name} must have 1 to {MAX_NAME} characters.")
    _judge_values(question)
    return question


def _judge_values(question: dict[str, Any]) -> None:
    """Limits the number of values and the nesting; numbers must be finite and text must be valid Unicode."""
    count = 0
    waiting: list[tuple[Any, int]] = [(question, 0)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise RefusedRequestError(400, "The request has too many values.")
        if isinstance(value, dict):
            waiting.extend((each, depth + 1) for pair in value.items() for each in pair)
        elif isinstance(value, list):
            waiting.extend((each, depth + 1) for each in value)
        elif isinstance(value, str):
            _judge_text(value)
        elif isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            raise RefusedRequestError(400, "The request has a number that is too large or not finite.")


def _judge_text(text: str) -> None:
    if len(text) > MAX_TEXT and not text.startswith("data:"):
        raise RefusedRequestError(413, f"The request has a text of more than {MAX_TEXT:,} characters.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedRequestError(400, "The request has text that is not valid Unicode.") from None


async def _answer(send: Callable, status: int, text: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
