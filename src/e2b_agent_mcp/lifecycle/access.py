"""How a lease reaches its sandbox, and what a call that fails means for the session.

Contract: code that may have reached a sandbox is never sent again. When the first call of a lease
finds that its sandbox had ended before, the session gets a new one and the call goes there. A loss
is believed only once E2B has confirmed it.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from e2b_agent_mcp.errors import (
    AuthenticationError,
    E2BAgentError,
    RateLimitError,
    SandboxError,
    SandboxLostError,
    SandboxUnavailableError,
)
from e2b_agent_mcp.lifecycle.control import Control, bounded
from e2b_agent_mcp.lifecycle.session import Session
from e2b_agent_mcp.pool import EXPLAIN_CRASH, SandboxState, expired
from e2b_agent_mcp.settings import Settings

if TYPE_CHECKING:
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox

T = TypeVar("T")

CAUSE_LIMIT = 5.0  # seconds


class Access:
    """The sandbox of one lease."""

    def __init__(
        self,
        session: Session,
        control: Control,
        settings: Settings,
        handle: "AsyncSandbox",
        *,
        state: SandboxState,
        lost: str,
        reopen: Callable[[], Awaitable["Access"]],
    ) -> None:
        self.session = session.key.name
        self.state = state  # may change with the first call, as `lost` and the sandbox
        self.lost = lost  # for the model: what the session lost since its last lease
        self.warning = ""  # for the caller: a budget is nearly spent
        self._session = session
        self._control = control
        self._settings = settings
        self._handle: AsyncSandbox | None = handle
        self._sandbox_id = handle.sandbox_id
        self._reopen = reopen
        self._answered = False  # this sandbox has done something for this lease

    @property
    def sandbox(self) -> "AsyncSandbox":
        """E2B's own object, for what this class does not offer; its calls are not bounded."""
        if self._handle is None:
            raise RuntimeError("This lease has ended; lease the session again.")
        return self._handle

    @property
    def sandbox_id(self) -> str:
        return self._sandbox_id

    def close(self) -> None:
        self._handle = None

    def tell_loss(self, what: str) -> None:
        self.lost = f"{self.lost} {what}".strip()

    async def replace(self) -> None:
        """After `SandboxLostError`: goes on with a new sandbox, without giving up its turn.

        `state` and `lost` tell what became of the session.
        """
        self._session.slot.doubted = True
        fresh = await self._reopen()
        self._handle, self._sandbox_id = fresh.sandbox, fresh.sandbox_id
        self.state, self.lost = fresh.state, fresh.lost

    async def _first(self, call: Callable[[], Awaitable[T]]) -> T:
        """A lease does not ask whether its sandbox still exists; its first call finds out."""
        try:
            answer = await call()
        except SandboxError as exc:
            if exc.reached or self._answered:
                raise
            await self.replace()
            answer = await call()
        self._answered = True
        return answer

    async def _data(
        self, doing: str, call: Callable[[], Awaitable[T]], seconds: float | None = None
    ) -> T:
        try:
            return await bounded(doing, seconds or self._settings.sandboxes.request_timeout, call)
        except SandboxError as exc:
            raise await self._diagnose(exc) from exc

    async def _diagnose(self, error: SandboxError) -> SandboxError:
        """What a failed call means for the session: asks E2B whether the sandbox still exists."""
        self._session.slot.doubted = True
        if isinstance(error, (AuthenticationError, RateLimitError)):
            return error
        try:
            found = await self._control.inspect(self._sandbox_id)
        except E2BAgentError:
            return error
        if found is None:
            kept = self._settings.sandboxes.kept
            cause = await self._cause(error)
            why = EXPLAIN_CRASH.format(cause=cause) if error.reached else expired(kept)
            self._session.lose(self._sandbox_id, why)
            lost = SandboxLostError(
                f"The session's sandbox ended during this call ({cause}): "
                "variables, files and installed packages of the session are gone.",
                hint="Call again to get a new sandbox; what ran may have taken effect outside it.",
            )
            lost.reached = error.reached
            return lost
        if found.paused:
            paused = SandboxUnavailableError(
                f"{error.message} The sandbox was paused meanwhile; it is kept.",
                hint="Call again: it is resumed, and the result says if anything was lost.",
            )
            paused.reached = error.reached
            return paused
        return error

    async def _cause(self, error: SandboxError) -> str:
        """Of the sandbox's end. The engine says so of one that it killed, to who asks for it."""
        if not isinstance(error, SandboxLostError) or not error.limit:
            try:
                await bounded(
                    "asking why it ended", CAUSE_LIMIT, lambda: self.sandbox.files.list("/")
                )
            except SandboxError as exc:
                error = exc
        if isinstance(error, SandboxLostError) and error.limit:
            return f"killed: {error.limit}"
        return "killed, out of memory, or failed"
