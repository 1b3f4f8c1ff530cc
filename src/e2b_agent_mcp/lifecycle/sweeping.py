"""Ends the paused sandboxes that nobody wants any more, at first use and once an hour.

Only those that belong to an owner of this process, or that a server of the same user on the same
machine made (`owner` in the settings names that user, also across machines). `pool.superfluous`
decides. Whether the process that made a sandbox still lives is never asked: E2B ends or pauses an
unused sandbox by itself, so what still runs is somebody's or is about to end.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime

import anyio

from e2b_agent_mcp.errors import E2BAgentError
from e2b_agent_mcp.lifecycle.claims import Claims
from e2b_agent_mcp.lifecycle.control import Control
from e2b_agent_mcp.lifecycle.session import Session
from e2b_agent_mcp.pool import Candidate, SessionKey, is_stale, made_by, owned_by, superfluous
from e2b_agent_mcp.settings import Settings

logger = logging.getLogger(__name__)

SWEEP_INTERVAL = 3600.0  # seconds


class Sweeper:
    """Looks after what this process's owners and this user's servers left paused."""

    def __init__(
        self,
        settings: Settings,
        control: Control,
        claims: Claims,
        sessions: Mapping[SessionKey, Session],
    ) -> None:
        self._settings = settings
        self._claims = claims
        self._control = control
        self._sessions = sessions
        self._owners: set[str] = set()
        self._new_owners: list[str] = []
        self._new_owner = anyio.Event()

    def look_after(self, owner: str) -> None:
        if owner not in self._owners:
            self._owners.add(owner)
            self._new_owners.append(owner)
            self._new_owner.set()

    async def sweep(self) -> None:
        """Runs as long as the manager; starts with the first owner."""
        await self._new_owner.wait()
        while True:
            self._new_owners.clear()
            for owner in (None, *sorted(self._owners)):
                await self._try_to_prune(owner)
            with anyio.move_on_after(SWEEP_INTERVAL):
                await self._welcome()

    async def _welcome(self) -> None:
        """Looks once after each owner that is new since the last round."""
        while True:
            while self._new_owners:
                await self._try_to_prune(self._new_owners.pop(0))
            self._new_owner = anyio.Event()
            await self._new_owner.wait()

    async def _try_to_prune(self, owner: str | None) -> None:
        try:
            await self.prune(owner)
        except E2BAgentError as exc:
            logger.warning("paused sandboxes not looked after: %s", exc.message)
        except Exception:
            # No call depends on it, and the next one may succeed.
            logger.warning("paused sandboxes not looked after", exc_info=True)

    async def prune(self, owner: str | None, *, dry_run: bool = False) -> list[Candidate]:
        metadata = made_by(self._settings.local_owner) if owner is None else owned_by(owner)
        listed = await self._claims.resolve(await self._control.find(metadata))
        settings, today = self._settings.sandboxes, datetime.now(UTC)
        unwanted = superfluous(
            listed.claimed, today, retention=settings.retention, max_age=settings.max_age
        )
        # The maker of a warm one no longer extends it, or it would not have paused.
        unused = [item for item in listed.unclaimed if item.paused]
        unknown = [item for item in listed.unknown if is_stale(item, today, settings.retention)]
        ended = [
            item
            for item in (*unwanted, *unused, *unknown)
            if await self._end(item, dry_run=dry_run)
        ]
        if ended and not dry_run:
            logger.info("pruned sandboxes=%s", ",".join(item.sandbox_id for item in ended))
        return ended

    async def _end(self, item: Candidate, *, dry_run: bool) -> bool:
        session = self._sessions.get(item.key)
        turn = session.turn if session is not None else anyio.Lock()
        if turn.locked():
            return False  # a call is about to resume it
        async with turn:
            if dry_run:
                return True
            # Another server, or a call of ours, may have resumed it since it was listed.
            found = await self._control.inspect(item.sandbox_id)
            return found is not None and found.paused and await self._control.kill(found.sandbox_id)
