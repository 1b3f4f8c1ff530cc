"""What the embedded engine costs, each figure beside its reference in the same run.

    python benchmarks/engine.py [create|run|memory|many|files|stdout|start]... [--rounds N]

An engine of its own is started in a folder of its own. Ours and the reference take turns, so
whatever else the machine does falls on both. `cpu` is the time that the processes on the serving
side worked, which other programs disturb least.
"""

from __future__ import annotations

import argparse
import base64
import json
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import httpx
from e2b.api.client_async import get_transport
from e2b_code_interpreter import E2B, AsyncSandbox
from plain import Kernels, execute, file_server, read_pipe, scratch, stream_server
from processes import cpu_seconds, descendants, pss, rss

from e2b_agent_mcp.engine import EngineOptions
from e2b_agent_mcp.engine.guest.envd.rpc import END, frame
from e2b_agent_mcp.engine.host import prepare_host

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

PANDAS = "import pandas"
SETTLED = 0.05  # seconds between two looks at a memory figure that must stand still
TRANSFER = 100 * 10**6  # bytes
OUTPUT = 50 * 10**6  # bytes
PRINT = f"line = 'x' * 99\nfor _ in range({OUTPUT // 100}): print(line)"


@dataclass
class Engine:
    options: EngineOptions
    e2b: E2B
    pid: int
    ready_after: float

    async def create(self) -> AsyncSandbox:
        return await self.e2b.AsyncSandbox.create(timeout=600)

    def processes(self) -> list[int]:
        return [self.pid, *descendants(self.pid)]


@asynccontextmanager
async def engine(folder: Path, **changes: object) -> AsyncIterator[Engine]:
    """A process that serves, until the block ends."""
    options = EngineOptions(  # type: ignore[arg-type]
        state_dir=folder / "state", runtime_dir=folder / "run", **changes
    )
    await prepare_host(options, print)
    command = [sys.executable, "-m", "e2b_agent_mcp.engine", "--json"]
    with (folder / "log").open("a") as log:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
            [*command, "--options-json", options.to_json()], stdout=subprocess.PIPE, stderr=log
        )
    with process:
        try:
            assert process.stdout is not None
            line = json.loads(await anyio.to_thread.run_sync(process.stdout.readline))
            with urllib.request.urlopen(f"{line['api_url']}/health") as answer:  # noqa: ASYNC210, S310
                assert answer.status == 200
            took = time.perf_counter() - started
            e2b = E2B(**{name: line[name] for name in ("api_url", "sandbox_url", "api_key")})
            yield Engine(options, e2b, line["pid"], took)
        finally:
            process.terminate()


async def forking(running: Engine) -> None:
    """Returns when the zygote is ready and a spare waits."""
    with anyio.fail_after(60):
        while True:
            sandbox = await running.create()
            forked = await sandbox.run_code("'zygote' in open('/proc/self/cmdline').read()")
            await sandbox.kill()
            if forked.text == "True":
                break
        await anyio.sleep(2)


async def kernels(folder: Path) -> Kernels:
    host = await prepare_host(EngineOptions(), print)
    specs = folder / "specs"
    specs.mkdir()
    # Its own bytecode is there: the reference starts no slower than it can.
    return Kernels(
        getattr(sys, "_base_executable", sys.executable), host.template.root / "site", specs
    )


class Clock:
    """Wall and CPU time of one side's rounds. `pids` are looked at before and after each."""

    def __init__(self, name: str, pids: Callable[[], list[int]] | None = None) -> None:
        self.name = name
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._pids = pids

    async def time(self, call: Callable[[], Awaitable[object]]) -> None:
        before = cpu_seconds(self._pids()) if self._pids else 0.0
        started = time.perf_counter()
        await call()
        self.wall.append(time.perf_counter() - started)
        if self._pids:
            self.cpu.append(cpu_seconds(self._pids()) - before)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    def __str__(self) -> str:
        cpu = f"   cpu {statistics.mean(self.cpu) * 1e3:8.2f} ms" if self.cpu else ""
        return (
            f"  {self.name:34} median {self.median * 1e3:9.2f} ms   "
            f"min {min(self.wall) * 1e3:9.2f} ms{cpu}   n={len(self.wall)}"
        )


