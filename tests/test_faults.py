"""The manager behind a proxy that fails: every fault at every kind of request.

Whatever becomes of one request, or of all for a while, the call ends in time: as if nothing had
been, or with one of our errors. No code runs twice, no session gets a second sandbox, and none is
taken for lost that is there.
"""

import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import anyio
import pytest
from e2b import SandboxQuery
from e2b_code_interpreter import E2B

import faults
from conftest import Connector, client, running_engine, temporary_options
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.errors import SandboxError, SandboxLostError
from e2b_agent_mcp.lifecycle import Lease, SandboxManager
from e2b_agent_mcp.pool import SessionKey, owned_by
from e2b_agent_mcp.settings import SandboxSettings, Settings
from faults import CONTROL, Always, Fault, FaultProxy, Route, Script
from rounds import rounds

PATIENT = Settings(sandboxes=SandboxSettings(idle_after=300, max=100))
HASTY = Settings(
    sandboxes=replace(PATIENT.sandboxes, request_timeout=3, create_timeout=8)
)  # where no answer comes
SIDE_BY_SIDE = 5  # cases; most of their time they wait
RUN_LIMIT = 5.0  # seconds
DEADLINE = 60.0  # seconds for one call, whatever happens: three attempts of several requests
ONCE = rounds(few=2, many=100)  # faults of each route
OUTAGES = rounds(few=1, many=100)  # of each operation

FAULTS: dict[str, Fault] = {
    "closed before": faults.close_before,
    "closed after": faults.close_after,
    "reset before": faults.reset_before,
    "reset after": faults.reset_after,
    "429": faults.answer(429),
    "429, wait 1 s": faults.answer(429, retry_after=1),
    "429, wait a day": faults.answer(429, retry_after=86_400),
    "500": faults.answer(500),
    "500, not JSON": faults.answer(500, as_json=False),
    "502": faults.answer(502),
    "502 after": faults.answer(502, forwarded=True),
    "502, not JSON": faults.answer(502, as_json=False),
    "503": faults.answer(503),
    "503, not JSON": faults.answer(503, as_json=False),
    "504 after": faults.answer(504, forwarded=True),
    "truncated": faults.truncate,
    "half an answer": faults.end_early,
    "not JSON": faults.not_json,
    "empty": faults.empty,
    "late": faults.delay(0.3),
    "slow": faults.slow(0.05),
    "no answer, not asked": faults.hang_before,
    "no answer": faults.hang_after,
}
HARMLESS = ("late", "slow")
HANGING = ("no answer, not asked", "no answer")


@pytest.fixture(scope="module")
def roomy() -> Iterator[EngineAddress]:
    """An engine that takes a sandbox per case."""
    with temporary_options(max_sandboxes=60) as options, running_engine(options) as address:
        yield address


@dataclass(kw_only=True)
class Case:
    """One session, the proxy between it and the engine, and what must be true of it."""

    proxy: FaultProxy
    manager: SandboxManager
    patient: SandboxManager
    e2b: E2B
    key: SessionKey = field(default_factory=lambda: SessionKey(uuid.uuid4().hex, "0"))
    numbers: Iterator[int] = field(default_factory=count)

    async def prepare(self) -> None:
        async with self.patient.lease(self.key) as lease:
            await text(lease, "x = 42; globals().setdefault('ran', [])")
            await lease.write_file("long", LONG)
        async with self.manager.lease(self.key) as lease:
            assert lease.state in ("reused", "recreated")  # it may know an earlier sandbox

    async def sandboxes(self) -> list[str]:
        """Past the proxy."""
        pages = self.e2b.AsyncSandbox.list(query=SandboxQuery(metadata=owned_by(self.key.owner)))
        found = []
        while pages.has_next:
            found += [item.sandbox_id for item in await pages.next_items()]
        return found

    async def check(self) -> None:
        """The session is whole, and its sandbox the only one."""
        async with self.patient.lease(self.key) as lease:
            assert lease.state in ("reused", "created"), lease.lost
            assert lease.lost == ""
            assert await text(lease, "globals().setdefault('x', 42)") == "42"
            assert (
                await text(lease, "r = globals().setdefault('ran', []); len(r) - len({*r})") == "0"
            )
            once = await lease.run_command("touch ran; sort ran | uniq -d", timeout=30)
            assert once.stdout == ""
            assert await self.sandboxes() == [lease.sandbox_id]

    async def end(self) -> None:
        await self.patient.end_session(self.key)
        assert await self.sandboxes() == []


LONG = b"long " * 1000


async def text(lease: Lease, code: str) -> str | None:
    """The main result of code that must succeed."""
    run = await lease.run_code(code, timeout=30)
    assert run.status == "ok", run
    return run.execution.text


# What a call may do, and which of its requests fails


async def create(case: Case) -> object:
    async with case.manager.lease(case.key) as lease:
        return lease.state


async def connect(case: Case) -> object:
    """By a server that does not know the sandbox."""
    async with (
        SandboxManager(HASTY, connect=Connector(case.proxy.address)) as stranger,
        stranger.lease(case.key) as lease,
    ):
        return lease.state


async def extend(case: Case) -> object:
    case.manager._pool.slot(case.key).doubted = True
    async with case.manager.lease(case.key) as lease:
        return lease.state


