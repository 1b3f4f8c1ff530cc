"""Sandboxes that have booted before anybody asked for one, so that creating takes milliseconds.

A spare is an ordinary sandbox with a shut network that no record lists yet. Only a zygote makes
spares: what a program start costs in memory, a spare would cost for nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import anyio

from .errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .isolation import Zygotes
    from .sandbox import Sandbox

logger = logging.getLogger(__name__)

REFILL_PAUSE = 0.5  # seconds that go to the sandbox which was just taken
RETRY_PAUSE = 10.0  # seconds


class Spares:
    """`boot` makes one, however long that takes."""

    def __init__(self, count: int, boot: Callable[[], Awaitable[Sandbox]]) -> None:
        self._count = count
        self._boot = boot
        self._ready: deque[Sandbox] = deque()
        self._missing = anyio.Event()

    def take(self) -> Sandbox | None:
        while self._ready:
            spare = self._ready.popleft()
            self._missing.set()
            if spare.machine is not None:  # else it ended while it waited
                return spare
        return None

    async def keep(self, zygotes: Zygotes) -> None:
        while True:
            await zygotes.wait_ready()
            self._missing = anyio.Event()
            try:
                while len(self._ready) < self._count:
                    self._ready.append(await self._boot())
            except EngineError as exc:
                logger.warning("no spare: %s", exc)
                await anyio.sleep(RETRY_PAUSE)
            else:
                await self._missing.wait()
                await anyio.sleep(REFILL_PAUSE)
