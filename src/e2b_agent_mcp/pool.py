"""Which sandbox serves which session. Pure: no I/O, the time is passed in.

The rule: E2B is the registry. What ties a sandbox to a session is the metadata it was created with,
so any process with the same E2B can find it again; what this process remembers is only a shortcut.
"""

from typing import Literal, NamedTuple

SandboxState = Literal["created", "reused", "resumed", "recreated"]


class SessionKey(NamedTuple):
    """A session: `owner` is who may use it, `name` is what the caller calls it."""

    owner: str
    name: str
