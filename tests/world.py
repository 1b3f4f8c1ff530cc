"""What `test_model` knows of the world: servers that live and crash, sessions and what they did."""

import ast
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup, TaskStatus
from e2b import NotFoundException

import faults
from conftest import Connector, client
from e2b_agent_mcp.costs import Spent
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.errors import SandboxError, SandboxLimitError, SandboxLostError
from e2b_agent_mcp.lifecycle import Lease, Run, SandboxManager
from e2b_agent_mcp.lifecycle.stopping import ENDED, KEPT, KERNEL_GRACE
from e2b_agent_mcp.lifecycle.turns import Turns
from e2b_agent_mcp.pool import Candidate, Pool, SessionKey, owned_by
from e2b_agent_mcp.settings import SandboxSettings, Settings
from faults import Exchange, Fault, FaultProxy, Route
from seconds import Seconds

NAMES = ("a", "b", "c")
MOST_SERVERS = 3
LATE = 2.0  # seconds that the account of what was spent may be wrong
ROUNDED = 1.0  # seconds of a sandbox's age that its metadata do not tell
COMES_LATE = 5.0  # seconds after a crash in which a sandbox may still come to run
ACTS_WITHIN = 10.0  # seconds in which the engine ends or pauses what is over

FILE = "/home/user/ran"
CODE = """\
ran = globals().get('ran', []); ran.append({number})  # number {number}.
with open('{file}', 'a') as file: print({number}, file=file)
{then}
print([ran, [int(line) for line in open('{file}')]])
"""
BRIEFLY = "import time; time.sleep(0.2)"
ENDLESSLY = "import time; time.sleep(60)"


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
        self,
        engine: EngineAddress,
        program: faults.Program,
        sandboxes: SandboxSettings,
        turns: Path,
        world: str,
    ) -> None:
        """Servers of one `world` sweep up after each other."""
        self._engine = engine
        self._program = program
        self._settings = Settings(sandboxes=sandboxes, owner=world)
        self._turns = Turns(lambda: turns)
        self._network = anyio.CancelScope()
        self._ended = anyio.Event()
        self._log: list[Exchange] = []
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
                    self.manager._turns = self.manager._places._turns = self._turns
                    task_status.started()
                    await anyio.sleep_forever()
            self._network.cancel()
        self._ended.set()

    async def _serve_network(self, *, task_status: TaskStatus[EngineAddress]) -> None:
        with self._network:
            async with FaultProxy.serve(self._engine) as proxy:
                self._log = proxy.log
                proxy.program = self._program
                task_status.started(proxy.address)
                await anyio.sleep_forever()

    @property
    def starting(self) -> int:
        """How many sandboxes it has asked for, or has asked to resume, without an answer yet."""
        routes = ("create", "connect")
        return sum(item.route in routes and item.outcome == "open" for item in self._log)

    async def crash(self) -> None:
        self._network.cancel()
        self._life.cancel()
        await self._ended.wait()


@dataclass(frozen=True)
class Done:
    """Numbers of the code that ran: those that the interpreter has, and those in the file."""

    variables: frozenset[int] = frozenset()
    files: frozenset[int] = frozenset()

    @classmethod
    def of(cls, run: Run) -> "Done":
        variables, files = ast.literal_eval("".join(run.execution.logs.stdout))
        assert len({*variables}) == len(variables), "code ran twice"
        assert len({*files}) == len(files), "code ran twice"
        return cls(frozenset(variables), frozenset(files))

    def within(self, other: "Done") -> bool:
        return self.variables <= other.variables and self.files <= other.files


class Asked(NamedTuple):
    """What was known of a session when a call of it began."""

    last: Done
    causes_before: int
    causes: int


