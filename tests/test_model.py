"""Random histories of servers, calls, failures and crashes, and what must be true in all of them.

Several servers of one owner share sessions on a real engine, through a proxy that fails at times.
Every piece of code that is run has a number, which it adds to a list in the interpreter; so each
answer shows what ran before it in the same sandbox, and the proxy's log what was sent how often.

What holds, whatever happens: no code is sent to a live sandbox twice; what an answered call did is
there in the next one, unless that says what was lost, and nothing is lost without a cause; a
session has one sandbox, not older than it may be; a call fails only if something failed; no more
sandboxes run than may; nothing is left in the end, and what ran has been counted, no less and, but
for what nobody could know, no more.

Histories differ in their settings. Where fewer sandboxes may run than there are sessions, there is
one server after the other: two that live count each other's sandboxes with a delay.
"""

import ast
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus
from e2b import NotFoundException

import faults
from conftest import Connector, client
from e2b_agent_mcp.costs import Spent
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.errors import SandboxError, SandboxLostError
from e2b_agent_mcp.lifecycle import Lease, SandboxManager
from e2b_agent_mcp.lifecycle.claims import Found
from e2b_agent_mcp.lifecycle.stopping import KEPT
from e2b_agent_mcp.pool import Candidate, Pool, SessionKey, owned_by
from e2b_agent_mcp.settings import EngineSettings, SandboxSettings, Settings
from faults import CONTROL, ROUTES, Exchange, Fault, FaultProxy, Route
from rounds import rounds
from seconds import Seconds
from stacks import deadline

HISTORIES = rounds(few=2, many=40)
STEPS = rounds(few=20, many=50)
NAMES = ("a", "b", "c")
MOST_SERVERS = 3
DEADLINE = 180.0  # seconds for one step, which may wait for a sandbox
LATE = 2.0  # seconds that the account of what was spent may be wrong
IDLE_AFTER = 1200.0
ROUNDED = 1.0  # seconds of a sandbox's age that its metadata do not tell

SETUPS = {
    "plain": SandboxSettings(idle_after=IDLE_AFTER, max=len(NAMES)),
    "aging": SandboxSettings(idle_after=IDLE_AFTER, max=len(NAMES), max_age=4),
    "warm": SandboxSettings(idle_after=IDLE_AFTER, max=len(NAMES) + 1, warm=1),
    "few": SandboxSettings(idle_after=IDLE_AFTER, max=len(NAMES) - 1),
    "few, aging, warm": SandboxSettings(
        idle_after=IDLE_AFTER, max=len(NAMES) - 1, max_age=6, warm=1
    ),
}

CREATED = 201  # HTTP

FAULTS: dict[str, Fault] = {
    "close before": faults.close_before,
    "close after": faults.close_after,
    "reset before": faults.reset_before,
    "reset after": faults.reset_after,
    "truncate": faults.truncate,
    "not JSON": faults.not_json,
    "late": faults.delay(0.2),
    **{str(status): faults.answer(status) for status in (429, 500, 502, 503, 504)},
    **{f"{status} after": faults.answer(status, forwarded=True) for status in (502, 504)},
}


@dataclass(eq=False)
class Burst:
    """The next requests of some routes fail."""

    fault: Fault
    routes: tuple[Route, ...]
    left: int

    def __call__(self, exchange: Exchange) -> Fault | None:
        if exchange.route not in self.routes or not self.left:
            return None
        self.left -= 1
        return self.fault


class Server:
    """A manager with a network of its own, which a crash takes away first."""

    def __init__(
        self, engine: EngineAddress, program: faults.Program, sandboxes: SandboxSettings
    ) -> None:
        self._engine = engine
        self._program = program
        self._settings = Settings(sandboxes=sandboxes)
        self._network = anyio.CancelScope()
        self._ended = anyio.Event()
        self.manager: SandboxManager
        self.tasks: TaskGroup

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as tasks:
            address = await tasks.start(self._serve_network)
            with anyio.CancelScope() as self._life:
                async with (
                    SandboxManager(self._settings, connect=Connector(address)) as self.manager,
                    anyio.create_task_group() as self.tasks,
                ):
                    task_status.started()
                    await anyio.sleep_forever()
            self._network.cancel()
        self._ended.set()

    async def _serve_network(self, *, task_status: TaskStatus[EngineAddress]) -> None:
        with self._network:
            async with FaultProxy.serve(self._engine) as proxy:
                proxy.program = self._program
                task_status.started(proxy.address)
                await anyio.sleep_forever()

    async def crash(self) -> None:
        self._network.cancel()
        self._life.cancel()
        await self._ended.wait()


