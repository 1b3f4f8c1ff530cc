"""One sandbox's record: what was asked for, its tokens, its deadline and its box.

A record outlives its box only while the sandbox is paused without memory. A pause of the user's
or the end of the engine can have caused that: nothing outside tells the two apart.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import hmac
import math
import secrets
import string
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import anyio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from .egress import EgressProxy, NetworkPolicy
    from .isolation import Box, Usage
    from .ward import Ward

Operation = Literal["read", "write"]

TEMPLATES = ("base", "code-interpreter-v1")
ENVD_VERSION = "0.6.13"  # the envd whose behaviour the guest offers; SDKs gate features on it
METRICS_KEPT = 360  # samples: half an hour

_ID_ALPHABET = string.ascii_lowercase + string.digits


class State(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"


class PauseMode(enum.StrEnum):
    FULL = "full"  # the box is frozen and keeps its memory
    FILESYSTEM = "filesystem"  # only the home is kept; resuming starts a new box on it


@dataclass(frozen=True, kw_only=True)
class Lifecycle:
    """What happens at the deadline."""

    on_timeout: Literal["kill", "pause"] = "kill"
    pause_mode: PauseMode = PauseMode.FULL
    auto_resume: bool = False


@dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """What a create asked for."""

    template: str
    timeout: float
    snapshot: str | None = None  # id of the one whose files it begins with
    network: NetworkPolicy
    metadata: Mapping[str, str] = field(default_factory=dict)
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    public_traffic: bool | None = None  # unless False, who knows its id reaches its own ports
    mask_request_host: str | None = None  # what its own servers see as their host


class Sample(NamedTuple):
    at: float
    cpu_seconds: float
    cpu_percent: float
    memory_bytes: int
    disk_bytes: int


@dataclass(eq=False)
class Machine:
    """A box that runs, with what the host keeps for it."""

    box: Box
    egress: EgressProxy
    ward: Ward
    stopped: anyio.Event  # set when the box and all that belongs to it are gone


@dataclass(eq=False, kw_only=True)
class Sandbox:
    id: str
    spec: SandboxSpec
    home: Path
    socket_path: Path
    network: NetworkPolicy
    started_at: float
    end_at: float
    running_since: float = 0.0  # its start or its last resume
    kept_until: float = math.inf  # when it is removed if it is paused
    idempotency_key: str | None = None
    envd_token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    traffic_token: str = field(default_factory=lambda: secrets.token_hex(32), repr=False)
    state: State = State.RUNNING
    pause_mode: PauseMode | None = None
    machine: Machine | None = None
    disk: tuple[float, int] | None = None  # when what the home holds was counted, and the bytes
    usage: Usage | None = None  # what its processes used when they were last looked at
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=METRICS_KEPT))
    # What is in flight, above all requests of the data plane; a pause ends them as E2B's does.
    exchanges: set[anyio.CancelScope] = field(default_factory=set)
    # Orders pause, resume, kill and expiry of this sandbox.
    changing: anyio.Lock = field(default_factory=anyio.Lock)

    @property
    def deadline(self) -> float:
        return self.end_at if self.state is State.RUNNING else self.kept_until

    def accepts_envd(self, token: str | None) -> bool:
        return _same(token, self.envd_token)

    def accepts_traffic(self, token: str | None) -> bool:
        return _same(token, self.traffic_token)

    def signed(
        self, given: str, path: str, operation: Operation, user: str, expiration: str | None
    ) -> bool:
        """Whether a file URL's signature was made with this sandbox's token."""
        text = f"{path}:{operation}:{user}:{self.envd_token}"
        if expiration is not None:
            text += f":{expiration}"
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest())
        return _same(given, "v1_" + digest.decode().rstrip("="))

    @property
    def identity(self) -> dict[str, str]:
        """The variables by which programs know where they are, as on E2B."""
        return {
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": self.id,
            "E2B_TEMPLATE_ID": self.spec.template,
        }

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """What a pause, the end of the box or a kill cuts short."""
        with anyio.CancelScope() as scope:
            self.exchanges.add(scope)
            try:
                yield
            finally:
                self.exchanges.discard(scope)

    def drop_exchanges(self) -> None:
        for exchange in tuple(self.exchanges):
            exchange.cancel()


def new_id(first: str) -> str:
    """As E2B's: also part of a host name, so small letters and digits alone."""
    return first + "".join(secrets.choice(_ID_ALPHABET) for _ in range(20))


def socket_name(sandbox_id: str) -> str:
    """All users of the host can read the paths of sockets, and knowing an id opens ports."""
    return hashlib.sha256(sandbox_id.encode()).hexdigest()[: len(sandbox_id)]


def _same(given: str | None, expected: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), expected.encode())
