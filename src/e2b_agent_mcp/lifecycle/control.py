"""E2B's control plane as the manager uses it: create, connect, find, extend, kill.

Contract of every call: it ends within a deadline of ours (the SDK's own are doubled by its HTTP
client), raises only the errors of `errors.py`, and may be sent twice without harm. What E2B asks to
repeat is repeated a few times; when E2B cannot be reached, its address is asked for again, because
the embedded engine ends when idle and comes back under another one.
"""

import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar, cast

import anyio
import anyio.lowlevel
from anyio import to_thread

from e2b_agent_mcp.connection import Connect, E2BParams, Progress
from e2b_agent_mcp.errors import (
    E2BAgentError,
    LifeRefusedError,
    RateLimitError,
    SandboxError,
    SandboxLostError,
    SandboxUnavailableError,
    sandbox_errors,
)
from e2b_agent_mcp.lifecycle.transitions import Transitions
from e2b_agent_mcp.lifecycle.usage import Usage, usage_of
from e2b_agent_mcp.pool import (
    Candidate,
    Maker,
    SessionKey,
    Terms,
    creation_of,
    new_metadata,
    scope_of,
)
from e2b_agent_mcp.settings import Settings

if TYPE_CHECKING:
    from e2b import SandboxInfo
    from e2b_code_interpreter import E2BClientParams
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox

logger = logging.getLogger(__name__)

RETRY_DELAYS = (0.5, 1.5)  # seconds; E2B's SDK has retried three times before each
BUSY_DELAY = 4.0  # seconds between two attempts to create while E2B says that it is busy
METRICS_LIMIT = 2.0  # seconds
CLOCKS_APART = 10.0  # seconds between our clock and E2B's, and between two of its samples
ADDRESS_AGE = 60.0  # seconds without a call after which E2B's address is asked for again

T = TypeVar("T")