@dataclass(eq=False)
class Known:
    """What must be true of a session."""

    done: set[int] = field(default_factory=set)  # numbers whose calls were answered
    maybe: set[int] = field(default_factory=set)  # those of every call
    losses: int = 0  # told so far
    endings: int = 0  # of its sandboxes, by us
    lost: bool = False  # something ended its sandbox, and no call has told so
    stale: set[Server] = field(default_factory=set)  # servers that have a loss to tell
    knows: set[Server] = field(default_factory=set)  # servers that had an answer of it

    def tell_loss(self, server: Server, *, aged: bool) -> None:
        known = self.lost or not self.done or server in self.stale or aged
        assert known, "lost without a cause"
        self.lost = False
        self.stale |= self.knows - {server}
        self.losses += 1
        self.done.clear()


class World:
    """One owner's servers and sessions on an engine; its steps raise when something is untrue."""

    def __init__(
        self,
        engine: EngineAddress,
        tasks: TaskGroup,
        observer: SandboxManager,
        setup: SandboxSettings,
    ) -> None:
        self.owner = uuid.uuid4().hex
        self.setup = setup
        self.sessions = {name: Known() for name in NAMES}
        self.servers: list[Server] = []
        self.burst: Burst | None = None
        self.log: list[Exchange] = []
        self._engine = engine
        self._tasks = tasks
        self._observer = observer
        self._e2b = client(engine)
        self._numbers = count(1)
        self._asked = anyio.Event()
        self.alone = True  # no two servers have been there at once
        self._seconds = Seconds()
        self._checked = 0  # requests, until the last check
        self._cut = False  # in this step a server or its caller went away
        self._settling = False  # since then, too many may run
        self._began = time.monotonic()

    def program(self, exchange: Exchange) -> Fault | None:
        self.log.append(exchange)
        self._asked.set()
        self._asked = anyio.Event()
        return self.burst(exchange) if self.burst is not None else None

    async def requests(self, number: int) -> None:
        """Returns when so many more requests have been sent."""
        most = len(self.log) + number
        while len(self.log) < most:
            await self._asked.wait()

    # Servers

    async def start_server(self) -> None:
        self.alone &= not self.servers
        server = Server(self._engine, self.program, self.setup)
        await self._tasks.start(server.serve)
        self.servers.append(server)

    @property
    def most_servers(self) -> int:
        return MOST_SERVERS if self.setup.max >= len(NAMES) else 1

    async def crash(self, server: Server) -> None:
        self._cut = True
        self.servers.remove(server)
        await server.crash()
        if not self.servers:
            await self._pass_time()
            await self.start_server()

    async def _pass_time(self) -> None:
        """As if nobody had used a sandbox for long enough that this can be seen."""
        pool = Pool(self.setup)
        left = int(pool.end_at(0) - pool.surely_unused) - 1
        for item in (found := await self._found()).claimed + found.unclaimed:
            with suppress(NotFoundException):  # ended by what a crashed server had asked for
                if not item.paused:
                    await self._e2b.AsyncSandbox.set_timeout(item.sandbox_id, left)

    async def crash_in_call(self, server: Server, name: str, requests: int) -> None:
        """The server crashes when it has sent so many requests, or after the call."""

        over = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._at_request, requests, over.set)
            server.tasks.start_soon(self._suppressed_call, server, name, over)
            await over.wait()
            await self.crash(server)
            tasks.cancel_scope.cancel()

    # Calls

    async def call(self, server: Server, name: str, *, then: str = "", limit: float = 60) -> None:
        """Runs code that adds its number to the list of those that ran, and shows the list."""
        known = self.sessions[name]
        number, began = next(self._numbers), time.time()
        known.maybe.add(number)
        expected, losses, endings = set(known.done), known.losses, known.endings
        code = f"ran = globals().get('ran', []); ran.append({number})  # number {number}.\n{then}"
        lease: Lease | None = None
        try:
            async with server.manager.lease(SessionKey(self.owner, name)) as lease:
                run = await lease.run_code(f"{code}\nprint(ran)", timeout=limit)
        except BaseException:
            # It may have cost the interpreter; what was lost is told again by the next call.
            known.stale.add(server)
            raise
        finally:
            if lease is not None and (lease.lost or lease.state in ("created", "recreated")):
                known.tell_loss(server, aged=self._may_be_old)
        if known.endings == endings:
            known.stale.discard(server)
        if run.status == "timeout":
            if KEPT not in run.note:
                known.lost = True
                known.tell_loss(server, aged=False)
            return
        await self._check_age(lease.sandbox_id, began)
        assert run.status == "ok", run
        ran = ast.literal_eval("".join(run.execution.logs.stdout))
        assert ran.count(number) == 1
        assert len(ran) == len({*ran}), "code ran twice"
        assert {*ran} <= known.maybe, "code of another session"
        if known.losses == losses and server in known.knows:
            assert expected <= {*ran}, "state was lost in silence"
        known.knows.add(server)
        known.done |= {*ran}

    @property
    def _may_be_old(self) -> bool:
        return 0 < self.setup.max_age < time.monotonic() - self._began + ROUNDED

    async def _check_age(self, sandbox_id: str, began: float) -> None:
        for _, item in await self._listed():
            if self.setup.max_age and item.sandbox_id == sandbox_id:
                age = item.age(datetime.fromtimestamp(began, UTC))
                assert age <= self.setup.max_age + ROUNDED, "a sandbox is too old"

    async def failing(self, action: Callable[[], Awaitable[None]]) -> None:
        """May fail, if any request does meanwhile."""
        before = len(self.log)
        error: SandboxError | None = None
        try:
            await action()
        except SandboxError as exc:
            error = exc
        if isinstance(error, SandboxLostError) and self._may_be_old and len(self.servers) > 1:
            return  # too old by the word of another server, which does not know of the call
        assert error is None or any(exchange.fault for exchange in self.log[before:]), repr(error)

    async def cancelled_call(self, server: Server, name: str, requests: int) -> None:
        """Its caller goes away when it has sent so many requests, if it is not over by then."""
        self._cut = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._at_request, requests, tasks.cancel_scope.cancel)
            await self.failing(partial(self.call, server, name, then=BRIEFLY))
            tasks.cancel_scope.cancel()

    async def _at_request(self, number: int, do: Callable[[], object]) -> None:
        await self.requests(number)
        do()

    async def calls_at_once(self, calls: list[tuple[Server, str]]) -> None:
        async with anyio.create_task_group() as tasks:
            for server, name in calls:
                tasks.start_soon(self.failing, partial(self.call, server, name))

    async def killed_call(self, server: Server, name: str, requests: int) -> None:
        """Its sandbox is killed when it has sent so many requests, or when it is over."""
        over = anyio.Event()
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as race:
                race.start_soon(self._at_request, requests, over.set)
                tasks.start_soon(self._suppressed_call, server, name, over)
                await over.wait()
                race.cancel_scope.cancel()
            await self.kill(name)

    async def _suppressed_call(self, server: Server, name: str, over: anyio.Event) -> None:
        with suppress(SandboxError):
            await self.call(server, name, then=BRIEFLY)
        over.set()

    async def end(self, server: Server, name: str) -> None:
        had = await self.listed(name)
        self._ending(name)
        # The server forgets it, even if it fails to end it: what comes then is new to it.
        self.sessions[name].knows.discard(server)
        ended = await server.manager.end_session(SessionKey(self.owner, name))
        # An old one may be ended at the same time because it is old.
        assert ended == bool(had) or self.setup.max_age
        assert await self.listed(name) == []
        self.sessions[name].done.clear()

    async def list_sessions(self, server: Server) -> None:
        listed = await server.manager.list_sessions(self.owner)
        said = {(session.name, session.state) for session in listed}
        found = {(name, state) for name, _, state in await self.listed()}
        # To look whose a paused warm one is may resume it.
        assert said == found or (self.setup.warm and {*dict(said)} == {*dict(found)})

    # The engine's side, past the proxy

    async def listed(self, name: str | None = None) -> list[tuple[str, str, str]]:
        """Session, id and state of the owner's sandboxes."""
        every = await self._listed()
        return [
            (session, item.sandbox_id, "paused" if item.paused else "running")
            for session, item in every
            if session and name in (None, session)
        ]

    async def _listed(self) -> list[tuple[str, Candidate]]:
        """With the session of each; those that no session has are warm."""
        found = await self._found()
        assert not found.unknown
        claimed = [(item.session, item) for item in found.claimed]
        return [*claimed, *(("", item) for item in found.unclaimed)]

    async def _found(self) -> Found:
        listed = await self._observer._control.find(owned_by(self.owner))
        return await self._observer._claims.resolve(listed)

    async def kill(self, name: str) -> None:
        for _, sandbox_id, _ in await self.listed(name):
            self._ending(name)
            await self._e2b.AsyncSandbox.kill(sandbox_id)

    async def pause(self, name: str) -> None:
        for _, sandbox_id, _ in await self.listed(name):
            with suppress(NotFoundException):  # ended meanwhile, being old
                await self._e2b.AsyncSandbox.pause(sandbox_id)

    def _ending(self, name: str) -> None:
        known = self.sessions[name]
        known.endings += 1
        known.lost = True
        known.stale |= {*self.servers}

    # What holds between two steps

    async def check(self) -> None:
        listed = await self._listed()
        self._seconds.count(
            {item.sandbox_id: name for name, item in listed},
            {item.sandbox_id for _, item in listed if not item.paused},
            self.log[self._checked :],
            cut=self._cut,
            owner=self.owner,
        )
        names = [name for name, _ in listed if name]
        assert len(names) == len({*names}), "a session has two sandboxes"
        # Two servers count each other's with a delay; what a crashed one asked for may still come,
        # a warm one of its even later.
        running = [item for name, item in listed if name and not item.paused]
        self._settling |= self._cut
        if self.alone and not self._settling:
            assert len(running) <= self.setup.max, "too many sandboxes run"
        if not self._cut and len(running) <= self.setup.max:
            self._settling = False
        self._checked, self._cut = len(self.log), False
        reached = [
            number
            for exchange in self.log
            if exchange.forwarded and exchange.status in (0, 200)
            for number in re.findall(rb"# number (\d+)\.", exchange.body)
        ]
        assert len(reached) == len({*reached}), "code was sent to a sandbox twice"

    async def _check_spending(self, server: Server) -> None:
        spent = (await server.manager.spending(self.owner)).sessions
        found = {name: spent.get(name, Spent()).sandbox_seconds for name in ("", *NAMES)}
        least, most = self._seconds.least, self._seconds.most
        # A claim that a crash kept from the ledger is made up for by the next server.
        assert sum(found.values()) >= least.total() - LATE, (found, least)
        for name in NAMES:
            assert self.setup.warm or found[name] >= least[name] - LATE, (name, found, least)
            assert found[name] <= most[name] + LATE, (name, found, most)

    async def finish(self) -> None:
        """All servers crash; a new one finds every session, and can end it."""
        self.burst = None
        for server in list(self.servers):
            await self.crash(server)
        await self.check()
        for name in NAMES:
            await self.call(self.servers[0], name)
        await self.check()
        for name in NAMES:
            await self.end(self.servers[0], name)
        assert await self.listed() == []
        await self.check()
        await self._check_spending(self.servers[0])
        await self.servers.pop().crash()
        for _, warm in await self._listed():
            await self._e2b.AsyncSandbox.kill(warm.sandbox_id)


