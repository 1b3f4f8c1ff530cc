"""A thread and the task that waits for it."""

import threading

import anyio
import pytest

from e2b_agent_mcp.agent.bridge import Bridge, Stopped


async def double(number: int) -> int:
    return 2 * number


async def test_a_thread_calls_into_the_waiting_task() -> None:
    bridge, doubled = Bridge(), list[int]()

    def work() -> None:
        doubled.extend(bridge.call(double, number) for number in (1, 2))

    await bridge.run(work)
    assert doubled == [2, 4]


async def test_a_callback_that_fails_fails_in_the_thread_and_then_in_the_task() -> None:
    bridge = Bridge()

    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await bridge.run(lambda: bridge.call(fail))


async def test_a_cancelled_task_stops_the_callback_under_way() -> None:
    bridge, started, stopped = Bridge(), anyio.Event(), list[BaseException]()

    async def wait() -> None:
        started.set()
        await anyio.sleep_forever()

    def work() -> None:
        try:
            bridge.call(wait)
        except Stopped as exc:
            stopped.append(exc)
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.run, work)
        await started.wait()
        tasks.cancel_scope.cancel()
    assert len(stopped) == 1


async def test_a_cancellation_between_two_callbacks_refuses_the_next() -> None:
    bridge, cancelled, ran = Bridge(), threading.Event(), list[int]()
    first = anyio.Event()

    async def note(number: int) -> None:
        ran.append(number)
        first.set()

    def work() -> None:
        bridge.call(note, 1)
        cancelled.wait(5)
        bridge.call(note, 2)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bridge.run, work)
        await first.wait()
        tasks.cancel_scope.cancel()
        await anyio.lowlevel.cancel_shielded_checkpoint()
        cancelled.set()
    assert ran == [1]
