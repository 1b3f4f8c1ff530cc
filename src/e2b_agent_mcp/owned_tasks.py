"""Tasks that run beside an object's other work, and end with the object."""

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyio.abc import TaskGroup


@asynccontextmanager
async def owned_tasks() -> "AsyncIterator[TaskGroup]":
    """A task group that does not wait for its tasks at the end of the block, but cancels them."""
    async with anyio.create_task_group() as tasks:
        try:
            yield tasks
        finally:
            tasks.cancel_scope.cancel()
