"""Where every task stands, for a test that waits for too long."""

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import FrameType

import anyio


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Fails after so long; first prints what every task waits for, as what hangs may be shielded
    and never end."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_fail_after, seconds)
        yield
        tasks.cancel_scope.cancel()


async def _fail_after(seconds: float) -> None:
    await anyio.sleep(seconds)
    for task in asyncio.all_tasks():
        print(f"\n{task.get_name()}", file=sys.stderr)
        frames = [(frame, frame.f_lineno) for frame in _frames(task)]
        print(*traceback.StackSummary.extract(iter(frames)).format(), file=sys.stderr)
    raise TimeoutError(f"not over after {seconds:g} s")


def _frames(task: "asyncio.Task[object]") -> Iterator[FrameType]:
    """Of the coroutines that wait for one another, the outermost first."""
    waiting: object = task.get_coro()
    while waiting is not None:
        for kind in ("cr", "gi", "ag"):
            if (frame := getattr(waiting, f"{kind}_frame", None)) is not None:
                yield frame
        waiting = next(
            (
                getattr(waiting, name)
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if hasattr(waiting, name)
            ),
            None,
        )
