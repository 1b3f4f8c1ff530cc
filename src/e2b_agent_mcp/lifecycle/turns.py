"""One call of a session at a time, among all servers of a user on one machine.

Without it the code of two servers would wait for each other inside the sandbox, where the time of
the one that waits runs out, and what is done to stop its code would hit the other's.

A turn is the lock of a file, which ends with its process. Who waits holds a second lock, so that
the next turn is his however many calls the other server has. Where the folder cannot be used, each
server keeps the order of its own calls only.
"""

import fcntl
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import anyio

from e2b_agent_mcp.connection import Progress
from e2b_agent_mcp.errors import E2BAgentError
from e2b_agent_mcp.pool import SessionKey

logger = logging.getLogger(__name__)

POLL = 0.02  # seconds


class Turns:
    """`find_folder` says where the locks are; it is made when it is first needed."""

    def __init__(self, find_folder: Callable[[], Path]) -> None:
        self._find_folder = find_folder
        self._folder: Path | None = None
        self._usable = True

    @asynccontextmanager
    async def turn(self, key: SessionKey, on_wait: Progress | None = None) -> AsyncIterator[None]:
        """`on_wait` hears, in words, that another server has its turn."""
        name = _name(key)

        async def tell() -> None:
            if on_wait is not None:
                await on_wait(f"Waiting for a call or task of another server in session {key.name}")

        async with AsyncExitStack() as turn:
            async with self._locked(f"{name}.next", tell):
                await turn.enter_async_context(self._locked(name, tell))
            yield

    @contextmanager
    def if_free(self, key: SessionKey) -> Iterator[bool]:
        """Whether no other server has a turn; then none begins one meanwhile."""
        file = self._try_to_lock(name := _name(key))
        try:
            yield file is not None or not self._usable
        finally:
            self._unlock(name, file)

    @asynccontextmanager
    async def _locked(
        self, name: str, tell_wait: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        if (file := self._try_to_lock(name)) is None and self._usable:
            await tell_wait()
        # A lock that another process gives back is told to nobody.
        while file is None and self._usable:
            await anyio.sleep(POLL)
            file = self._try_to_lock(name)
        try:
            yield
        finally:
            self._unlock(name, file)

    def _unlock(self, name: str, file: int | None) -> None:
        if file is not None:
            with suppress(OSError):
                (self._path / name).unlink()
            os.close(file)

    def _try_to_lock(self, name: str) -> int | None:
        if not self._usable:
            return None
        try:
            return _try_to_lock(self._path / name)
        except (OSError, E2BAgentError) as exc:
            logger.warning("sessions are not shared in turns with other servers: %s", exc)
            self._usable = False
            return None

    @property
    def _path(self) -> Path:
        if self._folder is None:
            self._folder = self._find_folder()
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._folder


def _name(key: SessionKey) -> str:
    return hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]


def _try_to_lock(path: Path) -> int | None:
    """An open file that holds the lock; None while another has it, or has just removed it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None