BRIEFLY = "import time; time.sleep(0.2)"


# What may happen next: each draws what it needs.

Action = Callable[[World, random.Random], Awaitable[None]]


def any_server(world: World, draw: random.Random) -> Server:
    return draw.choice(world.servers)


def few_requests(draw: random.Random) -> int:
    return draw.randint(1, 8)


async def start_server(world: World, draw: random.Random) -> None:
    if len(world.servers) < world.most_servers:
        await world.start_server()


async def crash(world: World, draw: random.Random) -> None:
    await world.crash(any_server(world, draw))


async def crash_in_call(world: World, draw: random.Random) -> None:
    server, name = any_server(world, draw), draw.choice(NAMES)
    await world.crash_in_call(server, name, few_requests(draw))


async def call(world: World, draw: random.Random) -> None:
    await world.failing(partial(world.call, any_server(world, draw), draw.choice(NAMES)))


async def calls_at_once(world: World, draw: random.Random) -> None:
    calls = range(draw.randint(2, 6))
    await world.calls_at_once([(any_server(world, draw), draw.choice(NAMES)) for _ in calls])


async def cancelled_call(world: World, draw: random.Random) -> None:
    server, name = any_server(world, draw), draw.choice(NAMES)
    await world.cancelled_call(server, name, few_requests(draw))


