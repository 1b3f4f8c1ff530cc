"""What a lease costs per call, beside the bare SDK call on the same sandbox, in the same run.

    python benchmarks/manager.py [CALLS]

The kinds of call alternate, so whatever else the machine does falls on all. An empty lease runs
nothing: what it takes is the manager's own, with ledger, telemetry and a budget to look at. Uses
the E2B that the environment names, else the embedded engine.
"""

import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import anyio

from e2b_agent_mcp import SandboxManager, Settings
from e2b_agent_mcp.pool import SessionKey

KEY = SessionKey("benchmark", "manager")


async def seconds(call: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started


async def main(calls: int) -> None:
    process = Settings.from_process()
    settings = replace(process, costs=replace(process.costs, budget=1e6))
    async with SandboxManager(settings) as manager:

        async def leased() -> None:
            async with manager.lease(KEY) as lease:
                await lease.run_code("1 + 1", timeout=60)

        await leased()
        async with manager.lease(KEY) as lease:
            sandbox = lease.sandbox

        async def bare() -> None:
            await sandbox.run_code("1 + 1")

        async def empty() -> None:
            async with manager.lease(KEY):
                pass

        kinds = (bare, leased, empty)
        try:
            rounds = [[await seconds(call) for call in kinds] for _ in range(calls)]
        finally:
            await manager.end_session(KEY)
    report(rounds)


def report(rounds: list[list[float]]) -> None:
    names = ("bare SDK call", "leased call", "empty lease")
    for name, times in zip(names, zip(*rounds, strict=True), strict=True):
        p95 = statistics.quantiles(times, n=20)[-1]
        print(
            f"{name:14} median {statistics.median(times) * 1e3:7.2f} ms   p95 {p95 * 1e3:7.2f} ms"
        )
    over = statistics.median(leased - bare for bare, leased, _ in rounds)
    print(f"{'the lease':14} median {over * 1e3:7.2f} ms over the bare call of the same round")


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 300)
