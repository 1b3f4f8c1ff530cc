"""Which sandbox serves which session. Pure: no I/O, the time is passed in.

`registry` reads what E2B knows, `slots` what this process knows beside it, `words` tells a model
what was lost.
"""

from e2b_agent_mcp.pool.registry import (
    DUPLICATE_GRACE,
    RACE,
    WARM,
    Candidate,
    Maker,
    SandboxState,
    SessionKey,
    by_session,
    check_key,
    choose,
    creation_of,
    is_secret,
    is_stale,
    made_by,
    new_metadata,
    of_session,
    owned_by,
    scope_of,
    superfluous,
)
from e2b_agent_mcp.pool.slots import FORGET_AFTER, Pool, Shortage, Slot
from e2b_agent_mcp.pool.terms import Terms
from e2b_agent_mcp.pool.words import (
    EXPLAIN_AGED,
    EXPLAIN_CRASH,
    EXPLAIN_REBOOTED,
    EXPLAIN_REPLACED,
    EXPLAIN_RESTARTED,
    EXPLAIN_RESTARTED_ELSEWHERE,
    EXPLAIN_STUCK,
    expired,
)

__all__ = [
    "DUPLICATE_GRACE",
    "EXPLAIN_AGED",
    "EXPLAIN_CRASH",
    "EXPLAIN_REBOOTED",
    "EXPLAIN_REPLACED",
    "EXPLAIN_RESTARTED",
    "EXPLAIN_RESTARTED_ELSEWHERE",
    "EXPLAIN_STUCK",
    "FORGET_AFTER",
    "RACE",
    "WARM",
    "Candidate",
    "Maker",
    "Pool",
    "SandboxState",
    "SessionKey",
    "Shortage",
    "Slot",
    "Terms",
    "by_session",
    "check_key",
    "choose",
    "creation_of",
    "expired",
    "is_secret",
    "is_stale",
    "made_by",
    "new_metadata",
    "of_session",
    "owned_by",
    "scope_of",
    "superfluous",
]