async def long_call(world: World, draw: random.Random) -> None:
    server, name = any_server(world, draw), draw.choice(NAMES)
    endless = "import time; time.sleep(60)"
    await world.failing(partial(world.call, server, name, then=endless, limit=0.3))


async def killed_call(world: World, draw: random.Random) -> None:
    server, name = any_server(world, draw), draw.choice(NAMES)
    await world.killed_call(server, name, few_requests(draw))


async def end(world: World, draw: random.Random) -> None:
    await world.failing(partial(world.end, any_server(world, draw), draw.choice(NAMES)))


async def list_sessions(world: World, draw: random.Random) -> None:
    await world.failing(partial(world.list_sessions, any_server(world, draw)))


async def kill(world: World, draw: random.Random) -> None:
    await world.kill(draw.choice(NAMES))


async def pause(world: World, draw: random.Random) -> None:
    await world.pause(draw.choice(NAMES))


async def fail(world: World, draw: random.Random) -> None:
    routes = draw.choice([*((route,) for route in ROUTES), CONTROL, ROUTES])
    world.burst = Burst(FAULTS[draw.choice(sorted(FAULTS))], routes, draw.randint(1, 6))


async def recover(world: World, draw: random.Random) -> None:
    world.burst = None


ACTIONS: dict[Action, int] = {  # and how often each is drawn
    **dict.fromkeys((call, calls_at_once, fail), 3),
    **dict.fromkeys((cancelled_call, crash_in_call, killed_call, long_call), 2),
    **dict.fromkeys((start_server, crash, end, list_sessions, kill, pause, recover), 1),
}