def verdict(text: str, met: bool) -> None:
    print(f"  {text}: {'met' if met else 'NOT met'}", flush=True)


def compare(ours: Clock, reference: Clock, most: float) -> None:
    print(ours, reference, sep="\n")
    pairs = statistics.median(a / b for a, b in zip(ours.wall, reference.wall, strict=True))
    least = min(ours.wall) / min(reference.wall)
    verdict(
        f"ratio {pairs:.2f} (median of pairs), {least:.2f} (of the minima); target {most}",
        pairs <= most,
    )


async def measure_create(folder: Path, rounds: int) -> None:
    print("create() to the first `import pandas` result, and a plain ipykernel's")
    plain = await kernels(folder)
    ready, crowded = Clock("ours, a spare waits"), Clock("ours, no spare")
    reference = Clock("ipykernel start + import pandas")

    async def first_result(running: Engine, opened: list[AsyncSandbox]) -> None:
        sandbox = await running.create()
        opened.append(sandbox)
        assert (await sandbox.run_code(PANDAS)).error is None

    async def one(clock: Clock, running: Engine) -> None:
        opened: list[AsyncSandbox] = []
        await clock.time(lambda: first_result(running, opened))
        await opened[0].kill()

    async def start() -> None:
        async with plain.kernel() as (_, client):
            await execute(client, PANDAS)

    (folder / "b").mkdir(mode=0o711)
    async with engine(folder) as with_spare, engine(folder / "b", spares=0) as without:
        await forking(with_spare)
        await forking(without)
        for _ in range(rounds):
            await one(ready, with_spare)
            await one(crowded, without)
            await reference.time(start)
    print(ready, crowded, reference, sep="\n")
    share = ready.median / reference.median
    verdict(f"{ready.median * 1e3:.1f} ms; target 80 ms", ready.median <= 0.080)
    verdict(f"{share:.1%} of the reference; target 5 %", share <= 0.05)


async def measure_run(folder: Path, rounds: int) -> None:
    print('run_code("1+1") through the SDK, and jupyter_client straight to an ipykernel')
    plain = await kernels(folder)
    async with engine(folder) as running, plain.kernel() as (pid, client):
        await forking(running)
        sandbox = await running.create()
        await anyio.sleep(2)  # the spare that replaces it
        ours, reference = Clock("ours"), Clock("jupyter_client")

        async def run() -> None:
            assert (await sandbox.run_code("1+1")).text == "2"

        async def straight() -> None:
            await execute(client, "1+1")

        for clock, call in ((ours, run), (reference, straight)) * 20:
            await clock.time(call)
        ours, reference = Clock("ours"), Clock("jupyter_client")
        before = cpu_seconds(running.processes()), cpu_seconds([pid])
        for _ in range(rounds):
            await ours.time(run)
            await reference.time(straight)
        used = cpu_seconds(running.processes()) - before[0], cpu_seconds([pid]) - before[1]
    compare(ours, reference, 1.5)
    print(
        "  cpu of engine and box {:.2f} ms, of the plain kernel {:.2f} ms a call".format(
            *(value / rounds * 1e3 for value in used)
        )
    )


async def settled_pss(pids: Callable[[], list[int]]) -> float:
    last = pss(pids())
    while True:
        await anyio.sleep(SETTLED)
        now = pss(pids())
        if abs(now - last) < 0.2:
            return now
        last = now


