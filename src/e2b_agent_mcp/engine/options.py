"""Everything the engine can be told, in one frozen value.

Two engines never share a `state_dir`. The folders below `runtime_dir` are named after the
state folder, so one user may run several engines with the same `runtime_dir`.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from .egress import NetworkPolicy, is_rule
from .errors import EngineError

IsolationChoice = Literal["auto", "bubblewrap", "gvisor"]
NetworkChoice = Literal["public", "none"]

APP = "e2b-agent-mcp"
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")

# A unix socket's path ends after 107 bytes; "/" + 21 (id) + ".net/proxy.sock" is ours.
LONGEST_ENGINE_DIR = 107 - 37


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The defaults suit a newcomer: no option is needed."""

    state_dir: Path = field(default_factory=lambda: _state_dir())
    cache_dir: Path = field(default_factory=lambda: _cache_dir())
    runtime_dir: Path = field(default_factory=lambda: _runtime_dir())
    host: str = "127.0.0.1"
    port: int = 0
    idle_exit: float = 900.0  # seconds without a running sandbox and without a request
    retention: float = 30 * 24 * 3600.0  # seconds that a paused sandbox is kept
    longest_run: int = 30 * 24 * 3600  # seconds that a sandbox runs without a pause, at most
    isolation: IsolationChoice = "auto"
    bubblewrap: Path | None = None
    network: NetworkChoice = "public"
    network_allow: tuple[str, ...] = ()  # if any: only these, and the package index
    cpu_count: int = 2
    memory_mb: int = 2048
    disk_mb: int = 4096
    max_files: int = 250_000
    max_processes: int = 512
    max_sandboxes: int = 20
    zygote: bool = True  # fork sandboxes from a process that has the packages in memory
    spares: int = 1  # sandboxes that the zygote keeps ready

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK_HOSTS:
            raise EngineError(f"host must be a loopback address, not {self.host!r}.")
        if self.isolation not in get_args(IsolationChoice):
            raise EngineError(f"isolation must be one of {', '.join(get_args(IsolationChoice))}.")
        if self.network not in get_args(NetworkChoice):
            raise EngineError(f"network must be one of {', '.join(get_args(NetworkChoice))}.")
        for rule in self.network_allow:
            if not is_rule(rule):
                raise EngineError(f"network_allow: {rule!r} is no name, address or network.")

    @property
    def ceiling(self) -> NetworkPolicy:
        """The most that any sandbox may reach."""
        everything = self.network == "public" and not self.network_allow
        return NetworkPolicy(internet=everything, allow_out=self.network_allow)

    @property
    def engine_dir(self) -> Path:
        """The sockets of the engine that owns this `state_dir`."""
        name = hashlib.sha256(os.fsencode(self.state_dir.absolute())).hexdigest()[:8]
        return self.runtime_dir / name

    @property
    def runtime_file(self) -> Path:
        """Beside the state, as programs of one user often disagree about the `runtime_dir`.

        An MCP client, for one, passes no XDG_RUNTIME_DIR on to the servers that it starts.
        """
        return self.state_dir / "engine.json"

    @property
    def homes_dir(self) -> Path:
        return self.state_dir / "sandboxes"

    @property
    def records_dir(self) -> Path:
        return self.state_dir / "records"

    @property
    def snapshots_dir(self) -> Path:
        return self.state_dir / "snapshots"

    @property
    def snapshot_records_dir(self) -> Path:
        return self.state_dir / "snapshot-records"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "engine.log"

    @property
    def lock_file(self) -> Path:
        """Held by the serving engine, so that no second one touches the homes."""
        return self.state_dir / "engine.lock"

    def matches(self, other: EngineOptions) -> bool:
        """Whether both ask for the same engine; where its sockets lie is its own affair."""
        return replace(self, runtime_dir=other.runtime_dir) == other

    def to_json(self) -> str:
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return json.dumps(plain, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EngineOptions:
        given: dict[str, Any] = json.loads(text)
        unknown = given.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise EngineError(f"unknown engine options: {', '.join(sorted(unknown))}.")
        for name in ("state_dir", "cache_dir", "runtime_dir", "bubblewrap"):
            if given.get(name) is not None:
                given[name] = Path(given[name])
        if "network_allow" in given:
            given["network_allow"] = tuple(given["network_allow"])
        return cls(**given)

    def make_dirs(self) -> None:
        """Makes the private folders; refuses those that another user could write to.

        Below root they can be passed through, not listed: boxes run as another user there.
        """
        mode = 0o711 if os.getuid() == 0 else 0o700
        passed = (self.state_dir, self.homes_dir, self.snapshots_dir)
        for folder in (*passed, self.runtime_dir, self.engine_dir):
            make_folder(folder, mode)
            _refuse_shared(folder)
        for folder in (self.records_dir, self.snapshot_records_dir):
            make_folder(folder, 0o700)
        if len(os.fsencode(self.engine_dir)) > LONGEST_ENGINE_DIR:
            raise EngineError(f"runtime_dir {self.runtime_dir} is too long for unix sockets.")


def make_folder(folder: Path, mode: int) -> None:
    """Whatever the umask is; an existing folder stays as it is."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)


def _refuse_shared(folder: Path) -> None:
    info = folder.stat(follow_symlinks=False)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
        raise EngineError(f"{folder} does not belong to this user.")
    if info.st_mode & 0o022:
        raise EngineError(f"{folder} can be written by other users; chmod 700 it.")


def _state_dir() -> Path:
    return _folder("/var/lib", "XDG_STATE_HOME", ".local/state")


def _cache_dir() -> Path:
    return _folder("/var/cache", "XDG_CACHE_HOME", ".cache")


def _runtime_dir() -> Path:
    if os.getuid() == 0:
        return Path("/run") / APP
    usual = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    if os.access(usual, os.W_OK):
        return usual / APP
    return Path(tempfile.gettempdir()) / f"{APP}-{os.getuid()}"


def _folder(system: str, variable: str, in_home: str) -> Path:
    if os.getuid() == 0:
        return Path(system) / APP
    base = os.environ.get(variable) or Path.home() / in_home
    return Path(base) / APP