async def live(engine: EngineAddress, seed: int, done: Counter[str]) -> None:
    """One history, the same for the same seed but for what runs at the same time."""
    draw = random.Random(seed)
    setup = draw.choice(sorted(SETUPS))
    steps: list[str] = []
    try:
        async with opened(engine, SETUPS[setup]) as world:
            await world.start_server()
            for action in draw.choices([*ACTIONS], weights=[*ACTIONS.values()], k=STEPS):
                steps.append(action.__name__)
                async with deadline(DEADLINE):
                    await action(world, draw)
                    await world.check()
                done["steps"] += 1
            steps.append("finish")
            async with deadline(DEADLINE):
                await world.finish()
    except Exception as exc:
        exc.add_note(f"history {seed}, {setup}: {', '.join(steps)}")
        raise
    done["histories"] += 1
    done[f"of them {setup}"] += 1
    done["requests"] += len(world.log)
    done["requests that failed"] += sum(bool(exchange.fault) for exchange in world.log)
    done["sandboxes created"] += sum(
        exchange.route == "create" and exchange.status == CREATED for exchange in world.log
    )


@asynccontextmanager
async def opened(engine: EngineAddress, setup: SandboxSettings) -> AsyncIterator[World]:
    with TemporaryDirectory() as folder:
        apart = Settings(engine=EngineSettings(state_dir=Path(folder)))  # with a ledger of its own
        async with (
            SandboxManager(apart, connect=Connector(engine)) as observer,
            anyio.create_task_group() as tasks,
        ):
            yield World(engine, tasks, observer, setup)
            tasks.cancel_scope.cancel()


@pytest.mark.timeout(rounds(few=120, many=7200))
async def test_whatever_happens_no_session_is_lost_and_no_sandbox_left(
    engine: EngineAddress,
) -> None:
    done = Counter[str]()
    try:
        for _ in range(HISTORIES):
            await live(engine, random.randrange(2**32), done)
    finally:
        print(", ".join(f"{number} {what}" for what, number in sorted(done.items())))
