"""Where sandboxes come from: the E2B that the settings name, else the embedded engine.

The one place outside the engine that imports it.
"""

import ipaddress
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from e2b_agent_mcp.errors import EngineUnavailableError, SettingsError
from e2b_agent_mcp.settings import E2BSettings, SandboxSettings, Secret, Settings

if TYPE_CHECKING:
    from e2b_agent_mcp.engine import EngineOptions


Progress = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class E2BParams:
    """Which E2B a client speaks to; `None` leaves the choice to the SDK."""

    api_key: Secret
    domain: str | None = None
    api_url: str | None = None
    sandbox_url: str | None = None
    proxy: str | None = None
    billed: bool = True  # at E2B's prices, where the settings name none


class Connect(Protocol):
    """Gives the address of E2B; called again when that address stops answering."""

    async def __call__(self, *, on_progress: Progress | None) -> E2BParams: ...


async def e2b_params(settings: Settings, *, on_progress: Progress | None = None) -> E2BParams:
    """What an E2B client needs; without a key, starts the embedded engine or finds a live one.

    The engine's first start builds its template, which takes minutes: `on_progress` hears of it.
    """
    if settings.e2b.api_key is not None:
        return _configured(settings.e2b, settings.e2b.api_key)
    for name in ("domain", "api_url", "sandbox_url"):
        if getattr(settings.e2b, name) is not None:
            raise SettingsError(
                f"E2B_{name.upper()} is set, but E2B_API_KEY is not.",
                hint="Set E2B_API_KEY too (a self-hosted E2B may take any), or unset it to use "
                "the embedded engine.",
            )
    return await _embedded(settings, on_progress)


def _configured(e2b: E2BSettings, api_key: Secret) -> E2BParams:
    local = e2b.api_url is not None and _is_loopback(e2b.api_url)
    return E2BParams(
        api_key=api_key,
        domain=e2b.domain,
        api_url=e2b.api_url,
        sandbox_url=e2b.sandbox_url,
        proxy=None if local else e2b.proxy,
        billed=not local,
    )


def tasks_dir(settings: Settings) -> Path:
    """Where tasks are kept: beside what the engine keeps, which need not be in use."""
    return _state_dir(settings) / "tasks"


def ledger_dir(settings: Settings) -> Path:
    """Where it is kept what was spent: for all servers of this user."""
    return _state_dir(settings) / "ledger"


def turns_dir(settings: Settings) -> Path:
    """Where servers of this user keep each other from using a session at the same time."""
    return _state_dir(settings) / "turns"


def _state_dir(settings: Settings) -> Path:
    return settings.engine.state_dir or engine_options(settings).state_dir


def engine_options(settings: Settings) -> "EngineOptions":
    """The embedded engine's own options; raises `EngineUnavailableError` for ones it refuses."""
    # Imported on first use: a server that uses E2B's cloud never needs it.
    from e2b_agent_mcp.engine import EngineError, EngineOptions

    try:
        return EngineOptions(**_given_options(settings))
    except EngineError as exc:
        raise _unavailable(exc) from exc


# Any: each option has a type of its own, which EngineOptions checks.
def _given_options(settings: Settings) -> dict[str, Any]:
    """Only what is set: the engine knows its own folders."""
    # All servers of a user share the engine: one that holds few leaves room for the others.
    most = max(settings.sandboxes.max, SandboxSettings().max)
    # Paused ones keep their memory there, so they count: two beside each that runs.
    options = {**vars(settings.engine), "max_sandboxes": 3 * most}
    return {name: value for name, value in options.items() if value is not None}


async def _embedded(settings: Settings, on_progress: Progress | None) -> E2BParams:
    from e2b_agent_mcp.engine import EngineError, ensure_ready

    options = engine_options(settings)
    failure: Exception | None = None
    # The engine tells its progress to a plain function; a queue carries it to the async one.
    told, heard = anyio.create_memory_object_stream[str](math.inf)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_pass_on, heard, on_progress)
        with told:
            try:
                address = await ensure_ready(options, on_progress=told.send_nowait)
            except (EngineError, OSError) as exc:
                failure = exc
    if failure is not None:
        raise _unavailable(failure) from failure
    return E2BParams(
        api_key=Secret(address.api_key),
        api_url=address.api_url,
        sandbox_url=address.sandbox_url,
        billed=False,
    )


async def _pass_on(heard: MemoryObjectReceiveStream[str], on_progress: Progress | None) -> None:
    with heard:
        async for message in heard:
            if on_progress is not None:
                await on_progress(message)


def _unavailable(exc: Exception) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"The embedded engine cannot run here: {exc}",
        hint="Run `e2b-agent-mcp doctor`, or set E2B_API_KEY to use E2B's cloud.",
    )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
