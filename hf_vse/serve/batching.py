"""Concurrent questions, answered together: one call for many costs little more than for one.

The first question waits a few milliseconds for others, unless the one before was alone too; those that arrive while a
call runs make up the next one. One thread makes all calls, so what answers needs no locks.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

from hf_vse.serve.metrics import Histogram


class Batcher:
    """
    Args:
        answer: gives for each question its answer, or the exception that is one.
        most: questions in one call.
        wait: seconds that the first question waits for others.
        sizes: counts the questions of each call.
    """

    def __init__(self, answer: Callable[[Sequence[Any]], Sequence[Any]], most: int, wait: float, sizes: Histogram):
        self.answer, self.most, self.wait, self.sizes = answer, most, wait, sizes
        self.waiting: asyncio.Queue[tuple[Any, asyncio.Future]] = asyncio.Queue()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers questions inside; at the end the call that runs is awaited, and nothing else begins."""
        self.thread = ThreadPoolExecutor(1, "search")
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.to_thread(self.thread.shutdown)

    async def ask(self, question: Any) -> Any:
        """The answer, as `answer` gives it. A question that is cancelled before its turn is not answered."""
        future = asyncio.get_running_loop().create_future()
        self.waiting.put_nowait((question, future))
        return await future

    async def run(self) -> None:
        alone = False
        while True:
            batch = [await self.waiting.get()]
            with suppress(TimeoutError):
                async with asyncio.timeout(0.0 if alone and self.waiting.empty() else self.wait):
                    while len(batch) < self.most:
                        batch.append(await self.waiting.get())
            alone = len(batch) == 1
            batch = [(question, future) for question, future in batch if not future.done()]
            if batch:
                await self.answer_batch(*zip(*batch, strict=True))

    async def answer_batch(self, questions: Sequence[Any], futures: Sequence[asyncio.Future]) -> None:
        self.sizes.add(len(questions))
        try:
            answers = await self.in_thread(self.answer, questions)
        except Exception as error:
            answers = [error] * len(questions)
        for future, answer in zip(futures, answers, strict=True):
            if not future.done():  # cancelled meanwhile
                future.set_result(answer)

    async def in_thread(self, work: Callable, *arguments: Any) -> Any:
        """Between two calls, in the thread that makes them."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *arguments)
