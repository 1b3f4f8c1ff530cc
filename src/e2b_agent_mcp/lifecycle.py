"""Sandboxes of sessions: created, found again, extended, resumed, replaced. The door of E2B's SDK.

async with SandboxManager(settings, connect=partial(e2b_params, settings)) as manager:
    async with manager.lease(SessionKey("me", "analysis")) as lease:
        run = await lease.run_code("1 + 1", timeout=60)
"""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self

from e2b_agent_mcp.pool import SandboxState, SessionKey
from e2b_agent_mcp.settings import Secret, Settings

if TYPE_CHECKING:
    from e2b_code_interpreter import AsyncSandbox, Execution

Progress = Callable[[str], Awaitable[None]]
Output = Callable[[str], Awaitable[None]]
RunStatus = Literal["ok", "error", "timeout", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class E2BParams:
    """Which E2B a client speaks to; `None` leaves the choice to the SDK."""

    api_key: Secret
    domain: str | None = None
    api_url: str | None = None
    sandbox_url: str | None = None
    proxy: str | None = None


class Connect(Protocol):
    """Gives the address of E2B; called again when that address stops answering."""

    async def __call__(self, *, on_progress: Progress | None) -> E2BParams: ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of code; `execution` holds what was received so far when it was cut short."""

    status: RunStatus
    execution: "Execution"
    duration: float  # seconds
    note: str = ""  # for the model: what became of variables and files, "" when nothing was lost


@dataclass(frozen=True, kw_only=True)
class CommandRun:
    """One shell command; `exit_code` is None when it was stopped before it ended."""

    status: RunStatus  # "error": it ended with an exit code other than 0
    exit_code: int | None
    stdout: str
    stderr: str
    duration: float  # seconds
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    path: str
    kind: Literal["file", "directory"]
    size: int  # bytes
    mime_type: str
    modified_at: datetime


@dataclass(frozen=True, kw_only=True)
class SessionInfo:
    name: str
    sandbox_id: str
    state: Literal["running", "paused"]
    started_at: datetime
    end_at: datetime


class Lease:
    """Exclusive use of a session's sandbox, from `SandboxManager.lease`."""

    session: str
    state: SandboxState
    lost: str  # for the model: what the session lost since its last lease, "" when nothing

    @property
    def sandbox(self) -> "AsyncSandbox":
        """E2B's own object, for what this class does not offer; its calls are not bounded."""
        raise NotImplementedError

    @property
    def sandbox_id(self) -> str:
        raise NotImplementedError

    async def run_code(
        self,
        code: str,
        *,
        timeout: float,
        on_stdout: Output | None = None,
        on_stderr: Output | None = None,
    ) -> Run:
        raise NotImplementedError

    async def run_command(
        self,
        command: str,
        *,
        timeout: float,
        cwd: str | None = None,
        on_stdout: Output | None = None,
        on_stderr: Output | None = None,
    ) -> CommandRun:
        raise NotImplementedError

    async def install(self, packages: Sequence[str], *, timeout: float) -> None:
        raise NotImplementedError

    async def restart(self) -> None:
        raise NotImplementedError

    async def changed_files(self) -> list[FileInfo]:
        raise NotImplementedError

    async def list_files(self, path: str) -> list[FileInfo]:
        raise NotImplementedError

    async def stat_file(self, path: str) -> FileInfo:
        raise NotImplementedError

    async def read_file(self, path: str) -> bytes:
        """The whole file; `TooLargeError` over `files.size_limit`."""
        raise NotImplementedError

    def stream_file(self, path: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        raise NotImplementedError

    async def write_file(self, path: str, data: bytes | AsyncIterable[bytes]) -> None:
        raise NotImplementedError


@dataclass(eq=False)
class SandboxManager:
    """Leases sandboxes to sessions."""

    settings: Settings
    connect: Connect = field(kw_only=True)

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        raise NotImplementedError

    async def prepare(self, on_progress: Progress | None = None) -> None:
        raise NotImplementedError

    def lease(
        self, key: SessionKey, *, on_progress: Progress | None = None
    ) -> AbstractAsyncContextManager[Lease]:
        raise NotImplementedError

    async def list_sessions(self, owner: str) -> list[SessionInfo]:
        raise NotImplementedError

    async def end_session(self, key: SessionKey) -> bool:
        raise NotImplementedError
