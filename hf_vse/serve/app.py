"""The ASGI application: `/search`, `/health`, `/metrics` and `/openapi.json`.

Errors are `{"error": LINE}`. What the sender can repair is said; of anything else only that it failed: the log of the
server has the rest, which may name files of the machine.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hf_vse.search.on_demand import ModelOnDemand
from hf_vse.search.store import GalleryStore
from hf_vse.serve.answers import QueryAnswerer
from hf_vse.serve.batching import Batcher
from hf_vse.serve.limits import Limits, RefusedRequest
from hf_vse.serve.metrics import MEDIA_TYPE, ServerMetrics
from hf_vse.serve.openapi import openapi_of
from hf_vse.serve.requests import Query, read_queries

if TYPE_CHECKING:  # sentences may be answered without torch
    from hf_vse.embed.encoder import Encoder

logger = logging.getLogger(__name__)

MOST_TOGETHER = 64  # queries that are answered together
WAIT = 0.002  # seconds that a query waits for others
Endpoint = Any  # of Starlette


def make_app(
    gallery: GalleryStore,
    encoder: "Encoder | ModelOnDemand",
    limits: Limits | None = None,
    *,
    most: int = MOST_TOGETHER,
    wait: float = WAIT,
    token: str | None = None,
) -> Starlette:
    """The application over a gallery and the encoder that made it, see `open_model`.

    Args:
        most: queries that are answered together.
        wait: seconds that a query waits for others.
        token: what every request but `/health` has to bring, as `Authorization: Bearer TOKEN`; None: nothing.

    Raises:
        ValueError: another model made the gallery.
        OSError: the gallery does not answer.
    """
    gallery.check_model(encoder)
    gallery.search(encoder.query("a"), 1, encoder)  # what does not work says so now, and what loads late is loaded
    return SearchServer(QueryAnswerer(gallery, encoder), limits or Limits(), most, wait, token).app()


class SearchServer:
    """Its endpoints, and what they share."""

    def __init__(self, answerer: QueryAnswerer, limits: Limits, most: int, wait: float, token: str | None):
        self.answerer, self.gallery, self.limits = answerer, answerer.gallery, limits
        self.token = None if token is None else f"Bearer {token}".encode()
        self.metrics, self.items = ServerMetrics(), len(answerer.gallery)
        self.batcher = Batcher(answerer.answer, most, wait, self.metrics.batches)
        self.description = openapi_of(limits, token is not None)

    def app(self) -> Starlette:
        routes = [
            Route("/search", self.counted(self.search), methods=["GET", "POST"]),
            Route("/health", self.counted(self.health)),
            Route("/metrics", self.counted(self.show_metrics)),
            Route("/openapi.json", self.counted(self.openapi)),
        ]
        return Starlette(routes=routes, lifespan=self.lifespan, exception_handlers={HTTPException: self.not_served})

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self.batcher.running():
            yield

    def counted(self, endpoint: Endpoint) -> Endpoint:
        """With the token checked, errors as answers, and every answer counted."""

        async def answer(request: Request) -> Response:
            path = request.url.path
            try:
                self.check_token(request)
                response = await endpoint(request)
            except RefusedRequest as error:
                response = error_response(error.status, str(error))
            except OSError:
                logger.exception("%s: the gallery does not answer", path)
                response = error_response(503, "the gallery does not answer: repeat it later")
            except Exception:
                logger.exception("%s failed", path)
                response = error_response(500, "the search failed: the log of the server says why")
            self.metrics.requests[path, response.status_code] += 1
            return response

        return answer

    def check_token(self, request: Request) -> None:
        if self.token is None or request.url.path == "/health":
            return
        given = request.headers.get("authorization", "").encode()
        if not compare_digest(given, self.token):
            raise RefusedRequest(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")

    async def search(self, request: Request) -> Response:
        if self.metrics.in_flight >= self.limits.queue:
            raise RefusedRequest(429, f"{self.limits.queue} requests are being answered: repeat it in a second")
        self.metrics.in_flight += 1
        start = time.perf_counter()
        try:
            queries, answers = await self.answers_in_time(request)
        finally:
            self.metrics.in_flight -= 1
            self.metrics.seconds.add(time.perf_counter() - start)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        self.metrics.queries += len(queries)
        found = [{"text": query.text, "results": results} for query, results in zip(queries, answers, strict=True)]
        return json_response({"queries": found})

    async def answers_in_time(self, request: Request) -> tuple[list[Query], list[Any]]:
        """The queries of a request, and for each its results or an exception."""
        queries = None
        try:
            async with asyncio.timeout(self.limits.timeout):
                queries = await read_queries(request, self.limits)
                if any(query.image is not None for query in queries):
                    await asyncio.to_thread(self.answerer.open_model)  # elsewhere, so that sentences need not wait
                return queries, await asyncio.gather(*map(self.batcher.ask, queries))
        except TimeoutError:
            within = f"within {self.limits.timeout:g} s"
            if queries is None:
                raise RefusedRequest(408, f"the request did not arrive {within}: send less at once") from None
            raise RefusedRequest(504, f"no answer {within}: repeat it later, or ask for less at once") from None

    async def health(self, request: Request) -> Response:
        """By way of the thread that searches, so that a thread or an engine that hangs is not said to be well."""
        try:
            async with asyncio.timeout(self.limits.timeout):
                items = await self.batcher.in_thread(len, self.gallery)
        except TimeoutError:
            raise RefusedRequest(503, f"no answer of the gallery within {self.limits.timeout:g} s") from None
        return json_response({"status": "ok", "items": items})

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(self.items), media_type=MEDIA_TYPE)

    async def openapi(self, request: Request) -> Response:
        return json_response(self.description)

    async def not_served(self, request: Request, error: Exception) -> Response:
        """Another path, or another method."""
        assert isinstance(error, HTTPException)
        self.metrics.requests["other", error.status_code] += 1
        line = f"there is no {request.method} of {request.url.path!r:.60}: see /openapi.json"
        return error_response(error.status_code, line, error.headers)


def error_response(status: int, line: str, headers: Any = None) -> Response:
    headers = dict(headers or {})
    if status in (429, 503):
        headers["Retry-After"] = "1"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response({"error": " ".join(line.split())}, status, headers)


def json_response(content: Any, status: int = 200, headers: Any = None) -> Response:
    """ASCII, as names of files may hold half characters; nan and inf, which JSON lacks, become null."""
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(content), parse_constant=lambda _: None))
    return Response(text, status, headers, media_type="application/json")
