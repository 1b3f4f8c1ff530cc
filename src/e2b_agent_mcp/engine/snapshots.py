"""Snapshots: the files of a sandbox at one moment, kept until they are deleted.

Rules:
- A snapshot is complete or absent, also after a power cut: its record is written when its files
  are on the disk, and removed before they are.
- A name and tag mean the newest snapshot that was given them; the one before is removed.
- Files alone are kept. Memory is not, and is refused by name.
"""

from __future__ import annotations

import logging
import re
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from .errors import InvalidRequest, LaunchError, LaunchRefused, SnapshotNotFound
from .homes import copy_home, make_home, settle
from .records import RecordFolder
from .sandbox import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from pathlib import Path

    from .clock import Clock
    from .homes import Removals
    from .host import Host
    from .options import EngineOptions

logger = logging.getLogger(__name__)

NAMESPACE = "local"  # where E2B has the name of a team
DEFAULT_TAG = "default"

_REFERENCE = re.compile(
    r"(?:(?P<namespace>[a-z0-9-]{1,63})/)?"
    r"(?P<name>[a-z0-9][a-z0-9_-]{0,127})(?::(?P<tag>[A-Za-z0-9_.-]{1,127}))?"
)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    id: str
    sandbox_id: str
    created_at: float
    name: str | None = None
    tag: str = DEFAULT_TAG

    @property
    def reference(self) -> str:
        """What a client calls it."""
        return f"{NAMESPACE}/{self.name}:{self.tag}" if self.name else f"{self.id}:{self.tag}"

    def is_meant_by(self, reference: str, *, tag: str | None = None) -> bool:
        """`tag` stands for one that is missing; None: any will do."""
        found = _REFERENCE.fullmatch(reference)
        if found is None or found["namespace"] not in (None, NAMESPACE):
            return False
        wanted = found["tag"] or tag
        return found["name"] in (self.id, self.name) and wanted in (None, self.tag)


class Snapshots:
    def __init__(
        self, options: EngineOptions, host: Host, clock: Clock, removals: Removals
    ) -> None:
        self._folder = options.snapshots_dir
        self._records = RecordFolder(options.snapshot_records_dir)
        self._host = host
        self._clock = clock
        self._removals = removals
        self._snapshots: dict[str, Snapshot] = {}

    def restore(self) -> None:
        """Those of earlier engines; only the lock's holder may call it."""
        for snapshot_id, record in self._records.read_all():
            try:
                snapshot = Snapshot(**record)
            except TypeError:
                logger.exception("the record of snapshot %s is not understood", snapshot_id)
                snapshot = None
            if snapshot is not None and self._home(snapshot_id).is_dir():
                self._snapshots[snapshot_id] = snapshot
            else:
                self._records.remove(snapshot_id)
        for folder in list(self._folder.iterdir()):
            if folder.name not in self._snapshots:
                self._removals.remove(folder)

    async def keep(self) -> None:
        """Until it is cancelled; see `RecordFolder.keep`."""
        await self._records.keep()

    def all(self) -> Collection[Snapshot]:
        return self._snapshots.values()

    def find(self, reference: str) -> Snapshot:
        """Without a tag, the one whose tag is `default`."""
        every = self._snapshots.values()
        meant = [s for s in every if s.is_meant_by(reference, tag=DEFAULT_TAG)]
        if not meant:
            raise SnapshotNotFound(reference)
        return max(meant, key=lambda snapshot: snapshot.created_at)

    def find_all(self, reference: str) -> list[Snapshot]:
        """Without a tag, those of all its tags."""
        meant = [s for s in self._snapshots.values() if s.is_meant_by(reference)]
        if not meant:
            raise SnapshotNotFound(reference)
        return meant

    async def take(self, sandbox_id: str, home: Path, name: str | None) -> Snapshot:
        """Of a home that nobody writes to meanwhile."""
        snapshot = Snapshot(id=new_id("s"), sandbox_id=sandbox_id, created_at=self._clock.now())
        if name is not None:
            snapshot = _named(snapshot, name)
        async with self._filling(self._home(snapshot.id)) as copy:
            await copy_home(home, copy, self._host)
            await settle(copy)
            self._records.write(snapshot.id, asdict(snapshot))
        before = [s for s in self._snapshots.values() if s.reference == snapshot.reference]
        self._snapshots[snapshot.id] = snapshot
        for replaced in before:
            self.delete(replaced)
        return snapshot

    async def fill(self, home: Path, snapshot_id: str) -> None:
        """Makes a new home of a snapshot's files; of one that is deleted meanwhile, none."""
        async with self._filling(home):
            try:
                await copy_home(self._home(snapshot_id), home, self._host)
            except (LaunchError, OSError):
                self._check(snapshot_id)
                raise
            self._check(snapshot_id)

    def _check(self, snapshot_id: str) -> None:
        if snapshot_id not in self._snapshots:
            raise SnapshotNotFound(snapshot_id)

    def delete(self, snapshot: Snapshot) -> None:
        self._snapshots.pop(snapshot.id, None)
        self._records.remove(snapshot.id)
        self._removals.remove(self._home(snapshot.id))

    @asynccontextmanager
    async def _filling(self, target: Path) -> AsyncIterator[Path]:
        """A new home, which is removed again when not all could be written."""
        try:
            make_home(target, self._host.isolation.owner)
            yield target
        except BaseException as exc:
            self._removals.remove(target)
            if isinstance(exc, OSError):
                raise LaunchRefused(f"The files could not be copied: {exc}") from exc
            raise

    def _home(self, snapshot_id: str) -> Path:
        return self._folder / snapshot_id


def _named(snapshot: Snapshot, reference: str) -> Snapshot:
    found = _REFERENCE.fullmatch(reference)
    if found is None or found["namespace"] not in (None, NAMESPACE):
        raise InvalidRequest(
            "The name of a snapshot has small letters, digits, '-' and '_', "
            "and may end with ':' and a tag"
        )
    return replace(snapshot, name=found["name"], tag=found["tag"] or DEFAULT_TAG)
