"""What the leases of one session share, one after the other."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import anyio

from e2b_agent_mcp.lifecycle.transitions import Transitions
from e2b_agent_mcp.pool import SessionKey, Slot

if TYPE_CHECKING:
    from e2b_code_interpreter.code_interpreter_async import AsyncSandbox


class Stamp(NamedTuple):
    """By which a changed file is told."""

    size: int
    modified_at: datetime


@dataclass(eq=False, kw_only=True)
class Session:
    """One session of this process."""

    key: SessionKey
    slot: Slot
    transitions: Transitions
    handle: "AsyncSandbox | None" = None
    # Serves the session's calls in the order of their arrival.
    turn: anyio.Lock = field(default_factory=anyio.Lock)
    unsettled: bool = False  # code may still be running from a call that is over
    resumed: bool = False  # and nobody has looked whether its memory came back
    executions: int = 0  # the interpreter's own count, when it last told us
    baseline: Mapping[str, Stamp] | None = None  # files when we looked last
    installed: set[str] = field(default_factory=set)
    untold: str = ""  # what was lost, until a call that is answered has told it

    def lose(self, sandbox_id: str, why: str) -> None:
        self.transitions.tell("lost", sandbox_id, key=self.key)
        self.slot.lose(sandbox_id, why)
        self.clear()

    def clear(self) -> None:
        """Forgets what was true of the sandbox that is gone."""
        self.handle = None
        self.unsettled = self.resumed = False
        self.executions = 0
        self.baseline = None
        self.installed.clear()
        self.untold = ""