async def bounded(doing: str, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """One call of the SDK: ends within `seconds` and raises our errors.

    The SDK's RPC client turns a cancellation into an error of its own; a cancelled caller still
    sees its cancellation.
    """
    try:
        with sandbox_errors(doing), anyio.fail_after(seconds):
            return await call()
    except E2BAgentError:
        await anyio.lowlevel.checkpoint_if_cancelled()
        raise


class Control:
    """The control plane of one E2B; connects on first use."""

    def __init__(
        self, settings: Settings, connect: Connect, transitions: Transitions, terms: Terms
    ) -> None:
        self._settings = settings
        self._terms = terms
        self._connect = connect
        self._transitions = transitions
        self._tell = transitions.tell
        self._params: E2BParams | None = None
        self._sandboxes: type[AsyncSandbox] | None = None
        self._used_at = 0.0
        # Protects the connection: one import of the SDK and one start of the engine at a time.
        self._connecting = anyio.Lock()

    async def connect(self, on_progress: Progress | None = None) -> None:
        """Imports the SDK and learns E2B's address, again after a pause.

        An engine that went away in a pause is found at once so; a call to its old address takes
        the SDK seconds to fail.
        """
        if self._sandboxes is None or time.monotonic() - self._used_at > ADDRESS_AGE:
            await self._reconnect(self._sandboxes, on_progress)

    @property
    def secret(self) -> bytes:
        """Known to whoever shares the account, and to no sandbox."""
        return self._params.api_key.reveal().encode() if self._params is not None else b""

    @property
    def is_billed(self) -> bool:
        """Whether E2B's prices apply there."""
        return self._params is not None and self._params.billed

    def serves(self, handle: "AsyncSandbox") -> bool:
        """False for a handle made before E2B's address changed."""
        return self._sandboxes is not None and isinstance(handle, self._sandboxes)

    async def create(
        self, key: SessionKey, *, maker: Maker, generation: int, idempotency_key: str
    ) -> "AsyncSandbox":
        """A new sandbox that carries its session; a repeated request makes no second one."""
        limit = self._settings.sandboxes.create_timeout
        metadata = new_metadata(key, maker=maker, generation=generation, today=datetime.now(UTC))
        creation = creation_of(metadata)

        async def create(sandboxes: "type[AsyncSandbox]") -> "AsyncSandbox":
            return await sandboxes.create(
                self._settings.e2b.template,
                timeout=self._life,
                metadata=metadata,
                lifecycle={"on_timeout": self._settings.sandboxes.idle_action},
                # A request that E2B refused for its life is repeated with another.
                idempotency_key=f"{idempotency_key}-{self._life}",
                request_timeout=limit,
            )

        doing = "creating a sandbox"
        started = time.monotonic()
        self._tell("creating", key=key, creation=creation, life=self._life)
        await self._transitions.settle()
        try:
            handle = await bounded(doing, limit, lambda: self._call(doing, create, limit=limit))
        except E2BAgentError as exc:
            took = time.monotonic() - started
            self._tell("not_created", key=key, creation=creation, outcome=exc.code, took=took)
            raise
        self._tell(
            "created",
            handle.sandbox_id,
            key=key,
            creation=creation,
            life=self._life,
            took=time.monotonic() - started,
        )
        return handle

    async def open(
        self, sandbox_id: str, *, paused: bool = False, extend: bool = True
    ) -> "AsyncSandbox":
        """A handle of a running or paused sandbox, which is resumed, with a whole life ahead;
        without `extend`, of a running one with the life that it has."""
        limit = self._settings.sandboxes.create_timeout

        async def connect(sandboxes: "type[AsyncSandbox]") -> "AsyncSandbox":
            life = self._life if extend else 1
            handle = await sandboxes.connect(sandbox_id, timeout=life, request_timeout=limit)
            # E2B declares the base class here, and returns the class it was called on.
            return cast("AsyncSandbox", handle)

        # Connecting never shortens a life, and some servers do not lengthen it either.
        started = time.monotonic()
        handle = await self._call("connecting to a sandbox", connect, limit=limit)
        if handle.sandbox_id != sandbox_id:
            raise SandboxLostError("E2B answered with another sandbox than the one asked for.")
        took = time.monotonic() - started
        life = self._life if extend else 1
        self._tell("resumed" if paused else "connected", sandbox_id, life=life, took=took)
        if extend:
            await self.extend(sandbox_id)
        return handle

    async def find(self, metadata: dict[str, str]) -> list[Candidate]:
        """Every sandbox, running or paused, that carries this metadata."""

        async def find(sandboxes: "type[AsyncSandbox]") -> list[Candidate]:
            import e2b

            pages = sandboxes.list(query=e2b.SandboxQuery(metadata=metadata), limit=100)
            found: list[Candidate] = []
            while pages.has_next:
                found += map(_candidate, await pages.next_items())
            return found

        started = time.monotonic()
        found = await self._call("listing sandboxes", find)
        # A server that ignores the query must not hand us the sandboxes of others.
        found = [item for item in found if metadata.items() <= item.metadata.items()]
        took = time.monotonic() - started
        self._tell("seen", key=scope_of(metadata), candidates=tuple(found), took=took)
        return found

    async def inspect(self, sandbox_id: str) -> Candidate | None:
        """The sandbox as E2B has it; None when it has ended."""
        started = time.monotonic()
        try:
            info = await self._call(
                "inspecting a sandbox", lambda sandboxes: sandboxes.get_info(sandbox_id)
            )
        except SandboxLostError:
            self._tell_gone(sandbox_id, started)
            return None
        candidate = _candidate(info)
        self._tell("seen", sandbox_id, candidates=(candidate,))
        return candidate

    async def extend(self, sandbox_id: str) -> bool:
        """A whole life from now on; False when the sandbox is not running."""
        started = time.monotonic()
        try:
            await self._call(
                "extending a sandbox",
                lambda sandboxes: sandboxes.set_timeout(sandbox_id, self._life),
            )
        except SandboxLostError:
            self._tell_gone(sandbox_id, started)
            return False
        self._tell("extended", sandbox_id, life=self._life)
        return True

    async def pause(self, sandbox_id: str) -> bool:
        """Keeps its whole state and stops its bill; False when it was not running."""
        limit = self._settings.sandboxes.create_timeout
        started = time.monotonic()
        try:
            paused = await self._call(
                "pausing a sandbox", lambda sandboxes: sandboxes.pause(sandbox_id), limit=limit
            )
        except SandboxLostError:
            paused = False
        if paused:
            self._tell("paused", sandbox_id)
        else:
            self._tell_gone(sandbox_id, started)
        return paused

    async def usage(self, sandbox_id: str, *, last: float) -> Usage | None:
        """What the sandbox uses, and its peak in the last seconds; None when E2B cannot say."""
        start = datetime.now(UTC) - timedelta(seconds=last + CLOCKS_APART)
        try:
            samples = await bounded(
                "measuring a sandbox",
                METRICS_LIMIT,
                lambda: self._call(
                    "measuring a sandbox",
                    lambda sandboxes: sandboxes.get_metrics(sandbox_id, start=start),
                ),
            )
        except E2BAgentError as exc:
            logger.info("no metrics of sandbox=%s: %s", sandbox_id, exc.message)
            return None
        return usage_of(samples)

    async def kill(self, sandbox_id: str) -> bool:
        """False when there was nothing to kill."""
        started = time.monotonic()
        killed = await self._call("ending a sandbox", lambda sandboxes: sandboxes.kill(sandbox_id))
        if killed:
            self._tell("killed", sandbox_id)
        else:
            self._tell_gone(sandbox_id, started)
        return killed

    def _tell_gone(self, sandbox_id: str, asked: float) -> None:
        self._tell("gone", sandbox_id, took=time.monotonic() - asked)

    @property
    def _life(self) -> int:
        return self._terms.life

    async def _call(
        self,
        doing: str,
        operation: "Callable[[type[AsyncSandbox]], Awaitable[T]]",
        *,
        limit: float | None = None,
    ) -> T:
        seconds = limit or self._settings.sandboxes.request_timeout
        started = time.monotonic()
        for attempt in itertools.count():
            await self.connect()
            sandboxes = self._sandboxes
            assert sandboxes is not None
            try:
                answer = await bounded(doing, seconds, lambda: operation(sandboxes))  # noqa: B023
                self._used_at = time.monotonic()
                return answer
            except LifeRefusedError as exc:
                if not self._terms.learn(exc.longest):
                    raise
                logger.warning("E2B lets a sandbox run for at most %g s", self._terms.longest)
                continue
            except (RateLimitError, SandboxUnavailableError) as exc:
                delay = _retry_delay(exc, attempt)
                if delay is None or time.monotonic() - started + delay > seconds:
                    raise
                logger.info("trying again after %s: %s", doing, exc.message)
            await self._reconnect(sandboxes, None)
            await anyio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
        raise AssertionError("unreachable")

    async def _reconnect(
        self, stale: "type[AsyncSandbox] | None", on_progress: Progress | None
    ) -> None:
        async with self._connecting:
            if self._sandboxes is not stale:
                return
            params = await self._connect(on_progress=on_progress)
            if params != self._params:
                # The import takes over a second of CPU, so it leaves the event loop alone.
                self._sandboxes = await to_thread.run_sync(
                    _bind, params, self._settings, abandon_on_cancel=True
                )
                self._params = params
            self._used_at = time.monotonic()


def _retry_delay(error: SandboxError, attempt: int) -> float | None:
    """Seconds until the next attempt; None when there shall be none.

    A busy E2B is asked as long as the caller waits; a broken one, a few times. Where E2B says how
    long to wait (`Retry-After`), the SDK has waited so long before it gave up.
    """
    if attempt < len(RETRY_DELAYS):
        return RETRY_DELAYS[attempt]
    return BUSY_DELAY if error.busy else None


def _bind(params: E2BParams, settings: Settings) -> "type[AsyncSandbox]":
    from e2b_code_interpreter import E2B

    given: E2BClientParams = {
        "api_key": params.api_key.reveal(),
        # E2B_DEBUG would make the SDK skip create and kill.
        "debug": False,
        "request_timeout": settings.sandboxes.request_timeout,
    }
    if params.domain is not None:
        given["domain"] = params.domain
    if params.api_url is not None:
        given["api_url"] = params.api_url
    if params.sandbox_url is not None:
        given["sandbox_url"] = params.sandbox_url
    if params.proxy is not None:
        given["proxy"] = params.proxy
    # mypy takes this for the client of the package `e2b`, which has the same name.
    return cast("type[AsyncSandbox]", E2B(**given).AsyncSandbox)


def _candidate(info: "SandboxInfo") -> Candidate:
    return Candidate(
        sandbox_id=info.sandbox_id,
        metadata=info.metadata,
        paused=info.state.value == "paused",
        started_at=info.started_at,
        end_at=info.end_at,
        vcpus=info.cpu_count,
        memory_mb=info.memory_mb,
    )
