"""Makes, pauses, resumes and ends sandboxes; the only writer of their records.

Rules:
- A sandbox is in the records from the moment it answers until its kill begins, never before
  or after. An unknown id, an ended sandbox and a dead box look the same from outside.
- The end of an engine in good order is the deadline of all its sandboxes: those that would be
  paused then are, without memory. An engine that is killed leaves all of them so, each until its
  own deadline, for the next engine to find.
"""

from __future__ import annotations

import logging
import resource
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import TYPE_CHECKING, Self

import anyio

from .clock import Clock, SystemClock
from .connection import GuestGone, exchange
from .egress import HostNetwork, NetworkPolicy, share_of_connections
from .errors import (
    Busy,
    Conflict,
    KeyReused,
    LaunchError,
    LaunchRefused,
    SandboxNotFound,
    TooManySandboxes,
)
from .history import SAMPLE_INTERVAL, History
from .homes import Removals, wipe_leftovers
from .index import find_file_hosts
from .machines import Machines, shielded
from .records import RecordFolder, from_record, to_record
from .sandbox import (
    TEMPLATES,
    Machine,
    PauseMode,
    Sandbox,
    SandboxSpec,
    State,
    new_id,
    socket_name,
)
from .snapshots import Snapshot, Snapshots
from .spares import Spares
from .ward import INTERVAL, Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator

    from anyio.abc import TaskGroup

    from .host import Host
    from .isolation import Box, Zygotes
    from .options import EngineOptions

logger = logging.getLogger(__name__)

HEALTH_TIMEOUT = 5.0  # seconds for a guest to answer before a pause; usually 1 ms
SPARE_TIMEOUT = 5.0  # seconds for the guest of a spare, which answered before, to answer again
AUTO_RESUME_TIMEOUT = 300.0  # seconds at least that traffic buys a paused sandbox, as on E2B
EPITAPHS = 1000  # sandboxes of which is remembered for which limit they were killed

# As most are asked for: its kernel has the variables that it will need.
_SPARE = SandboxSpec(template=TEMPLATES[1], timeout=0, network=NetworkPolicy(internet=False))


@dataclass(eq=False)
class _Attempt:
    """A create under an idempotency key; kept as long as its sandbox."""

    spec: SandboxSpec
    done: anyio.Event = field(default_factory=anyio.Event)
    sandbox: Sandbox | None = None


