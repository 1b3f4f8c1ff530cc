"""What every call on a sandbox does: lease it, report progress, say where it took place."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from mcp.server.mcpserver import Context

from e2b_agent_mcp.errors import E2BAgentError
from e2b_agent_mcp.lifecycle import Lease, SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.rendering import Place
from e2b_agent_mcp.server.background import current_background
from e2b_agent_mcp.server.progress import Progress, reporting
from e2b_agent_mcp.server.sessions import current_caller
from e2b_agent_mcp.tasks import TaskRegistry

logger = logging.getLogger(__name__)


class Calls:
    """Leases sandboxes to calls, and gets ready for the first one ahead of it."""

    def __init__(self, manager: SandboxManager, tasks: TaskRegistry) -> None:
        self.manager = manager
        self.tasks = tasks
        self._preparing = ""  # what is being prepared, "" when nothing is
        self._waiting: set[Progress] = set()

    async def prepare(self) -> None:
        """Connects to E2B, which may build the engine's template: calls that wait hear of it.

        Never raises: the first call meets the same trouble, and tells the model.
        """
        try:
            await self.manager.prepare(self._tell)
        except E2BAgentError as exc:
            logger.warning("%s", exc)
        except Exception:
            logger.exception("cannot get ready for the first call")
        finally:
            self._preparing = ""

    async def _tell(self, words: str) -> None:
        self._preparing = words
        for progress in tuple(self._waiting):
            await progress.doing(words)

    @asynccontextmanager
    async def lease(
        self, key: SessionKey, ctx: Context[None], *, use: Literal["work", "read"] = "work"
    ) -> AsyncIterator[tuple[Lease, Progress]]:
        async with self.reporting(ctx) as progress:
            if words := self.tasks.busy(key):
                await progress.doing(words)
            async with self.manager.lease(key, use=use, on_progress=progress.doing) as lease:
                self._waiting.discard(progress)
                yield lease, progress

    @asynccontextmanager
    async def reporting(self, ctx: Context[None]) -> AsyncIterator[Progress]:
        """Progress of a call, which hears of what is being prepared."""
        background = current_background()
        report = background.reporting(ctx.report_progress) if background else ctx.report_progress
        async with reporting(report) as progress:
            self._waiting.add(progress)
            try:
                if self._preparing:
                    await progress.doing(self._preparing)
                yield progress
            finally:
                self._waiting.discard(progress)


def place_of(lease: Lease) -> Place:
    return Place(
        session=lease.session,
        sandbox_id=lease.sandbox_id,
        state=lease.state,
        notes=(lease.lost, lease.warning, current_caller().reminder(lease.session)),
    )