@dataclass(eq=False)
class Known:
    """What must be true of a session.

    Each server tells a loss of what an earlier answer of its own has shown, and of nothing else.
    What any answer has shown is lost only for a cause.
    """

    maybe: set[int] = field(default_factory=set)  # numbers of every call
    shown: dict[Server, Done] = field(default_factory=dict)  # by its last answer
    last: Done = Done()  # of all answers
    causes: int = 0  # things that happened and may cost a session its state
    causes_before: int = 0  # the last answer
    created_at: datetime | None = None  # its sandbox

    def asked(self) -> "Asked":
        """To be kept by a call that begins."""
        return Asked(self.last, self.causes_before, self.causes)

    def answer(self, server: Server, lease: Lease, run: Run, asked: "Asked") -> None:
        """What the answer of a call says is true."""
        before = self.shown.get(server, Done())
        if lease.lost or lease.state in ("created", "recreated"):
            files_kept = "files are kept" in lease.lost and "files and" not in lease.lost
            kept, gone = Done(files=before.files if files_kept else frozenset()), before
        else:
            kept, gone = before, Done()
        if run.status == "timeout":
            self.shown[server] = self._after_timeout(kept, run)
            return
        assert run.status == "ok", run
        done = Done.of(run)
        assert done.variables | done.files <= self.maybe, "code of another session"
        assert kept.within(done), "state was lost in silence"
        assert not gone.variables & done.variables, "a loss was told that was none"
        assert not (gone.files - kept.files) & done.files, "a loss was told that was none"
        lost = not asked.last.within(done)
        said = (lease.state, lease.lost, asked, self.causes, done)
        assert not lost or self.causes > asked.causes_before, ("lost without a cause", *said)
        self.shown[server] = self.last = done
        self.causes_before = asked.causes

    def _after_timeout(self, kept: Done, run: Run) -> Done:
        if KEPT in run.note:
            return kept
        self.causes += 1
        return Done(files=frozenset() if ENDED in run.note else kept.files)


