"""Progress of one call: what the code prints, what is being prepared, and that it still runs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

INTERVAL = 0.5  # seconds between two messages
TICK = 5.0  # seconds of silence after which the client is told that the call still runs
LONGEST = 400  # characters of what was printed since the last message; its end is kept
MOST_LINES = 20  # of a message, that are kept whatever is printed after them

Report = Callable[[float, float | None, str | None], Awaitable[None]]


class Progress:
    """Collects words; a task sends them, so that whoever has words never waits for the client."""

    def __init__(self) -> None:
        self._lines: list[str] = []  # that are not sent yet
        self._words = ""  # that came after them
        self._news = anyio.Event()
        self._started = anyio.current_time()

    async def printed(self, text: str) -> None:
        """Appends to what is not sent yet."""
        self._say((self._words + text)[-LONGEST:])

    async def told(self, line: str) -> None:
        """Appends a line that what is printed afterwards does not push out."""
        self._lines = [*self._lines, *filter(None, [self._words.strip()]), line][-MOST_LINES:]
        self._say("")

    async def doing(self, words: str) -> None:
        """Replaces what is not sent yet."""
        self._lines = []
        self._say(words[-LONGEST:])

    def _say(self, words: str) -> None:
        self._words = words
        self._news.set()

    async def send(self, report: Report) -> None:
        while True:
            with anyio.move_on_after(TICK):
                await self._news.wait()
            await report(self._elapsed, None, self._take() or f"running for {self._elapsed:.0f} s")
            await anyio.sleep(INTERVAL)

    async def send_rest(self, report: Report) -> None:
        """What came in the last moment of a call."""
        if words := self._take():
            await report(self._elapsed, None, words)

    @property
    def _elapsed(self) -> float:
        return anyio.current_time() - self._started

    def _take(self) -> str:
        words = "\n".join([*self._lines, self._words]).strip()
        self._lines, self._words, self._news = [], "", anyio.Event()
        return words.encode("utf-8", "replace").decode()


@asynccontextmanager
async def reporting(report: Report) -> AsyncIterator[Progress]:
    """A `Progress` that `report` hears of until the block ends."""
    progress = Progress()
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(progress.send, report)
        try:
            yield progress
            await progress.send_rest(report)
        except Exception as exc:  # raised below as it is: the task group would wrap it
            failure = exc
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
