"""Which session a warm sandbox serves.

A warm sandbox was made before anybody asked for one, so its metadata names its owner and no
session, and metadata cannot be changed. The claim is a note in the sandbox itself, written before
the session uses it and signed with the E2B key over the sandbox's id: whoever shares the account
can read and trust it, code in a sandbox can neither make one nor carry it to another sandbox.

Who claims: only the process that made the sandbox, which hands each of its own to one session.
A crash before the note leaves a sandbox that nobody has used, a crash after it a session's sandbox
like any other. Two servers that claim for one session at once both write, then look; whoever sees
another sandbox of the session gives way, so never do both keep theirs. A note is read once per
process: what it says never changes.
"""

import hashlib
import hmac
import json
import logging
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import anyio

from e2b_agent_mcp.errors import (
    AuthenticationError,
    InvalidArgumentError,
    NotFoundError,
    RateLimitError,
    SandboxError,
    SandboxLostError,
    SandboxTimeoutError,
    SandboxUnavailableError,
)
from e2b_agent_mcp.lifecycle.control import Control, bounded
from e2b_agent_mcp.pool import Candidate, Maker, SessionKey

if TYPE_CHECKING:
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox

logger = logging.getLogger(__name__)

NOTE = "/home/user/.e2b-agent-mcp-session"
NOTED = ("session", "generation", "claimed")
LONGEST_NOTE = 4096  # bytes; the code in the sandbox may have written it
NOTE_LIMIT = 10.0  # seconds to read or write one
LEAVE_LIMIT = 1.0  # seconds

# After these nobody knows what the sandbox would have answered, or that it has ended.
_NOT_ASKED = (
    *(AuthenticationError, RateLimitError, SandboxLostError),
    *(SandboxTimeoutError, SandboxUnavailableError),
)


class Found(NamedTuple):
    """Sandboxes as E2B lists them: with their sessions, and warm ones that no session has."""

    claimed: list[Candidate]
    unclaimed: list[Candidate]
    unknown: list[Candidate]  # with a note that is not to be trusted: left alone


class Claims:
    """Writes, finds and remembers the notes."""

    def __init__(self, control: Control, maker: Maker) -> None:
        self._control = control
        self._maker = maker
        self._unsure: set[str] = set()  # own ones, where a note may be or not
        self._known: dict[str, dict[str, str] | None] = {}  # None: a note that is not to be trusted
        # Protects a paused sandbox that one call reads from being paused again by another.
        self._reading = anyio.Lock()

    async def write(self, handle: "AsyncSandbox", key: SessionKey, generation: int) -> None:
        note = {
            "session": key.name,
            "generation": str(generation),
            "claimed": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = json.dumps({**note, "signature": self._sign(handle.sandbox_id, note)})
        self._unsure.add(handle.sandbox_id)
        await bounded("claiming a sandbox", NOTE_LIMIT, lambda: handle.files.write(NOTE, text))
        self._known[handle.sandbox_id] = note

    async def resolve(self, listed: Iterable[Candidate]) -> Found:
        """Asks only warm sandboxes that were not asked before; a paused one runs as long as that
        takes.

        Raises when one cannot be asked: it may be the very one that a session looks for.
        """
        found = Found([], [], [])
        for item in listed:
            if not item.is_warm:
                found.claimed.append(item)
                continue
            if self._maker.made(item) and item.sandbox_id not in self._unsure:
                found.unclaimed.append(item)  # nobody else claims it
                continue
            try:
                async with self._reading:
                    note = await self._read(item)
            except NotFoundError:
                found.unclaimed.append(item)
            except SandboxLostError:
                logger.info("ended unasked sandbox=%s", item.sandbox_id)
            else:
                if note is None:
                    found.unknown.append(item)
                else:
                    found.claimed.append(replace(item, metadata={**item.metadata, **note}))
        return found

    async def _read(self, item: Candidate) -> dict[str, str] | None:
        if item.sandbox_id in self._known:
            return self._known[item.sandbox_id]
        try:
            text = await self._ask(item)
        except (SandboxUnavailableError, SandboxTimeoutError):
            # It cannot answer any more if it ended, or was paused, since it was listed.
            now = await self._control.inspect(item.sandbox_id)
            if now is not None and now.paused == item.paused:
                raise
            if now is None:
                raise SandboxLostError("The sandbox has ended.") from None
            text = await self._ask(now)
        note = self._known[item.sandbox_id] = self._trusted(item.sandbox_id, text)
        return note

    async def _ask(self, item: Candidate) -> bytes:
        try:
            handle = await self._control.open(
                item.sandbox_id, paused=item.paused, extend=item.paused
            )
            text = await _text(handle)
        except BaseException:
            with anyio.move_on_after(LEAVE_LIMIT, shield=True):
                await self._leave(item)
            raise
        await self._leave(item)
        return text

    async def _leave(self, item: Candidate) -> None:
        """Looking changes nothing: one that was paused and was left running would end soon."""
        if item.paused:
            await self._control.pause(item.sandbox_id)
            return
        now = await self._control.inspect(item.sandbox_id)
        if now is not None and not now.paused and now.end_at < item.end_at:
            # It was paused since it was listed, and connecting to it resumed it.
            await self._control.extend(item.sandbox_id)

    def _trusted(self, sandbox_id: str, text: bytes) -> dict[str, str] | None:
        try:
            read = json.loads(text)
            note = {name: str(read[name]) for name in NOTED}
            signature = str(read["signature"]).encode()
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return (
            note if hmac.compare_digest(signature, self._sign(sandbox_id, note).encode()) else None
        )

    def _sign(self, sandbox_id: str, note: dict[str, str]) -> str:
        said = json.dumps(["claim", sandbox_id, *(note[name] for name in NOTED)])
        return hmac.new(self._control.secret, said.encode(), hashlib.sha256).hexdigest()


async def _text(handle: "AsyncSandbox") -> bytes:
    """What is in the note's place; nothing if that is something else, such as a folder."""
    doing = "reading a claim"
    try:
        text = await bounded(doing, NOTE_LIMIT, lambda: _beginning(handle))
        if text.lstrip().startswith(b"<"):
            info = await bounded(doing, NOTE_LIMIT, lambda: handle.files.get_info(NOTE))
            if info.size != len(text):
                raise SandboxUnavailableError(
                    f"A gateway or proxy before E2B failed while {doing}: it answered itself.",
                    hint="Wait a moment and try again; check E2B_API_URL and HTTPS_PROXY.",
                )
    except (InvalidArgumentError, SandboxError) as exc:
        if isinstance(exc, _NOT_ASKED):
            raise
        return b""
    return text


async def _beginning(handle: "AsyncSandbox") -> bytes:
    """All of a note, and of anything longer not enough to do harm."""
    reader = await handle.files.read(NOTE, format="stream")
    read = b""
    async with reader:
        async for piece in reader:
            read += piece
            if len(read) > LONGEST_NOTE:
                break
    return read[:LONGEST_NOTE]
