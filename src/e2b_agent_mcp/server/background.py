"""Tool calls that go on after their request was answered, for clients that look after them.

A call that is over within its time is answered as ever. One that takes longer is handed over: it
has an id from then on, its result is kept for `KEPT` seconds after its end, and it ends with the
server. Until it is handed over a client that cancels its request cancels the call.

(An agent's task is kept by `tasks` instead, on disk.)
"""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import anyio
from mcp.shared.exceptions import MCPError
from mcp.types import INTERNAL_ERROR, ErrorData

from e2b_agent_mcp.errors import NotFoundError
from e2b_agent_mcp.owned_tasks import owned_tasks
from e2b_agent_mcp.tasks import Questions

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from mcp.server.context import HandlerResult

logger = logging.getLogger(__name__)

KEPT = 600.0  # seconds after a call's end
MOST = 100  # calls that are handed over; while there are more, a call is answered at its end

Report = Callable[[float, float | None, str | None], Awaitable[None]]


@dataclass(eq=False, kw_only=True)
class BackgroundCall:
    owner: str
    call_id: str = field(default_factory=lambda: f"c-{secrets.token_hex(16)}")
    created_at: float = field(default_factory=time.time)
    changed_at: float = field(default_factory=time.time)
    words: str = ""  # the last of its progress
    handed_over: bool = False
    # Any: what a client may be asked, and what it answers, as MCP has them.
    questions: Questions[Any, Any] = field(default_factory=Questions)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)
    outcome: "HandlerResult | Exception" = None  # None once it is over: it was cancelled

    @property
    def error(self) -> ErrorData:
        """Of a call whose outcome is an exception."""
        if isinstance(self.outcome, MCPError):
            return self.outcome.error
        return ErrorData(code=INTERNAL_ERROR, message="The call failed.")

    def reporting(self, report: Report) -> Report:
        """Progress goes to the request for as long as that is open."""

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            self.words, self.changed_at = message or self.words, time.time()
            if self.handed_over:
                return
            try:
                await report(progress, total, message)
            except Exception:  # whatever the transport raises for a request that was answered
                if not self.handed_over:
                    raise

        return tell


_current: ContextVar[BackgroundCall | None] = ContextVar("background_call", default=None)


def current_background() -> BackgroundCall | None:
    """The call that this code is part of, when it may outlive its request."""
    return _current.get()


class BackgroundCalls:
    """The calls of one server; use it with `async with`, inside of what the calls use."""

    def __init__(self) -> None:
        # Seconds after which calls of a tool are handed over, 0: always; other tools' never are.
        self.after: dict[str, float] = {}
        self._calls: dict[str, BackgroundCall] = {}
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(owned_tasks())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()
        self._tasks = None

    async def run(
        self, owner: str, tool: str, call: Callable[[], Awaitable["HandlerResult"]]
    ) -> "HandlerResult | BackgroundCall":
        """What the call returns or raises, or the call itself once it is handed over."""
        self._forget()
        if tool not in self.after or len(self._calls) >= MOST or self._tasks is None:
            return await call()
        started = BackgroundCall(owner=owner)
        self._tasks.start_soon(self._carry_out, started, call)
        try:
            if self.after[tool] > 0:
                with anyio.move_on_after(self.after[tool]):
                    await started.over.wait()
        except anyio.get_cancelled_exc_class():
            started.scope.cancel()
            with anyio.CancelScope(shield=True):  # its own cleanup is bounded
                await started.over.wait()
            raise
        if not started.over.is_set():
            started.handed_over = True
            self._calls[started.call_id] = started
            return started
        if isinstance(started.outcome, Exception):
            raise started.outcome
        return started.outcome

    def find(self, owner: str, call_id: str) -> BackgroundCall:
        """Raises `NotFoundError` for a call of another owner too."""
        self._forget()
        found = self._calls.get(call_id)
        if found is None or found.owner != owner:
            raise NotFoundError(
                "There is no such task.",
                hint=f"Results are kept for {KEPT / 60:.0f} minutes, and end with the server.",
            )
        return found

    async def _carry_out(
        self, started: BackgroundCall, call: Callable[[], Awaitable["HandlerResult"]]
    ) -> None:
        _current.set(started)
        try:
            with started.scope:
                started.outcome = await call()
        # Raised where its request is answered, or told to who looks after the call.
        except Exception as exc:
            started.outcome = exc
            if started.handed_over and not isinstance(exc, MCPError):
                logger.exception("a call failed")
        finally:
            started.changed_at = time.time()
            started.over.set()

    def _forget(self) -> None:
        oldest = time.time() - KEPT
        self._calls = {
            call_id: call
            for call_id, call in self._calls.items()
            if not call.over.is_set() or call.changed_at > oldest
        }
