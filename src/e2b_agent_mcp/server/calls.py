"""What every call on a sandbox does: lease it, report progress, say where it took place."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mcp.server.mcpserver import Context

from e2b_agent_mcp.lifecycle import Lease, SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.rendering import Place
from e2b_agent_mcp.server.progress import Progress, reporting
from e2b_agent_mcp.server.sessions import current_caller


@asynccontextmanager
async def leased(
    manager: SandboxManager, key: SessionKey, ctx: Context[None]
) -> AsyncIterator[tuple[Lease, Progress]]:
    async with (
        reporting(ctx.report_progress) as progress,
        manager.lease(key, on_progress=progress.doing) as lease,
    ):
        yield lease, progress


def place_of(lease: Lease) -> Place:
    return Place(
        session=lease.session,
        sandbox_id=lease.sandbox_id,
        state=lease.state,
        notes=(lease.lost, current_caller().reminder(lease.session)),
    )
