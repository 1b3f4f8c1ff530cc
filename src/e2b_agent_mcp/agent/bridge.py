"""A blocking function in a thread that calls back into the task that waits for it.

Contract: when that task is cancelled, the callback under way is cancelled with it, and every later
one is refused, so that the function comes to its end; `run` waits for that. anyio's own way
(`from_thread.run`) misses a cancellation that arrives between two callbacks: the next one then runs
as if nothing had happened.
"""

import math
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio import CapacityLimiter, from_thread, to_thread

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectSendStream

T = TypeVar("T")
# Any: each call has a result of its own type.
_Call = tuple[Callable[[], Awaitable[Any]], "Future[Any]"]


class Stopped(BaseException):
    """Raised in the thread by a callback once the waiting task is cancelled."""


class Bridge:
    def __init__(self) -> None:
        self._calls: MemoryObjectSendStream[_Call] | None = None
        self._failure: Exception | None = None

    async def run(self, function: Callable[[], None]) -> None:
        """Runs it in a thread of its own; raises what it raises."""
        self._calls, calls = anyio.create_memory_object_stream[_Call](math.inf)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._run, function, self._calls)
            with calls:
                try:
                    async for callback, future in calls:
                        await _answer(callback, future)
                finally:
                    while calls.statistics().current_buffer_used:
                        calls.receive_nowait()[1].set_exception(Stopped())
        if self._failure is not None:
            raise self._failure

    def call(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Awaits it in the waiting task; to be called in the thread."""
        future: Future[T] = Future()
        from_thread.run_sync(self._send, partial(function, *args), future)
        return future.result()

    def _send(self, callback: Callable[[], Awaitable[T]], future: "Future[T]") -> None:
        assert self._calls is not None
        try:
            self._calls.send_nowait((callback, future))
        except anyio.BrokenResourceError:
            future.set_exception(Stopped())

    async def _run(
        self, function: Callable[[], None], calls: "MemoryObjectSendStream[_Call]"
    ) -> None:
        with calls:
            try:
                # The event loop's own few threads are not to be used up.
                await to_thread.run_sync(function, limiter=CapacityLimiter(1))
            except Stopped:
                return
            except Exception as exc:  # raised by `run`, outside of the task group
                self._failure = exc


async def _answer(callback: Callable[[], Awaitable[T]], future: "Future[T]") -> None:
    try:
        future.set_result(await callback())
    except Exception as exc:
        future.set_exception(exc)
    except BaseException:
        future.set_exception(Stopped())
        raise
