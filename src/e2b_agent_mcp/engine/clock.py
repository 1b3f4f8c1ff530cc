"""The engine's only source of time, so that tests can move it."""

from __future__ import annotations

import time
from typing import Protocol

import anyio


class Clock(Protocol):
    def now(self) -> float:
        """Seconds since the epoch; E2B's answers carry times of day."""

    async def wait(self, event: anyio.Event, until: float) -> None:
        """Returns when the event is set or the time has come."""


class SystemClock:
    def now(self) -> float:
        return time.time()

    async def wait(self, event: anyio.Event, until: float) -> None:
        with anyio.move_on_after(max(0.0, until - self.now())):
            await event.wait()