async def measure_memory(folder: Path, rounds: int) -> None:
    print("memory (PSS) of a further idle sandbox with pandas imported, and of an ipykernel's")
    plain = await kernels(folder)
    few, many = 10, 10 + rounds
    async with engine(folder, max_sandboxes=many) as running, AsyncExitStack() as started:
        await forking(running)
        empty = await settled_pss(running.processes)
        for count in range(1, many + 1):
            sandbox = await running.create()
            assert (await sandbox.run_code(PANDAS)).error is None
            if count == few:
                await anyio.sleep(2)
                at_few = await settled_pss(running.processes)
        await anyio.sleep(2)
        at_many = await settled_pss(running.processes)
        each = (at_many - at_few) / (many - few)
        pids: list[int] = []
        for _ in range(3):
            pid, client = await started.enter_async_context(plain.kernel())
            await execute(client, PANDAS)
            pids.append(pid)
        reference = pss(pids) / len(pids)
    print(f"  engine, zygote and one spare          {empty:8.1f} MiB")
    print(f"  with {few} and {many} sandboxes         {at_few:8.1f} MiB {at_many:8.1f} MiB")
    print(f"  a separate ipykernel with pandas      {reference:8.1f} MiB (mean of {len(pids)})")
    verdict(f"{each:.1f} MiB for a further sandbox; target 25 MiB", each <= 25)


