"""What sandboxes used, every few seconds: E2B's metrics.

One look at the host's processes serves all sandboxes. Counting what a home holds takes a program
that walks it, so that is done seldom, and when somebody asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from .homes import disk_usage
from .isolation import Usage, measure
from .sandbox import Sample

if TYPE_CHECKING:
    from collections.abc import Collection

    from .clock import Clock
    from .isolation import Owner
    from .sandbox import Sandbox

SAMPLE_INTERVAL = 5.0  # seconds, as in E2B's cloud
DISK_INTERVAL = 60.0  # seconds
FRESH = 1.0  # seconds that a sample is the answer to who asks
FIRST_LOOK = 0.1  # seconds that a sandbox's first share of the processors is taken over


class History:
    def __init__(self, clock: Clock, owner: Owner) -> None:
        self._clock = clock
        self._owner = owner

    async def sample(self, sandboxes: Collection[Sandbox]) -> None:
        """Adds what each uses now; one without a box has nothing to add."""
        before = {s: (s.samples[-1].at, s.samples[-1].cpu_seconds) for s in sandboxes if s.samples}
        if new := [s for s in sandboxes if not s.samples]:
            now = self._clock.now()
            before |= {s: (now, usage.cpu_seconds) for s, usage in (await _look(new)).items()}
            await anyio.sleep(FIRST_LOOK)
        for sandbox, usage in (await _look(sandboxes)).items():
            sandbox.usage = usage
            if sandbox in before:
                await self._add(sandbox, usage, *before[sandbox])

    async def sample_now(self, sandbox: Sandbox) -> None:
        """For somebody who asks."""
        if sandbox.samples and self._clock.now() - sandbox.samples[-1].at < FRESH:
            return
        sandbox.disk = sandbox.usage = None
        await self.sample([sandbox])

    async def _add(self, sandbox: Sandbox, usage: Usage, since: float, spent: float) -> None:
        now = self._clock.now()
        if sandbox.disk is None or now - sandbox.disk[0] >= DISK_INTERVAL:
            sandbox.disk = now, await disk_usage(sandbox.home, self._owner)
        percent = 100 * max(0.0, usage.cpu_seconds - spent) / max(now - since, FIRST_LOOK)
        sandbox.samples.append(
            Sample(now, usage.cpu_seconds, percent, usage.memory_bytes, sandbox.disk[1])
        )


async def _look(sandboxes: Collection[Sandbox]) -> dict[Sandbox, Usage]:
    boxes = {s: s.machine.box.namespace for s in sandboxes if s.machine is not None}
    if not boxes:
        return {}
    known = {boxes[s]: s.usage for s in boxes if s.usage is not None}
    found = await anyio.to_thread.run_sync(measure, set(boxes.values()), known)
    return {sandbox: found[namespace] for sandbox, namespace in boxes.items()}
