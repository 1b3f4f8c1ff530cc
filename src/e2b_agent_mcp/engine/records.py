"""What is known of sandboxes when the engine is gone: small private files, beside the homes.

Rules:
- A record is written before its sandbox is answered for and removed before the home is: a home
  without a record is nobody's, whatever happened to the engine.
- A record is complete or absent, and never replaced by what a power cut could lose: a new one
  (`.new`) stands beside the last that is on the disk (`.json`), and takes its place when it is on
  the disk too. Nobody waits for the disk: a power cut costs the changes of the last moment.
- It holds the sandbox's tokens and variables, so only the engine's user can read it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from contextlib import contextmanager, suppress
from dataclasses import asdict
from threading import Lock
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from .egress import NetworkPolicy
from .sandbox import Lifecycle, PauseMode, Sandbox, SandboxSpec, State, socket_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .options import EngineOptions

logger = logging.getLogger(__name__)

SETTLE_PAUSE = 0.2  # seconds; what is answered for meanwhile has the disk for itself

_NAME = re.compile(r"[a-z0-9]{1,64}\.(json|new)")

Json = dict[str, Any]  # what a file of ours holds


class RecordFolder:
    """JSON files by name. `keep` puts them on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unsettled: set[str] = set()
        self._changed = anyio.Event()
        # Which file a name means: changed by the event loop and by the thread that settles.
        self._names = Lock()

    def write(self, name: str, record: Json) -> None:
        draft = self._folder / f"{name}.draft"
        with open(draft, "w", opener=_private) as file:
            json.dump(record, file)
        with self._names:
            draft.replace(self._new(name))
        self._note(name)

    def remove(self, name: str) -> None:
        with self._names:
            self._settled(name).unlink(missing_ok=True)
            self._new(name).unlink(missing_ok=True)
        self._note(name)

    def read_all(self) -> Iterator[tuple[str, Json]]:
        """Removes what is no record; only the lock's holder may call it."""
        files = sorted(self._folder.iterdir())
        records = {path: found for path in files if (found := _read(path)) is not None}
        for path in files:
            if path not in records:
                logger.error("%s is not a record and is removed", path)
                path.unlink()
        for name in dict.fromkeys(path.stem for path in records):
            if (new := records.get(self._new(name))) is not None:
                self._note(name)
            yield name, new or records[self._settled(name)]

    async def keep(self) -> None:
        """Until it is cancelled; what was written by then is on the disk."""
        try:
            while True:
                await self._changed.wait()
                self._changed = anyio.Event()
                await anyio.sleep(SETTLE_PAUSE)
                await self._settle()
        finally:
            with anyio.CancelScope(shield=True):
                await self._settle()

    def _note(self, name: str) -> None:
        self._unsettled.add(name)
        self._changed.set()

    async def _settle(self) -> None:
        names, self._unsettled = self._unsettled, set()
        if names:
            await anyio.to_thread.run_sync(self._settle_all, names)

    def _settle_all(self, names: set[str]) -> None:
        try:
            for name in names:
                with suppress(FileNotFoundError):  # removed
                    self._settle_one(name)
            with _opened(self._folder) as folder:
                os.fsync(folder)
        except OSError as exc:
            logger.error("records may not be on the disk: %s", exc)

    def _settle_one(self, name: str) -> None:
        with _opened(self._new(name)) as synced:
            os.fsync(synced)
            with self._names:
                if os.path.samestat(os.fstat(synced), self._new(name).stat()):
                    self._new(name).replace(self._settled(name))

    def _new(self, name: str) -> Path:
        return self._folder / f"{name}.new"

    def _settled(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def _read(path: Path) -> Json | None:
    try:
        record = json.loads(path.read_bytes()) if _NAME.fullmatch(path.name) else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and record else None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, mode=0o600)


# A sandbox as JSON and back


def to_record(sandbox: Sandbox) -> Json:
    return {
        "spec": asdict(sandbox.spec),
        "network": asdict(sandbox.network),
        "started_at": sandbox.started_at,
        "end_at": sandbox.end_at,
        "kept_until": sandbox.kept_until,
        "state": sandbox.state,
        "envd_token": sandbox.envd_token,
        "traffic_token": sandbox.traffic_token,
        "idempotency_key": sandbox.idempotency_key,
    }


def from_record(sandbox_id: str, record: Json, options: EngineOptions, now: float) -> Sandbox:
    """The sandbox as it is without its engine: paused, its memory gone.

    Of one that was running, the deadline still stands. KeyError, TypeError or ValueError when
    the record is not one of ours.
    """
    spec = _spec(record["spec"])
    kept_until = float(record["kept_until"])
    if State(record["state"]) is State.RUNNING:
        killed = spec.lifecycle.on_timeout == "kill"
        kept_until = float(record["end_at"]) if killed else now + options.retention
    return Sandbox(
        id=sandbox_id,
        spec=spec,
        home=options.homes_dir / sandbox_id,
        socket_path=options.engine_dir / f"{socket_name(sandbox_id)}.sock",
        network=_network(record["network"]),
        started_at=float(record["started_at"]),
        end_at=float(record["end_at"]),
        kept_until=kept_until,
        state=State.PAUSED,
        pause_mode=PauseMode.FILESYSTEM,
        envd_token=str(record["envd_token"]),
        traffic_token=str(record["traffic_token"]),
        idempotency_key=record["idempotency_key"],
    )


def _spec(record: Json) -> SandboxSpec:
    lifecycle = record["lifecycle"]
    return SandboxSpec(
        template=record["template"],
        timeout=record["timeout"],
        snapshot=record["snapshot"],
        network=_network(record["network"]),
        metadata=record["metadata"],
        public_traffic=record["public_traffic"],
        mask_request_host=record["mask_request_host"],
        env_vars=record["env_vars"],
        lifecycle=Lifecycle(
            on_timeout=lifecycle["on_timeout"],
            pause_mode=PauseMode(lifecycle["pause_mode"]),
            auto_resume=lifecycle["auto_resume"],
        ),
    )


def _network(record: Json) -> NetworkPolicy:
    return NetworkPolicy(
        internet=record["internet"],
        allow_out=tuple(record["allow_out"]),
        deny_out=tuple(record["deny_out"]),
    )
