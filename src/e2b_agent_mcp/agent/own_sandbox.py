"""A sandbox for a program that has no event loop: `OwnSandbox`, used from any thread.

It has a thread with an event loop, a manager and one lease, from its first use until it is closed.
The thread does not keep a program from ending; a program that ends closes it.
"""

import atexit
import logging
import math
import threading
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import NamedTuple, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from e2b_agent_mcp.agent.workspace import Observation, Workspace
from e2b_agent_mcp.lifecycle import SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import Secret, Settings

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 10.0  # seconds

T = TypeVar("T")


def settings_for(
    settings: Settings | None, *, api_key: str | None, template: str | None, life: float
) -> Settings:
    """The process's settings, or those given, with what a caller says in its own words."""
    base = settings or Settings.from_process()
    e2b = replace(
        base.e2b,
        api_key=Secret(api_key) if api_key else base.e2b.api_key,
        template=template or base.e2b.template,
    )
    return replace(base, e2b=e2b, sandboxes=replace(base.sandboxes, idle_after=life))


class _Open(NamedTuple):
    """What a use needs of the thread."""

    portal: BlockingPortal
    workspace: Workspace
    thread: threading.Thread


class OwnSandbox:
    def __init__(self, settings: Settings, *, timeout: float) -> None:
        self._settings = settings
        self._timeout = timeout
        self._open: _Open | None = None
        # One use at a time: an interpreter runs one code after the other anyway.
        self._turn = threading.Lock()

    def run(self, code: str) -> Observation:
        return self._use(lambda workspace: workspace.run(code, timeout=self._timeout))

    def install(self, packages: list[str]) -> None:
        seconds = self._settings.runs.install_timeout
        self._use(lambda workspace: workspace.install(packages, timeout=seconds))

    def close(self) -> None:
        """Ends the sandbox. The next use would make another one."""
        atexit.unregister(self.close)
        with self._turn:
            if self._open is not None:
                self._open.portal.start_task_soon(self._open.portal.stop)
                self._open.thread.join(CLOSE_TIMEOUT)
                self._open = None

    def _use(self, action: Callable[[Workspace], Awaitable[T]]) -> T:
        with self._turn:
            if self._open is None:
                self._open = self._start()
            future = self._open.portal.start_task_soon(action, self._open.workspace)
            try:
                return future.result()
            except BaseException:
                future.cancel()  # Ctrl-C in the calling thread stops the code
                raise

    def _start(self) -> _Open:
        opened: Future[tuple[BlockingPortal, Workspace]] = Future()
        thread = threading.Thread(
            target=anyio.run, args=[self._serve, opened], name="e2b-agent-mcp", daemon=True
        )
        thread.start()
        portal, workspace = opened.result()
        atexit.register(self.close)
        return _Open(portal, workspace, thread)

    async def _serve(self, opened: "Future[tuple[BlockingPortal, Workspace]]") -> None:
        key = SessionKey(f"program-{uuid.uuid4().hex}", "program")
        async with SandboxManager(self._settings) as manager:
            try:
                async with BlockingPortal() as portal, manager.lease(key) as lease:
                    workspace = Workspace(
                        lease, on_output=_ignore, replacements=math.inf, image_bytes=math.inf
                    )
                    opened.set_result((portal, workspace))
                    await portal.sleep_until_stopped()
                await manager.end_session(key)
            except Exception as exc:  # the thread that waits for it raises it
                if not opened.done():
                    opened.set_exception(exc)
                else:
                    logger.warning("the sandbox was not ended, it will by itself: %s", exc)


async def _ignore(text: str) -> None:
    pass