class Orchestrator:
    """`async with` it; leaving kills every sandbox and removes what they left."""

    def __init__(
        self,
        options: EngineOptions,
        host: Host,
        *,
        clock: Clock | None = None,
        zygotes: Zygotes | None = None,
    ) -> None:
        self.options = options
        self.clock: Clock = clock or SystemClock()
        self._host = host
        self._zygotes = zygotes
        self._endpoints = set(host.package_index.endpoints())
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        network = HostNetwork(
            options.ceiling,
            self._endpoints,
            host.upstream,
            share_of_connections(options.max_sandboxes, descriptors),
        )
        self._machines = Machines(
            options, host, network, zygotes, watch=self._watch, ended=self._after_box
        )
        self._spares = Spares(options.spares, self._boot_spare)
        self._sandboxes: dict[str, Sandbox] = {}
        self._records = RecordFolder(options.records_dir)
        self.history = History(self.clock, host.isolation.owner)
        self._removals = Removals()
        self.snapshots = Snapshots(options, host, self.clock, self._removals)
        self._attempts: dict[str, _Attempt] = {}
        self._killed_for: dict[str, str] = {}  # the last ones that went over a limit
        self._starting = 0
        self._deadlines_changed = anyio.Event()
        self._tasks: TaskGroup
        self._owned: AsyncExitStack
        self.last_change = self.clock.now()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as on_error:
            await on_error.enter_async_context(self._removals)
            self._restore()
            self.snapshots.restore()
            wipe_leftovers(self.options, self._sandboxes, self._removals)
            await on_error.enter_async_context(self._machines)
            self._tasks = await on_error.enter_async_context(anyio.create_task_group())
            self._owned = on_error.pop_all()
        self._tasks.start_soon(self._records.keep)
        self._tasks.start_soon(self.snapshots.keep)
        self._tasks.start_soon(self._reap)
        self._look_for_endpoints()
        self._tasks.start_soon(self._keep_history)
        if self._zygotes is not None:
            self._tasks.start_soon(self._spares.keep, self._zygotes)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for sandbox in tuple(self._sandboxes.values()):
            self._part_with(sandbox)
        self._tasks.cancel_scope.cancel()
        await self._owned.aclose()

    def _restore(self) -> None:
        """The sandboxes of an earlier engine, of which only files are left."""
        for sandbox_id, record in self._records.read_all():
            try:
                sandbox = from_record(sandbox_id, record, self.options, self.clock.now())
            except (KeyError, TypeError, ValueError):
                logger.exception("the record of %s is not understood", sandbox_id)
                self._records.remove(sandbox_id)
                continue
            if not sandbox.home.is_dir():
                self._records.remove(sandbox_id)
                continue
            self._sandboxes[sandbox_id] = sandbox
            if (key := sandbox.idempotency_key) is not None:
                attempt = self._attempts[key] = _Attempt(sandbox.spec, sandbox=sandbox)
                attempt.done.set()
            logger.info("found %s: paused, its files are there", sandbox_id)

    async def _keep_history(self) -> None:
        while True:
            await self.clock.wait(anyio.Event(), self.clock.now() + SAMPLE_INTERVAL)
            running = [s for s in self._sandboxes.values() if s.state is State.RUNNING]
            try:
                await self.history.sample(running)
            except OSError as exc:  # no descriptor or process left: the next look may succeed
                logger.warning("no metrics: %s", exc)

    def _look_for_endpoints(self) -> None:
        """On a thread that nobody waits for: an index that hangs must not keep the engine."""
        index = self._host.package_index

        def look() -> None:
            self._endpoints.update(find_file_hosts(index))

        if index.unknown_file_hosts():
            Thread(target=look, name="package index", daemon=True).start()

    def _part_with(self, sandbox: Sandbox) -> None:
        """What the end of the engine means for it; its box is about to be ended."""
        lifecycle = sandbox.spec.lifecycle
        if sandbox.state is State.RUNNING and lifecycle.on_timeout == "kill":
            self._forget(sandbox)
            return
        if sandbox.state is State.RUNNING:
            self._now_paused(sandbox)
        sandbox.pause_mode = PauseMode.FILESYSTEM
        self._record(sandbox)

    # Reading

    @property
    def busy(self) -> bool:
        """Whether an end of the engine would end more than itself."""
        return bool(self._starting or any(s.machine for s in self._sandboxes.values()))

    def sandboxes(self) -> Collection[Sandbox]:
        return self._sandboxes.values()

    def find(self, sandbox_id: str) -> Sandbox:
        try:
            return self._sandboxes[sandbox_id]
        except KeyError:
            raise SandboxNotFound(sandbox_id, self._killed_for.get(sandbox_id, "")) from None

    # Changing

    async def create(self, spec: SandboxSpec, *, idempotency_key: str | None = None) -> Sandbox:
        """A running sandbox; the same key and spec answer with the same sandbox."""
        if idempotency_key is None:
            return await self._create(spec)
        while (attempt := self._attempts.get(idempotency_key)) is not None:
            if attempt.spec != spec:
                raise KeyReused("This idempotency key was used with another request body.")
            await attempt.done.wait()
            if attempt.sandbox is not None:
                return attempt.sandbox
        attempt = self._attempts[idempotency_key] = _Attempt(spec)
        try:
            attempt.sandbox = await self._create(spec, idempotency_key)
        finally:
            if attempt.sandbox is None:
                del self._attempts[idempotency_key]
            attempt.done.set()
        return attempt.sandbox

    async def _create(self, spec: SandboxSpec, idempotency_key: str | None = None) -> Sandbox:
        with self._place():
            sandbox = await self._begin(spec)
        _check_lives(sandbox)
        # Counted from when it can be listed: of two creators that race and then look, the later
        # one sees the earlier, and both take that one for the older.
        sandbox.started_at = self.clock.now()
        sandbox.end_at = sandbox.started_at + spec.timeout
        sandbox.running_since = sandbox.started_at
        sandbox.idempotency_key = idempotency_key
        self._sandboxes[sandbox.id] = sandbox
        self._record(sandbox)
        logger.info("created %s", sandbox.id)
        return sandbox

    @contextmanager
    def _place(self) -> Iterator[None]:
        """For a sandbox that is about to have a box."""
        taken = sum(s.machine is not None for s in self._sandboxes.values()) + self._starting
        if taken >= self.options.max_sandboxes:
            raise TooManySandboxes(
                f"This engine already has {self.options.max_sandboxes} sandboxes (max_sandboxes). "
                "Kill one, or start the engine with a higher limit."
            )
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1
            self._touch()

    async def _begin(self, spec: SandboxSpec) -> Sandbox:
        if spec.snapshot is not None:
            sandbox = self._new_record(spec)
            await self._fill_home(sandbox, spec.snapshot)
            await self._machines.start(sandbox)
            return sandbox
        while (spare := self._spares.take()) is not None:
            try:
                await self._dedicate(spare, spec)
            except (LaunchError, OSError):
                logger.warning("%s ended or hung as a spare", spare.id)
            else:
                return spare
        sandbox = self._new_record(spec)
        await self._machines.start(sandbox)
        return sandbox

    async def _fill_home(self, sandbox: Sandbox, snapshot_id: str) -> None:
        try:
            await self.snapshots.fill(sandbox.home, snapshot_id)
        except LaunchError as exc:
            raise LaunchRefused(f"The sandbox could not be started: {exc}") from exc

    async def _dedicate(self, spare: Sandbox, spec: SandboxSpec) -> None:
        assert spare.machine is not None
        spare.spec, spare.network = spec, spec.network
        spare.machine.egress.policy = spec.network
        try:
            with anyio.fail_after(SPARE_TIMEOUT):
                await self._machines.greet(spare, spare.machine.box)
        except BaseException:
            with shielded():
                await self._machines.stop(spare)
            raise

    async def _boot_spare(self) -> Sandbox:
        sandbox = self._new_record(_SPARE)
        await self._machines.start(sandbox)
        return sandbox

    def _new_record(self, spec: SandboxSpec) -> Sandbox:
        sandbox_id = new_id("i")
        now = self.clock.now()
        return Sandbox(
            id=sandbox_id,
            spec=spec,
            home=self.options.homes_dir / sandbox_id,
            socket_path=self.options.engine_dir / f"{socket_name(sandbox_id)}.sock",
            network=spec.network,
            started_at=now,
            end_at=now + spec.timeout,
        )

    @asynccontextmanager
    async def _changing(self, sandbox: Sandbox) -> AsyncIterator[None]:
        """One change of a sandbox at a time; a deadline that passes meanwhile holds after it."""
        try:
            async with sandbox.changing:
                self.find(sandbox.id)  # it may have ended while we waited
                yield
        finally:
            self._touch()

    async def kill(self, sandbox_id: str) -> None:
        """Answers when no process of it is left and its home is out of the way."""
        sandbox = self.find(sandbox_id)
        self._forget(sandbox)
        if sandbox.machine is not None:
            sandbox.machine.box.kill()  # before its turn: a pause or a copy may take long
        sandbox.drop_exchanges()
        async with sandbox.changing:
            await self._kill(sandbox)

    async def _kill(self, sandbox: Sandbox) -> None:
        self._forget(sandbox)
        await self._machines.stop(sandbox)
        self._removals.remove(sandbox.home)
        logger.info("killed %s", sandbox.id)

    async def pause(self, sandbox_id: str, mode: PauseMode, *, strict: bool = False) -> None:
        """`strict` refuses when the guest does not answer."""
        sandbox = self.find(sandbox_id)
        async with self._changing(sandbox):
            if sandbox.state is State.PAUSED:
                raise Conflict(f"Sandbox {sandbox_id} is already paused")
            if strict and not await self._answers(sandbox):
                raise Busy(
                    f"Sandbox {sandbox_id} does not answer and was not paused. "
                    "Pause it in mode 'full', or kill it"
                )
            await self._pause(sandbox, mode)

    async def _answers(self, sandbox: Sandbox) -> bool:
        with anyio.move_on_after(HEALTH_TIMEOUT), suppress(GuestGone):
            await exchange(sandbox.socket_path, "GET", "/health")
            return True
        return False

    async def _pause(self, sandbox: Sandbox, mode: PauseMode) -> None:
        assert sandbox.machine is not None
        self._now_paused(sandbox)
        sandbox.pause_mode = mode
        if mode is PauseMode.FULL:
            await self._freeze(sandbox, sandbox.machine.box)
        else:
            await self._machines.stop(sandbox)
        sandbox.end_at = min(sandbox.end_at, self.clock.now())
        self._record(sandbox)
        self._touch()
        logger.info("paused %s (%s)", sandbox.id, mode)

    def _now_paused(self, sandbox: Sandbox) -> None:
        sandbox.state = State.PAUSED
        sandbox.kept_until = self.clock.now() + self.options.retention

    async def _freeze(self, sandbox: Sandbox, box: Box) -> None:
        try:
            await box.freeze()
        except (LaunchError, OSError) as exc:
            box.thaw()
            sandbox.state, sandbox.pause_mode = State.RUNNING, None
            raise LaunchRefused(f"The sandbox could not be paused: {exc}") from exc
        sandbox.drop_exchanges()

    async def resume(
        self, sandbox_id: str, timeout: float, *, restore_memory: bool = True
    ) -> tuple[Sandbox, bool]:
        """The running sandbox, and whether it had to be resumed.

        A running sandbox is only extended: connecting never shortens its life.
        """
        sandbox = self.find(sandbox_id)
        async with self._changing(sandbox):
            resumed = sandbox.state is State.PAUSED
            if resumed:
                await self._resume(sandbox, restore_memory=restore_memory)
                sandbox.end_at = 0.0
                sandbox.running_since = self.clock.now()
            self._set_end(sandbox, max(sandbox.end_at, self.clock.now() + timeout))
        return sandbox, resumed

    async def snapshot(self, sandbox_id: str, name: str | None) -> Snapshot:
        """Of its files; a running sandbox stands still meanwhile."""
        sandbox = self.find(sandbox_id)
        async with self._changing(sandbox):
            try:
                with sandbox.exchange():
                    async with self._standing_still(sandbox):
                        return await self.snapshots.take(sandbox_id, sandbox.home, name)
            except LaunchError as exc:
                raise LaunchRefused(f"No snapshot was taken: {exc}") from exc
            self.find(sandbox_id)
            raise LaunchRefused("No snapshot was taken: the sandbox ended meanwhile")

    @asynccontextmanager
    async def _standing_still(self, sandbox: Sandbox) -> AsyncIterator[None]:
        if sandbox.state is State.PAUSED or sandbox.machine is None:
            yield
            return
        box = sandbox.machine.box
        try:
            await box.freeze()
            yield
        finally:
            box.thaw()

    async def _resume(self, sandbox: Sandbox, *, restore_memory: bool) -> None:
        if not restore_memory:
            sandbox.pause_mode = PauseMode.FILESYSTEM
            await self._machines.stop(sandbox)
        if sandbox.machine is None:
            with self._place():
                await self._machines.start(sandbox)
            _check_lives(sandbox)
        else:
            sandbox.machine.box.thaw()
        sandbox.state, sandbox.pause_mode = State.RUNNING, None
        logger.info("resumed %s", sandbox.id)

    async def wake(self, sandbox: Sandbox) -> None:
        """Resumes a paused sandbox for the traffic that wants it."""
        await self.resume(sandbox.id, max(sandbox.spec.timeout, AUTO_RESUME_TIMEOUT))

    def set_timeout(self, sandbox_id: str, timeout: float) -> None:
        """Counts from now and may shorten; 0 ends the sandbox at once."""
        sandbox = self.find(sandbox_id)
        if sandbox.state is State.PAUSED:
            raise SandboxNotFound(sandbox_id)
        self._set_end(sandbox, self.clock.now() + max(0.0, timeout))

    def extend(self, sandbox_id: str, duration: float) -> None:
        """Like `set_timeout`, but never shortens."""
        sandbox = self.find(sandbox_id)
        self._set_end(sandbox, max(sandbox.end_at, self.clock.now() + duration))

    def set_network(self, sandbox_id: str, network: NetworkPolicy) -> None:
        sandbox = self.find(sandbox_id)
        sandbox.network = network
        if sandbox.machine is not None:
            sandbox.machine.egress.policy = network
        self._record(sandbox)

    def _set_end(self, sandbox: Sandbox, end_at: float) -> None:
        """As on E2B, what is asked beyond the longest run is cut without a word."""
        sandbox.end_at = min(end_at, sandbox.running_since + self.options.longest_run)
        self._record(sandbox)
        self._touch()

    def _record(self, sandbox: Sandbox) -> None:
        """A disk that is full must not keep a sandbox from running: it is only less safe.

        Of one that has ended under a change of it, nothing is written.
        """
        if sandbox.id not in self._sandboxes:
            return
        try:
            self._records.write(sandbox.id, to_record(sandbox))
        except OSError as exc:
            logger.error("%s would be lost with this engine: %s", sandbox.id, exc)

    def _touch(self) -> None:
        self.last_change = self.clock.now()
        self._deadlines_changed.set()

    def _forget(self, sandbox: Sandbox) -> None:
        self._sandboxes.pop(sandbox.id, None)
        self._records.remove(sandbox.id)
        for key in [k for k, a in self._attempts.items() if a.sandbox is sandbox]:
            del self._attempts[key]
        self._touch()

    # Deadlines

    async def _reap(self) -> None:
        while True:
            self._deadlines_changed = anyio.Event()
            now = self.clock.now()
            for sandbox in self._sandboxes.values():
                if sandbox.deadline <= now and not sandbox.changing.locked():
                    self._tasks.start_soon(self._expire, sandbox)
            upcoming = [s.deadline for s in self._sandboxes.values() if s.deadline > now]
            await self.clock.wait(self._deadlines_changed, min(upcoming, default=float("inf")))

    async def _expire(self, sandbox: Sandbox) -> None:
        lifecycle = sandbox.spec.lifecycle
        try:
            async with self._changing(sandbox):
                if sandbox.deadline > self.clock.now():
                    return  # somebody extended or paused it just now
                if sandbox.state is State.RUNNING and lifecycle.on_timeout == "pause":
                    await self._pause(sandbox, lifecycle.pause_mode)
                else:
                    await self._kill(sandbox)
        except SandboxNotFound:
            return
        except Exception:
            # The deadline must hold, also for a sandbox that cannot be paused.
            logger.exception("could not end %s at its deadline", sandbox.id)
            await self._kill(sandbox)

    # Limits

    async def _watch(self, sandbox: Sandbox, machine: Machine) -> None:
        while True:
            await anyio.sleep(INTERVAL)
            if sandbox.id not in self._sandboxes or sandbox.state is not State.RUNNING:
                continue
            try:
                verdict = await machine.ward.check()
            except OSError:
                logger.exception("could not look after %s", sandbox.id)
                continue
            if verdict is not None:
                self._punish(sandbox, machine, verdict)

    def _punish(self, sandbox: Sandbox, machine: Machine, verdict: Verdict) -> None:
        assert machine.box.restraints is not None
        reason = machine.box.restraints.kills.words[verdict.reason]
        logger.warning("%s exceeded its %s", sandbox.id, reason)
        if verdict.fatal:
            self._bury(sandbox, reason)
            self._forget(sandbox)
            machine.box.kill()  # its own task removes what it leaves

    def _bury(self, sandbox: Sandbox, reason: str) -> None:
        while len(self._killed_for) >= EPITAPHS:
            del self._killed_for[next(iter(self._killed_for))]
        self._killed_for[sandbox.id] = reason

    def _after_box(self, sandbox: Sandbox, answered: bool, oom_kills: int) -> None:
        """What a box leaves: a home to keep (paused without memory, or a refused resume)."""
        if sandbox.pause_mode is PauseMode.FILESYSTEM and sandbox.id in self._sandboxes:
            return
        if answered and sandbox.id in self._sandboxes:
            logger.warning("%s died by itself", sandbox.id)
            if oom_kills:
                self._bury(sandbox, f"memory limit {self.options.memory_mb} MiB")
            if sandbox.state is State.PAUSED:
                sandbox.pause_mode = PauseMode.FILESYSTEM
                return
            self._forget(sandbox)
        self._removals.remove(sandbox.home)


def _check_lives(sandbox: Sandbox) -> None:
    if sandbox.machine is None:
        raise LaunchRefused("The sandbox ended as soon as it had started")
