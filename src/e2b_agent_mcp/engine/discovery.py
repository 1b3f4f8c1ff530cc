"""Finds the engine of a state folder, or starts it.

Rules:
- A private file (0600, in a private folder) says where the engine listens and what its key is.
  It is believed only when its owner is this user, its process lives, and the listener proves
  that it knows the key; the key itself is never sent to find out.
- Starting holds a lock, so that ten programs that start at once get one engine.
- The engine belongs to nobody who starts it: it is detached, inherits no file but its log, and
  no environment but what names folders, languages, package indexes and proxies.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from io import FileIO
from typing import TYPE_CHECKING, NamedTuple

import anyio
import anyio.to_thread

from .app import HEALTH_PATH, SHUTDOWN_PATH, proof
from .errors import EngineError, StartError
from .host import prepare_host
from .options import EngineOptions

if TYPE_CHECKING:
    from pathlib import Path


START_TIMEOUT = 60.0  # seconds from the process to a listener that answers
STOP_TIMEOUT = 10.0  # seconds
HEALTH_TIMEOUT = 5.0  # seconds
LOCK_RETRY = 0.1  # seconds between two looks at a lock that another starter holds
LOG_TAIL = 2000  # characters shown when a start fails
LONGEST_RUNTIME_FILE = 64 * 1024  # bytes

_INHERITED = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|XDG_\w+|LD_LIBRARY_PATH|PYTHON\w+"
    r"|PIP_\w+|UV_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    r"|(?i:https?_proxy|all_proxy|no_proxy)"
)
_SECRET = re.compile(r"(?i).*(_KEY|TOKEN|SECRET|PASSWORD)$")

_KEY = re.compile(r"e2b_[0-9a-f]{40}")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EngineAddress:
    """What an E2B SDK needs: `E2B(api_url=…, sandbox_url=…, api_key=…)`."""

    api_url: str
    sandbox_url: str
    api_key: str = field(repr=False)
    pid: int


class Runtime(NamedTuple):
    """What the runtime file says."""

    address: EngineAddress
    version: str
    options: EngineOptions

    def matches(self, options: EngineOptions) -> bool:
        return self.version == engine_version() and self.options.matches(options)

    def serves(self, options: EngineOptions) -> bool:
        """Whether it may be used although it differs: never with another kind of safety."""
        same = _safety(self.options) == _safety(options)
        return same and _major(self.version) == _major(engine_version())


def _safety(options: EngineOptions) -> tuple[object, ...]:
    return options.isolation, options.bubblewrap, options.network, options.network_allow


def engine_version() -> str:
    try:
        return version("e2b-agent-mcp")
    except PackageNotFoundError:
        return "0"


def _major(of: str) -> str:
    return of.partition(".")[0]


# The runtime file


def write_runtime(options: EngineOptions, address: EngineAddress) -> None:
    said = {**asdict(address), "version": engine_version(), "options": options.to_json()}
    path = options.runtime_file
    draft = path.with_suffix(f".{os.getpid()}")
    with open(draft, "w", opener=private) as file:
        json.dump(said, file)
    draft.replace(path)


def lasting_key(options: EngineOptions) -> str:
    """The key of the engines of this state folder: programs may know it longer than one lives."""
    path = options.state_dir / "engine.key"
    if (known := _read_private(path)) is not None and _KEY.fullmatch(known):
        return known
    key = f"e2b_{secrets.token_hex(20)}"
    draft = path.with_suffix(f".{os.getpid()}")
    with open(draft, "w", opener=private) as file:
        file.write(key)
    draft.replace(path)
    return key


def _read_private(path: Path) -> str | None:
    """What a file says, if it is there and nobody else can have read or written it."""
    try:
        with open(path, opener=_no_links) as file:
            info = os.fstat(file.fileno())
            if info.st_uid != os.getuid() or info.st_mode & 0o077:
                return None
            return file.read(LONGEST_RUNTIME_FILE)
    except (OSError, UnicodeDecodeError):
        return None


def read_runtime(options: EngineOptions) -> Runtime | None:
    text = _read_private(options.runtime_file)
    if text is None:
        return None
    try:
        said = json.loads(text)
        address = EngineAddress(
            said["api_url"], said["sandbox_url"], said["api_key"], int(said["pid"])
        )
        return Runtime(address, said["version"], EngineOptions.from_json(said["options"]))
    except (ValueError, KeyError, TypeError, EngineError):
        return None


# Finding and ending


async def find(options: EngineOptions) -> EngineAddress | None:
    """The live engine of this state folder, whatever its version and options."""
    runtime = await _find(options)
    return runtime.address if runtime else None


async def stop(options: EngineOptions) -> bool:
    """Ends the engine and its sandboxes; whether there was one."""
    address = await find(options)
    if address is None:
        return False
    status, _ = await _ask(address, "POST", SHUTDOWN_PATH)
    if status == 204:
        await _wait_for_end(address)
    return True


async def _find(options: EngineOptions) -> Runtime | None:
    runtime = read_runtime(options)
    if runtime is None or not _alive(runtime.address.pid):
        return None
    challenge = secrets.token_hex(16)
    try:
        _, body = await _ask(runtime.address, "GET", f"{HEALTH_PATH}?challenge={challenge}", key="")
        proven = json.loads(body).get("proof") == proof(runtime.address.api_key, challenge)
    except (OSError, http.client.HTTPException, ValueError, AttributeError):
        return None
    return runtime if proven else None


async def _ask(
    address: EngineAddress, method: str, path: str, *, key: str | None = None
) -> tuple[int, bytes]:
    headers = {"X-API-KEY": address.api_key if key is None else key}
    return await anyio.to_thread.run_sync(
        _ask_blocking, address.api_url, method, path, headers, abandon_on_cancel=True
    )


def _ask_blocking(
    url: str, method: str, path: str, headers: Mapping[str, str]
) -> tuple[int, bytes]:
    host = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port, timeout=HEALTH_TIMEOUT)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(LONGEST_RUNTIME_FILE)


async def _wait_for_end(address: EngineAddress) -> None:
    try:
        process = os.pidfd_open(address.pid)
    except ProcessLookupError:
        return
    try:
        with anyio.fail_after(STOP_TIMEOUT):
            await anyio.wait_readable(process)
    except TimeoutError:
        raise StartError(f"The engine (process {address.pid}) does not end; kill it.") from None
    finally:
        os.close(process)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# Starting


async def ensure_ready(
    options: EngineOptions, *, on_progress: Progress = lambda message: None
) -> EngineAddress:
    """The address of a live engine; builds the template and starts the engine when needed.

    The first call on a machine downloads packages for minutes; `on_progress` hears how far.
    """
    options.make_dirs()
    runtime = await _find(options)
    if runtime is not None and runtime.matches(options):
        return runtime.address
    await prepare_host(options, on_progress)
    async with locked(options.state_dir / "start.lock", START_TIMEOUT + STOP_TIMEOUT):
        runtime = await _find(options)
        if runtime is not None and await _keep(runtime, options):
            return runtime.address
        on_progress("Starting the engine")
        await _start(options)
        started = await find(options)
    if started is None:
        raise StartError(f"The engine ended right after its start.{_log_tail(options)}")
    return started


async def _keep(runtime: Runtime, options: EngineOptions) -> bool:
    """Whether to use a live engine. One that differs is ended, unless it has sandboxes."""
    if runtime.matches(options):
        return True
    status, _ = await _ask(runtime.address, "POST", f"{SHUTDOWN_PATH}?if=idle")
    if status == 204:
        await _wait_for_end(runtime.address)
        return False
    if runtime.serves(options):
        return True
    raise StartError(
        f"An engine with other options (version {runtime.version}, process "
        f"{runtime.address.pid}) still has sandboxes. Kill them, or use another state folder."
    )


async def _start(options: EngineOptions) -> None:
    with _ready_pipe() as (told, tells):
        first = await anyio.to_thread.run_sync(_spawn, options, tells.fileno())
        tells.close()
        pid = None
        try:
            with anyio.fail_after(START_TIMEOUT):
                pid = await _read_line(told)
                ready = await _read_line(told) if first == 0 else ""
        except TimeoutError:
            if pid:
                os.kill(int(pid), signal.SIGKILL)
            raise StartError(
                f"The engine did not answer within {START_TIMEOUT:.0f} s.{_log_tail(options)}"
            ) from None
    if ready != "ready":
        raise StartError(f"The engine did not start.{_log_tail(options)}")


def _spawn(options: EngineOptions, tells: int) -> int:
    """Starts the process that starts the engine, and waits for that first one to leave."""
    argv = [
        *(sys.executable, "-m", __package__, "--background", f"--ready-fd={tells}"),
        *("--options-json", options.to_json()),
    ]
    with open(options.log_file, "ab", opener=private) as log:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=inherited_environment(os.environ),
            cwd="/",
            pass_fds=(tells,),
            start_new_session=True,
            check=False,
        ).returncode


def inherited_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environ.items()
        if _INHERITED.fullmatch(name) and not _SECRET.fullmatch(name)
    }


@contextmanager
def _ready_pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """As files, which close once: a number closed twice may be somebody else's by then."""
    told, tells = os.pipe()
    with FileIO(told, "r") as reader, FileIO(tells, "w") as writer:
        yield reader, writer


async def _read_line(told: FileIO) -> str:
    line = bytearray()
    while True:
        await anyio.wait_readable(told)
        byte = told.read(1)
        if byte in (b"\n", b""):
            return line.decode()
        line += byte


@asynccontextmanager
async def locked(path: Path, timeout: float) -> AsyncIterator[None]:
    """Sole use of what the file stands for; ends with the process, however it ends.

    TimeoutError when another process keeps it.
    """
    # Opened without a thread: it is small, local, and touched once per start.
    with open(path, "ab", opener=private) as file:  # noqa: ASYNC230
        with anyio.fail_after(timeout):
            while not _try_lock(file.fileno()):  # noqa: ASYNC110 - a lock wakes nobody here
                await anyio.sleep(LOCK_RETRY)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _log_tail(options: EngineOptions) -> str:
    try:
        text = options.log_file.read_text(errors="replace").strip()
    except OSError:
        return ""
    return f" Its log ({options.log_file}) ends with:\n{text[-LOG_TAIL:]}" if text else ""


def private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, mode=0o600)


def _no_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)