async def list_sessions(case: Case) -> object:
    return [session.name for session in await case.manager.list_sessions(case.key.owner)]


async def end(case: Case) -> object:
    return await case.manager.end_session(case.key)


async def run(case: Case) -> object:
    number = next(case.numbers)
    code = f"ran.append({number}); ran.count({number})"
    async with case.manager.lease(case.key) as lease:
        done = await lease.run_code(code, timeout=RUN_LIMIT)
        await lease.changed_files()
        return (done.status, done.execution.text) if done.status == "ok" else done.status


async def command(case: Case) -> object:
    number = next(case.numbers)
    async with case.manager.lease(case.key) as lease:
        done = await lease.run_command(f"echo {number} >> ran; echo done", timeout=RUN_LIMIT)
        return (done.status, done.stdout) if done.status == "ok" else done.status


async def write(case: Case) -> object:
    async with case.manager.lease(case.key) as lease:
        return await lease.write_file("data/given", LONG)


async def read(case: Case) -> object:
    async with case.manager.lease(case.key) as lease:
        return await lease.read_file("long")


async def list_files(case: Case) -> object:
    async with case.manager.lease(case.key) as lease:
        return [item.path for item in await lease.list_files("/home")]


Operation = Callable[[Case], Awaitable[object]]
EXPECTED: dict[Operation, object] = {
    create: "created",
    connect: "reused",
    extend: "reused",
    list_sessions: ["0"],
    end: True,
    run: ("ok", "1"),
    command: ("ok", "done\n"),
    write: None,
    read: LONG,
    list_files: ["/home/user"],
}
CASES: list[tuple[Operation, Route]] = [
    (create, "create"),
    (create, "list"),
    (connect, "list"),
    (connect, "connect"),
    (connect, "extend"),
    (extend, "extend"),
    (list_sessions, "list"),
    (end, "list"),
    (end, "kill"),
    (run, "execute"),
    (run, "rpc"),
    (command, "rpc"),
    (write, "files"),
    (read, "files"),
    (read, "rpc"),
    (list_files, "rpc"),
]


async def attempt(case: Case, operation: Operation) -> SandboxError | None:
    """The call ends in time, as it should or with an error of ours: what happened, what next."""
    try:
        with anyio.fail_after(DEADLINE):
            answer = await operation(case)
    except SandboxLostError as exc:
        raise AssertionError("a sandbox that is there was taken for lost") from exc
    except SandboxError as exc:
        return exc
    if answer != "timeout":
        assert answer == EXPECTED[operation]
    return None


async def endure(case: Case, operation: Operation, fault: str, program: faults.Program) -> None:
    """One operation under one program, and then the session as it must be."""
    if operation is create:
        case.key = SessionKey(case.key.owner, fault)
    else:
        await case.prepare()
    case.proxy.program = program
    error = await attempt(case, operation)
    assert case.proxy.faults()
    case.proxy.log.clear()
    case.proxy.program = faults.no_faults
    if isinstance(program, Script) and may_not_fail(program, fault):
        assert error is None
    if error is not None:
        assert error.message
        assert error.hint
    if operation is not end:
        await case.check()
    if operation in (create, end):
        await case.end()


def may_not_fail(program: Script, fault: str) -> bool:
    """A single failure of the control plane is made good, if it comes to light in time."""
    return fault in HARMLESS or (program.routes <= {*CONTROL} and fault not in HANGING)


async def endure_all(
    engine: EngineAddress,
    operation: Operation,
    programs: dict[str, faults.Program],
    wrong: list[str],
    turns: anyio.Semaphore,
) -> None:
    async with (
        turns,
        FaultProxy.serve(engine) as proxy,
        SandboxManager(PATIENT, connect=Connector(proxy.address)) as patient,
        SandboxManager(HASTY, connect=Connector(proxy.address)) as hasty,
    ):
        case = Case(proxy=proxy, manager=patient, patient=patient, e2b=client(engine))
        for fault, program in programs.items():
            case.manager = hasty if fault in HANGING else patient
            try:
                await endure(case, operation, fault, program)
            except Exception as exc:
                wrong.append(f"{operation.__name__}, {fault}: {exc!r}, cause {exc.__cause__!r}")
                proxy.program = faults.no_faults
                await case.end()
        await case.end()


def some(most: int) -> list[str]:
    return random.sample(list(FAULTS), min(most, len(FAULTS)))


async def test_one_failing_request(roomy: EngineAddress) -> None:
    wrong: list[str] = []
    turns = anyio.Semaphore(SIDE_BY_SIDE)
    async with anyio.create_task_group() as tasks:
        for operation, route in CASES:
            programs = {name: Script(**{route: [FAULTS[name]]}) for name in some(ONCE)}
            tasks.start_soon(endure_all, roomy, operation, programs, wrong, turns)
    assert wrong == []


async def test_a_whole_outage(roomy: EngineAddress) -> None:
    wrong: list[str] = []
    turns = anyio.Semaphore(SIDE_BY_SIDE)
    async with anyio.create_task_group() as tasks:
        for operation in EXPECTED:
            chosen = [name for name in some(OUTAGES) if name not in HARMLESS]
            programs = {name: Always(FAULTS[name], *faults.ROUTES) for name in chosen}
            tasks.start_soon(endure_all, roomy, operation, programs, wrong, turns)
    assert wrong == []
