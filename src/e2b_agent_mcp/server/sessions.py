"""Who calls, and which session a call without one means. Decided once per request.

    transport                         owner            session of a call that names none
    stdio                             user@host        the setting `session`
    HTTP, initialize handshake        token's name     one per MCP session
    HTTP 2026-07-28, token            token's name     the setting `session`
    HTTP 2026-07-28, no token         anonymous        a new one, named in the result

Without a token everybody who reaches the port has the same owner. So a name that the server made
for an anonymous caller is what gives access to the session: it cannot be guessed and is never
listed to anybody else.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS

from e2b_agent_mcp.errors import InvalidArgumentError
from e2b_agent_mcp.pool import SessionKey, is_secret
from e2b_agent_mcp.settings import Settings

ANONYMOUS = "anonymous"

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Caller:
    """Whose request this is; `default` is None when each call without a session gets a new one."""

    owner: str
    default: str | None
    is_local: bool = False  # on stdio: the same user on the same machine

    def key(self, session: str | None) -> SessionKey:
        if session is not None:
            return SessionKey(self.owner, check_name(session))
        return SessionKey(self.owner, self.default or f"s-{secrets.token_hex(16)}")

    def existing_key(self, session: str | None) -> SessionKey:
        """For tools that make no sense in a session that does not exist yet."""
        if session is None and self.default is None:
            raise InvalidArgumentError(
                "session: name the session; this connection has no default one.",
                hint="Earlier results have it in `session`.",
            )
        return self.key(session)

    def reminder(self, name: str) -> str:
        """What a model must be told that would otherwise get a new sandbox with each call."""
        if self.default is not None or not is_secret(name):
            return ""
        return f"Pass session={name!r} to go on in this sandbox; without it you get a new one."

    @property
    def is_anonymous(self) -> bool:
        return self.owner == ANONYMOUS

    def may_see(self, name: str) -> bool:
        return not self.is_anonymous or name == self.default or not is_secret(name)


_caller: ContextVar[Caller] = ContextVar("caller")


def current_caller() -> Caller:
    return _caller.get()


class CallerMiddleware:
    """Makes `current_caller` work in every tool, resource, prompt and completion."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    # Any: the SDK's own types for the lifespan's value and the transport's request.
    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        headers: Mapping[str, str] | None = getattr(ctx.request, "headers", None)
        token = get_access_token()
        reset = _caller.set(
            identify(
                headers,
                token_name=token.client_id if token else None,
                protocol_version=ctx.protocol_version,
                local_owner=self._settings.local_owner,
                default=self._settings.session,
            )
        )
        try:
            return await call_next(ctx)
        finally:
            _caller.reset(reset)


def identify(
    headers: Mapping[str, str] | None,
    *,
    token_name: str | None,
    protocol_version: str,
    local_owner: str,
    default: str,
) -> Caller:
    """The table above. Headers are the client's word: only the SDK's own session id counts, and
    only where the SDK has checked it."""
    if headers is None:
        return Caller(local_owner, default, is_local=True)
    owner = token_name or ANONYMOUS
    mcp_session = headers.get("mcp-session-id")
    if mcp_session and protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
        # Hashed: names are shown, and the id itself lets its holder into the MCP session.
        return Caller(owner, f"s-{hashlib.sha256(mcp_session.encode()).hexdigest()[:32]}")
    return Caller(owner, default if token_name else None)


TASKS = "io.modelcontextprotocol/tasks"  # SEP-2663


def declares_tasks(ctx: ServerRequestContext[Any, Any]) -> bool:
    """Whether the client of this request takes a task for a result, and looks after it."""
    if ctx.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
        return False
    can = ctx.session.client_capabilities
    return can is not None and TASKS in (can.extensions or {})


def check_name(session: str) -> str:
    if not _NAME.fullmatch(session):
        raise InvalidArgumentError(
            f"session: {session[:80]!r} is not a name.",
            hint="Use 1 to 64 letters, digits, '.', '_' or '-', such as 'analysis'.",
        )
    return session