async def measure_many(folder: Path, rounds: int) -> None:
    count, makers = 100, 4
    print(f"{count} sandboxes alive, {makers} made at a time, each answering")
    async with engine(folder, max_sandboxes=count) as running:
        await forking(running)
        sandboxes: list[AsyncSandbox] = []

        async def make(some: int) -> None:
            for _ in range(some):
                sandbox = await running.create()
                assert (await sandbox.run_code(PANDAS)).error is None
                sandboxes.append(sandbox)

        started = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(makers):
                tasks.start_soon(make, count // makers)
        rate = count / (time.perf_counter() - started)
        memory = pss(running.processes())
        answers = [(await s.run_code("6 * 7")).text for s in sandboxes]
        print(f"  memory of all {memory:.0f} MiB")
        verdict(f"{answers.count('42')} of {count} answer", answers.count("42") == count)
        verdict(f"{rate:.1f} a second, pandas imported; target 10", rate >= 10)


async def measure_files(folder: Path, rounds: int) -> None:
    print(f"{TRANSFER // 10**6} MB up and down, and by a plain uvicorn")
    content = bytes(range(256)) * (TRANSFER // 256)
    async with engine(folder) as running, AsyncExitStack() as opened:
        await forking(running)
        sandbox = await running.create()
        # The client that the SDK transfers files with.
        transport = get_transport(sandbox.connection_config, http_version="1.1")
        client = httpx.AsyncClient(transport=transport, timeout=60)
        url, server = opened.enter_context(file_server(folder / "file"))
        clocks = {
            name: (
                Clock(f"ours, {name}", running.processes),
                Clock(f"uvicorn, {name}", lambda: [server]),
            )
            for name in ("up (multipart)", "up (octet-stream)", "down (bytes)", "down (stream)")
        }

        async def up() -> None:
            await sandbox.files.write("data", content)

        async def up_octets() -> None:
            await sandbox.files.write("data", content, use_octet_stream=True)

        async def plain_up() -> None:
            answer = await client.post(url, content=content)
            assert answer.status_code == 204

        async def down() -> None:
            assert len(await sandbox.files.read("data", format="bytes")) == len(content)

        async def down_stream() -> None:
            parts = [len(part) async for part in await sandbox.files.read("data", format="stream")]
            assert sum(parts) == len(content)

        async def plain_down() -> None:
            assert len((await client.get(url)).content) == len(content)

        async def plain_stream() -> None:
            async with client.stream("GET", url) as answer:
                assert sum([len(part) async for part in answer.aiter_bytes()]) == len(content)

        calls = (
            (up, plain_up),
            (up_octets, plain_up),
            (down, plain_down),
            (down_stream, plain_stream),
        )
        for number in range(rounds + 1):
            for (ours, reference), (mine, plain) in zip(clocks.values(), calls, strict=True):
                await ours.time(mine)
                await reference.time(plain)
            if number == 0:  # a warm-up
                for pair in clocks.values():
                    for clock in pair:
                        clock.wall.clear()
                        clock.cpu.clear()
        for ours, reference in clocks.values():
            compare(ours, reference, 1.5)


def write_answers(folder: Path) -> None:
    """`OUTPUT` bytes as an engine could at best send them to `run_code` and `commands.run`."""
    text = ("x" * 99 + "\n") * 2500
    line = json.dumps({"type": "stdout", "text": text, "timestamp": ""}).encode() + b"\n"
    count = OUTPUT // len(text)
    (folder / "execute").write_bytes(line * count + b'{"type": "end_of_execution"}\n')
    encoded = base64.b64encode(text.encode()).decode()
    events = [{"start": {"pid": 1}}, *[{"data": {"stdout": encoded}}] * count]
    events.append({"end": {"exitCode": 0, "exited": True, "status": "exit status 0"}})
    frames = [frame(0, {"event": event}) for event in events] + [frame(END, {})]
    (folder / "Start").write_bytes(b"".join(frames))


async def measure_stdout(folder: Path, rounds: int) -> None:
    print(f"{OUTPUT // 10**6} MB of stdout, and through a pipe")
    python = getattr(sys, "_base_executable", sys.executable)
    write_answers(folder)
    async with engine(folder) as running, AsyncExitStack() as opened:
        await forking(running)
        url, _ = opened.enter_context(stream_server(folder))
        sandbox = await running.create()
        await sandbox.files.write("print.py", PRINT)
        ready = await running.e2b.AsyncSandbox.connect(sandbox.sandbox_id, sandbox_url=url)
        reference = Clock("a program's, through a pipe")
        alone = Clock("run_code, the SDK alone"), Clock("commands.run, the SDK alone")
        ours = Clock("run_code"), Clock("commands.run")

        async def code() -> None:
            assert sum(map(len, (await sandbox.run_code(PRINT)).logs.stdout)) == OUTPUT

        async def command() -> None:
            assert len((await sandbox.commands.run("python print.py")).stdout) == OUTPUT

        async def code_alone() -> None:
            assert sum(map(len, (await ready.run_code(PRINT)).logs.stdout)) == OUTPUT

        async def command_alone() -> None:
            assert len((await ready.commands.run("python print.py")).stdout) == OUTPUT

        async def pipe() -> None:
            assert len(await anyio.to_thread.run_sync(read_pipe, python, PRINT)) == OUTPUT

        for _ in range(rounds):
            await ours[0].time(code)
            await ours[1].time(command)
            await reference.time(pipe)
            await alone[0].time(code_alone)
            await alone[1].time(command_alone)
    for clock in ours:
        compare(clock, reference, 1.5)
    print("  what the SDK itself takes for as much from a plain uvicorn, all of it ready:")
    print(*alone, sep="\n")


async def measure_start(folder: Path, rounds: int) -> None:
    print("engine: start to healthy, and idle memory without a zygote")
    times, sizes, work = [], [], []
    for _ in range(rounds):
        async with engine(folder, zygote=False, spares=0) as running:
            times.append(running.ready_after)
            work.append(cpu_seconds([running.pid]))
            await anyio.sleep(0.5)
            sizes.append(rss(running.pid))
    median, memory = statistics.median(times), statistics.median(sizes)
    print(f"  cpu of the engine until then {statistics.median(work):.2f} s")
    verdict(f"{median:.2f} s (min {min(times):.2f}); target 1.5 s", median <= 1.5)
    verdict(f"{memory:.1f} MiB resident; target 80 MiB", memory <= 80)


ROWS = {
    "create": (measure_create, 15),
    "run": (measure_run, 200),
    "memory": (measure_memory, 10),
    "many": (measure_many, 1),
    "files": (measure_files, 5),
    "stdout": (measure_stdout, 5),
    "start": (measure_start, 5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW")
    parser.add_argument("--rounds", type=int)
    options = parser.parse_args()
    for row in options.rows or ROWS:
        measure, usual = ROWS[row]
        with scratch() as folder:
            anyio.run(measure, folder, options.rounds or usual)


if __name__ == "__main__":
    main()
