"""What is known of sandboxes when the engine is gone: one private file for each, beside the homes.

Rules:
- A file is written before its sandbox is answered for and removed before the home is: a home
  without a file is nobody's, whatever happened to the engine.
- A file is complete or absent: it is written beside its place and renamed.
- It holds the sandbox's tokens and variables, so only the engine's user can read it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .egress import NetworkPolicy
from .sandbox import Lifecycle, PauseMode, Sandbox, SandboxSpec, State, socket_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .options import EngineOptions

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9]{1,64}\.json")

Json = dict[str, Any]  # what a file of ours holds


class RecordFolder:
    """Small JSON files by name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, record: Json) -> None:
        draft = self._folder / f"{name}.new"
        with open(draft, "w", opener=_private) as file:
            json.dump(record, file)
        draft.replace(self._folder / f"{name}.json")

    def remove(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def read_all(self) -> Iterator[tuple[str, Json]]:
        """Removes what is no record; only the lock's holder may call it."""
        for path in sorted(self._folder.iterdir()):
            try:
                record = json.loads(path.read_bytes()) if _NAME.fullmatch(path.name) else None
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield path.stem, record
            else:
                logger.error("%s is not a record and is removed", path)
                path.unlink()


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
