"""A gradio page for untrusted visitors: one check for all inputs, and limits on what gradio keeps per visitor."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

import gradio as gr
from components import TRY_AGAIN, friendly
from uploads import delete_old_uploads, judge_files

logger = logging.getLogger("demo")

SECONDS_BETWEEN_TIDYING = 15
MAX_WAITING = 256  # requests in the queue
# Gradio copies its components for each session (0.15 MB), although nothing here depends on the copy. A dropped copy is
# made again with the next request, in a few milliseconds.
MAX_SESSIONS = 32
MAX_INBOXES = 2 * MAX_WAITING  # sessions whose answers are kept until they are read
MAX_UNREAD = 32  # answers of one session
TIDYINGS_TO_READ = 4  # an inbox that is non-empty in this many cleanups in a row is abandoned


class Page(gr.Blocks):
    """All inputs of all events pass through `preprocess_data`, on every route."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        try:
            friendly(judge_files)(inputs)
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error as refused:  # e.g. of a slider
            raise gr.Error(refused.message, title=TRY_AGAIN, print_exception=False) from None
        except Exception as error:  # e.g. a list instead of a number: gradio would log a traceback for each
            logger.info("an input was refused: %s", type(error).__name__)
            line = "This is not an input that the demo accepts: see its API."
            raise gr.Error(line, title=TRY_AGAIN, print_exception=False) from None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._full_for: dict[str, int] = {}  # cleanups in a row in which an inbox was not empty

    def queue_for_strangers(self) -> "Page":
        """Turns on the queue and closes the API that would bypass it."""
        self.queue(max_size=MAX_WAITING, api_open=False)
        self._queue.pending_messages_per_session.max_size = MAX_INBOXES
        return self

    def admits(self, session: str | None) -> bool:
        """Whether a session may send a request: not if too many of its answers are unread. Marks its inbox as used."""
        inboxes = self._queue.pending_messages_per_session
        if session in inboxes:
            inboxes.move_to_end(session)
        unread: Mapping[Any, Collection[str]] = self._queue.pending_event_ids_session
        return len(unread.get(session, ())) < MAX_UNREAD

    def tidy(self) -> None:
        """Deletes old uploads, and entries about files and sessions that gradio would keep forever."""
        delete_old_uploads()
        for files in self.temp_file_sets:
            files.clear()
        inboxes, events = self._queue.pending_messages_per_session, self._queue.pending_event_ids_session
        full = [session for session, inbox in inboxes.items() if not inbox.empty()]
        self._full_for = {session: 1 + self._full_for.get(session, 0) for session in full}
        for session in [each for each in full if self._full_for[each] >= TIDYINGS_TO_READ]:
            del inboxes[session]
        for session in [each for each in events if each not in inboxes]:
            del events[session]

    @contextlib.asynccontextmanager
    async def tidied(self, app: Any) -> AsyncIterator[None]:
        """Lifespan of the server, with a regular cleanup."""

        async def keep_tidy() -> None:
            while True:
                await asyncio.sleep(SECONDS_BETWEEN_TIDYING)
                try:
                    self.tidy()
                except Exception:  # keep running: the next cleanup may succeed, and uploads must be deleted
                    logger.exception("the page could not be tidied")

        task = asyncio.create_task(keep_tidy())
        try:
            yield
        finally:
            task.cancel()
