"""One real engine for the whole run, real sandboxes, E2B's own SDK.

The template is shared with the machine's user: it takes minutes to build and never changes.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from e2b_code_interpreter import E2B, AsyncSandbox

from e2b_agent_mcp.agent import libraries
from e2b_agent_mcp.engine import EngineAddress, EngineOptions
from e2b_agent_mcp.lifecycle import E2BParams, Progress
from e2b_agent_mcp.settings import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

START_TIMEOUT = 600  # seconds; the first run on a machine builds the template
END_TIMEOUT = 5  # seconds; the promise is 2


def pytest_configure() -> None:
    # A shell's background job, as a test run may be, hands an ignored SIGINT on to its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Settings that name no state folder do not mean the user's: there is a ledger in it."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e2b_agent_mcp.engine.options._state_dir", lambda: folder)
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def engine_options() -> Iterator[EngineOptions]:
    with temporary_options() as options:
        yield options


@pytest.fixture
def fresh_options() -> Iterator[EngineOptions]:
    """Folders that no other test has."""
    with temporary_options() as options:
        yield options


@pytest.fixture(scope="session")
def engine(engine_options: EngineOptions) -> Iterator[EngineAddress]:
    with running_engine(engine_options) as address:
        yield address


@pytest.fixture(scope="session")
def e2b(engine: EngineAddress) -> E2B:
    return client(engine)


@pytest.fixture(scope="session")
def agent_libraries() -> None:
    """Loaded ahead: the first task would spend its own time on them, a minute on a busy machine."""
    libraries.load()


@pytest.fixture
async def sandbox(e2b: E2B) -> AsyncIterator[AsyncSandbox]:
    sandbox = await e2b.AsyncSandbox.create(timeout=120)
    yield sandbox
    await sandbox.kill()


class Connector:
    """What the server passes as `connect`, for an engine that is there already."""

    def __init__(self, address: EngineAddress) -> None:
        self.address = address

    async def __call__(self, *, on_progress: Progress | None) -> E2BParams:
        return E2BParams(
            api_key=Secret(self.address.api_key),
            api_url=self.address.api_url,
            sandbox_url=self.address.sandbox_url,
        )


def client(address: EngineAddress) -> E2B:
    return E2B(api_url=address.api_url, sandbox_url=address.sandbox_url, api_key=address.api_key)


@contextmanager
def temporary_options(**changes: object) -> Iterator[EngineOptions]:
    """Folders of their own, short (unix sockets) and open to pass (boxes may be another user)."""
    folder = Path(tempfile.mkdtemp(prefix="e2b-"))
    folder.chmod(0o711)
    try:
        options = {"state_dir": folder / "state", "runtime_dir": folder / "run", **changes}
        yield EngineOptions(**options)  # type: ignore[arg-type]
    finally:
        shutil.rmtree(folder)


@contextmanager
def running_engine(options: EngineOptions) -> Iterator[EngineAddress]:
    """A process that serves, and afterwards the proof that it left nothing behind."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "e2b_agent_mcp.engine", "--json"),
            *("--options-json", options.to_json()),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield _first_line(process)
        finally:
            started = [os.pidfd_open(pid) for pid in descendants(process.pid)]
            process.terminate()
            status = process.wait(END_TIMEOUT)
        assert status == 0
        assert all(_has_ended(pidfd) for pidfd in started)
        assert list(options.homes_dir.iterdir()) == list(options.records_dir.iterdir()) == []
        assert list(options.engine_dir.iterdir()) == []
        assert not options.runtime_file.exists()


def descendants(pid: int) -> Iterator[int]:
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, tasks.read_text().split()):
            yield child
            yield from descendants(child)


def _first_line(process: subprocess.Popen[str]) -> EngineAddress:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT)
    line = process.stdout.readline() if ready else ""
    assert line, "the engine did not start; its log is above"
    return EngineAddress(**json.loads(line))


def _has_ended(pidfd: int) -> bool:
    try:
        return bool(select.select([pidfd], [], [], 1.0)[0])
    finally:
        os.close(pidfd)
