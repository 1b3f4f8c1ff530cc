"""What happens to sandboxes, told as it happens: the one seam for the log, the ledger, telemetry.

Contract: whoever causes a transition, or is the first to notice it, tells it once, when it has
happened. `Control` tells what it had E2B do, `Session` a loss, the manager leases and adoptions,
`Lease` runs. Observers are called in the event loop at once and in their order: they neither wait
nor raise.

A transition carries ids, numbers and words of ours; never code, output, keys or file names.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from e2b_agent_mcp.pool import Candidate, SessionKey

logger = logging.getLogger(__name__)

Kind = Literal[
    "creating",  # about to be asked for; then `created` or `not_created`
    "created",
    "not_created",
    "connected",
    "resumed",
    "seen",  # in an answer of E2B's; `key` when it is all that a session, or an owner, has
    "adopted",  # taken over from another process, or claimed by a session
    "extended",
    "paused",
    "gone",  # not running, in an answer of E2B's; whoever loses it by that tells so
    "lost",
    "killed",
    "leased",
    "released",
    "run_started",
    "run_ended",
]
ANSWERS = ("seen", "gone")  # tell what is so, not what happens
SHOWN_NAME = 16  # characters of a session's name


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One thing that happened; what does not belong to its kind is left empty. Seconds."""

    kind: Kind
    sandbox_id: str = ""
    key: SessionKey | None = None
    creation: str = ""  # of a sandbox to be created: `pool.creation_of` its metadata
    life: float | None = None  # granted by E2B, from now on
    took: float | None = None
    outcome: str = ""  # a lease's sandbox state, a run's status, an error's code, why it ended
    candidates: tuple[Candidate, ...] = ()  # as E2B has them now


Observer = Callable[[Transition], None]


class Transitions:
    """Passes each transition on to every observer; the log is always one."""

    def __init__(
        self, *observers: Observer, settle: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._observers = (write_log, *observers)
        self._settle = settle

    async def settle(self) -> None:
        """Waits until what was told is on disk: before a request that a crash could hide."""
        if self._settle is not None:
            await self._settle()

    def tell(
        self,
        kind: Kind,
        sandbox_id: str = "",
        *,
        key: SessionKey | None = None,
        creation: str = "",
        life: float | None = None,
        took: float | None = None,
        outcome: str = "",
        candidates: tuple[Candidate, ...] = (),
    ) -> None:
        transition = Transition(
            kind=kind,
            sandbox_id=sandbox_id,
            key=key,
            creation=creation,
            life=life,
            took=took,
            outcome=outcome,
            candidates=candidates,
        )
        for observer in self._observers:
            observer(transition)


def write_log(transition: Transition) -> None:
    level = logging.DEBUG if transition.kind in ANSWERS else logging.INFO
    if logger.isEnabledFor(level):
        logger.log(level, "%s", " ".join([transition.kind, *_fields(transition)]))


def _fields(transition: Transition) -> Iterator[str]:
    """`name=value` of what the transition has, as log collectors split it."""
    if transition.sandbox_id:
        yield f"sandbox={transition.sandbox_id}"
    if transition.candidates:
        yield f"sandboxes={','.join(item.sandbox_id for item in transition.candidates)}"
    if transition.key is not None:
        yield f"owner={_value(transition.key.owner)}"
        yield f"session={_value(shown(transition.key.name))}"
    for name in ("creation", "outcome"):
        if text := getattr(transition, name):
            yield f"{name}={_value(text)}"
    if transition.life is not None:
        yield f"life={transition.life:g}"
    if transition.took is not None:
        yield f"took={transition.took:.3f}"


def shown(name: str) -> str:
    """A session's name for logs and traces: to know the whole of a name that the server made for
    an anonymous caller is to be allowed to use the session."""
    return name if len(name) <= SHOWN_NAME else f"{name[:SHOWN_NAME]}…"


def _value(text: str) -> str:
    return text if text.isascii() and not set(text) & set(' ="\\') else json.dumps(text)