class World:
    """One owner's servers and sessions on an engine; its steps raise when something is untrue."""

    def __init__(
        self,
        engine: EngineAddress,
        tasks: TaskGroup,
        observer: SandboxManager,
        setup: SandboxSettings,
        turns: Callable[[], Path],
    ) -> None:
        """`turns` gives the folder where the next server takes turns with those that have it."""
        self.owner = uuid.uuid4().hex
        self.setup = setup
        self.sessions = {name: Known() for name in NAMES}
        self.servers: list[Server] = []
        self.burst: Burst | None = None
        self.log: list[Exchange] = []
        self.counts = Counter[str]()
        self._engine = engine
        self._turns = turns
        self._tasks = tasks
        self._observer = observer
        self._e2b = client(engine)
        self._numbers = count(1)
        self._asked = anyio.Event()
        self._most_servers = 0  # at once, so far
        self._seconds = Seconds(self.owner, setup.create_timeout)
        self._checked = 0  # requests, until the last check
        self._cut = False  # in this step a server or its caller went away
        self._refused = False  # in this step a call was, for want of a place
        self._coming = 0  # sandboxes that crashed servers had asked for
        self._crashed_at = 0.0
        self._warm_paused = 0

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

    def _failed_since(self, request: int) -> bool:
        return any(exchange.fault for exchange in self.log[request:])

    # Servers

    async def start_server(self, setup: SandboxSettings | None = None) -> Server:
        setup = setup or self.setup
        server = Server(self._engine, self.program, setup, self._turns(), self.owner)
        await self._tasks.start(server.serve)
        self.servers.append(server)
        self._most_servers = max(self._most_servers, len(self.servers))
        return server

    @property
    def may_start(self) -> bool:
        """Where a session may have to wait for the sandbox of another server, there is but one."""
        needed = len(NAMES) + self.setup.warm * MOST_SERVERS
        waits = self.setup.max < needed and self.setup.at_limit == "pause"
        return len(self.servers) < (1 if waits else MOST_SERVERS)

    async def crash(self, server: Server) -> None:
        self.counts["crashes"] += 1
        self._cut = True
        # A warm one may have been resumed to look whose it is.
        self._coming += server.starting + self._warm_paused
        self.servers.remove(server)
        await server.crash()
        self._crashed_at = time.monotonic()
        if not self.servers:
            await self._let_all_be_unused()
            await self.start_server()

    async def _let_all_be_unused(self) -> None:
        """As if nobody had used a sandbox for so long that this can be seen."""
        pool = Pool(self.setup)
        left = int(pool.end_at(0) - pool.surely_unused) - 1
        for item in await self._every():
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
        number, began, request = next(self._numbers), datetime.now(UTC), len(self.log)
        known.maybe.add(number)
        asked = known.asked()
        code = CODE.format(number=number, then=then, file=FILE)
        try:
            async with server.manager.lease(SessionKey(self.owner, name)) as lease:
                run = await lease.run_code(code, timeout=limit)
                if self._may_be_old(name):
                    known.causes += 1
                known.answer(server, lease, run, asked)
        except BaseException:
            known.causes += self._failed_since(request) or self._may_be_old(name)
            raise
        if run.status == "timeout":
            self._check_stop(run, request, asked)
        await self._check_age(lease.sandbox_id, began)
        self.counts["answers"] += 1

    def _check_stop(self, run: Run, request: int, asked: Asked) -> None:
        """Code that gives way keeps its variables; it has its time for that on a slow machine."""
        if KEPT in run.note or self._failed_since(request) or asked.causes > asked.causes_before:
            return
        self.counts["stopped the hard way, without a failure"] += 1
        assert run.duration > KERNEL_GRACE, "stopped too hard"

    def _may_be_old(self, name: str) -> bool:
        created_at, most = self.sessions[name].created_at, self.setup.max_age
        if created_at is None:
            return most > 0
        return 0 < most < (datetime.now(UTC) - created_at).total_seconds() + ROUNDED

    async def _check_age(self, sandbox_id: str, began: datetime) -> None:
        for item in await self._every():
            if self.setup.max_age and item.sandbox_id == sandbox_id:
                assert item.age(began) <= self.setup.max_age + ROUNDED, "a sandbox is too old"

    async def failing(self, action: Callable[[], Awaitable[None]]) -> None:
        """May fail, if any request does meanwhile."""
        before = len(self.log)
        try:
            await action()
        except SandboxError as exc:
            self.counts["errors"] += 1
            if not self._failed_since(before):
                self._check_error(exc)

    def _check_error(self, error: SandboxError) -> None:
        """Not for a failure: what two servers do to each other."""
        several = len(self.servers) > 1
        if isinstance(error, SandboxLostError) and several and self.setup.max_age:
            return  # too old by the word of another server, which does not know of the call
        if isinstance(error, SandboxLimitError) and self.setup.at_limit == "refuse":
            self._refused = True
            return
        raise error

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
        known, request = self.sessions[name], len(self.log)
        had = await self.listed(name)
        known.causes += 1
        try:
            ended = await server.manager.end_session(SessionKey(self.owner, name))
        finally:
            # The server forgets it, even if it fails to end it: what comes then is new to it.
            known.shown.pop(server, None)
        # An old one may be ended at the same time because it is old.
        assert ended == bool(had) or self._may_be_old(name) or self._failed_since(request)
        assert await self.listed(name) == []

    async def list_sessions(self, server: Server) -> None:
        listed = await server.manager.list_sessions(self.owner)
        said = {(session.name, session.state) for session in listed}
        found = {(name, state) for name, _, state in await self.listed()}
        # To look whose a paused warm one is may resume it.
        assert said == found or (self.setup.warm and {*dict(said)} == {*dict(found)})

    async def prune(self, server: Server) -> None:
        """What a sweep ends is nobody's, or too old."""
        before = {sandbox_id: name for name, sandbox_id, _ in await self.listed()}
        pruned = await server.manager.prune(self.owner)
        for name in (before[item.sandbox_id] for item in pruned if item.sandbox_id in before):
            assert self._may_be_old(name), "a session's sandbox was swept away"
            self.sessions[name].causes += 1

    # The engine's side, past the proxy

    async def listed(self, name: str | None = None) -> list[tuple[str, str, str]]:
        """Session, id and state of the owner's sandboxes."""
        return [
            (item.session, item.sandbox_id, "paused" if item.paused else "running")
            for item in await self._every()
            if item.session and name in (None, item.session)
        ]

    async def _every(self) -> list[Candidate]:
        """Those that no session has are warm."""
        listed = await self._observer._control.find(owned_by(self.owner))
        found = await self._observer._claims.resolve(listed)
        assert not found.unknown
        return [*found.claimed, *found.unclaimed]

    async def kill(self, name: str) -> None:
        for _, sandbox_id, _ in await self.listed(name):
            self.sessions[name].causes += 1
            await self._e2b.AsyncSandbox.kill(sandbox_id)
            self.sessions[name].causes += 1  # a call may have been answered meanwhile

    async def pause(self, name: str) -> None:
        for _, sandbox_id, _ in await self.listed(name):
            with suppress(NotFoundException):  # ended meanwhile, being old
                await self._e2b.AsyncSandbox.pause(sandbox_id)

    async def let_time_pass(self, *names: str) -> None:
        """Until sandboxes that are not used have come to their end."""
        over = [item for item in await self._every() if item.session in names and not item.paused]
        for item in over:
            if self.setup.idle_action == "kill" and item.session:
                self.sessions[item.session].causes += 1
            with suppress(NotFoundException):  # ended meanwhile, being old
                await self._e2b.AsyncSandbox.set_timeout(item.sandbox_id, 0)
        with anyio.fail_after(ACTS_WITHIN):
            while {item.sandbox_id for item in over} & await self._running():
                await anyio.sleep(0.02)

    async def _running(self) -> set[str]:
        """Without a look into warm ones: each makes them run for a second more."""
        listed = await self._observer._control.find(owned_by(self.owner))
        return {item.sandbox_id for item in listed if not item.paused}

    # What holds between two steps

    async def check(self) -> None:
        every = await self._every()
        sessions = {item.session: item for item in every if item.session}
        assert len(sessions) == sum(bool(item.session) for item in every), "two sandboxes"
        for name, known in self.sessions.items():
            known.created_at = sessions[name].created_at if name in sessions else None
        running = {item.sandbox_id for item in every if not item.paused}
        self._check_limit(len(running))
        self._warm_paused = sum(item.is_warm and item.paused for item in every)
        if self._refused and self._most_servers == 1 and not self._failed_since(self._checked):
            assert len(running) >= self.setup.max, "refused although there is room"
        warm = self.setup.warm > 0
        self._seconds.count(every, self.log[self._checked :], cut=self._cut, warm=warm)
        self._checked, self._cut, self._refused = len(self.log), False, False
        reached = [
            number
            for exchange in self.log
            if exchange.forwarded and exchange.status in (0, 200)
            for number in re.findall(rb"# number (\d+)\.", exchange.body)
        ]
        assert len(reached) == len({*reached}), "code was sent to a sandbox twice"

    def _check_limit(self, running: int) -> None:
        """What a crashed server asked for may come when its successor has counted, and each of
        several servers counts what the others start with a delay."""
        if running <= self.setup.max and time.monotonic() - self._crashed_at > COMES_LATE:
            self._coming = 0
        most = self.setup.max + self._coming + self._most_servers - 1
        assert running <= most, f"{running} sandboxes run, of {most} that may"

    async def _check_spending(self, server: Server) -> None:
        spent = (await server.manager.spending(self.owner)).sessions
        found = {name: spent.get(name, Spent()).sandbox_seconds for name in ("", *NAMES)}
        least, most = self._seconds.least, self._seconds.most
        self.counts["seconds at least"] += round(least.total())
        self.counts["seconds accounted"] += round(sum(found.values()))
        self.counts["seconds at most"] += round(most.total())
        # A claim that a crash kept from the ledger is made up for by the next server.
        assert sum(found.values()) >= least.total() - LATE, ("too little", found, least)
        assert sum(found.values()) <= most.total() + LATE, ("too much", found, most)
        for name in NAMES:
            assert self.setup.warm or found[name] >= least[name] - LATE, (name, found, least)
            assert found[name] <= most[name] + LATE, (name, found, most)

    async def _check_pause(self, server: Server, name: str) -> None:
        """A pause that the server was told of is not spent, what runs afterwards is, and once."""
        await self.pause(name)
        await self.list_sessions(server)
        await self.check()
        before = await self._spent(server, name)
        await anyio.sleep(LATE + 1)
        called_at = time.monotonic()
        await self.failing(partial(self.call, server, name))
        await anyio.sleep(LATE + 1)
        spent = await self._spent(server, name) - before
        assert spent <= time.monotonic() - called_at + LATE, ("too much after a pause", spent)
        runs = (name, "running") in {(name, state) for name, _, state in await self.listed()}
        assert not runs or spent >= 1, ("too little after a pause", spent)

    async def _spent(self, server: Server, name: str) -> float:
        spent = (await server.manager.spending(self.owner)).sessions
        return spent.get(name, Spent()).sandbox_seconds

    async def finish(self) -> None:
        """All servers crash; a new one finds every session, and can end one. What it leaves, E2B
        ends or pauses, and a sweep ends what is paused and nobody's."""
        self.burst = None
        for server in list(self.servers):
            await self.crash(server)
        await self.check()
        for name in NAMES:
            await self.failing(partial(self.call, self.servers[0], name))
        await self.check()
        await self._check_pause(self.servers[0], NAMES[1])
        await self.check()
        await self.end(self.servers[0], NAMES[0])
        await self.check()
        await self._check_spending(self.servers[0])
        await self.servers.pop().crash()
        for item in await self._every():
            left = (item.end_at - datetime.now(UTC)).total_seconds()
            assert item.paused or left <= self.setup.idle_after, "it runs on for nobody"
        await self.let_time_pass("", *NAMES)
        sweeping = await self.start_server(SandboxSettings(retention=0))
        await sweeping.manager.prune(self.owner)
        assert await self._observer._control.find(owned_by(self.owner)) == [], "left after a sweep"
        await self.servers.pop().crash()
