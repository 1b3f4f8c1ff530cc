"""The data plane: carries a client's request into the sandbox it names, and the answer back.

Rules:
- The sandbox and its port come from headers, else from the host name `{port}-{id}.…`, else
  (a signed file URL names neither) from the signature. Every request proves that it may enter;
  for a port of the user's own, knowing the sandbox's id is proof enough, unless it was created
  with `allow_public_traffic` false.
- Bytes only: bodies stream in both directions, each waits for the slower side, none is kept.
- When the client goes, the guest's connection closes at once. When the guest breaks off, the
  client's connection is aborted: an answer that was cut never looks complete.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.parse
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import anyio
import h11
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from .api import error
from .connection import (
    ENVD_PORT,
    INTERPRETER_PORT,
    GuestConnection,
    GuestGone,
    GuestRefuses,
    connect,
)
from .errors import Refusal, SandboxNotFound
from .guest.tunnel import Connection, refuse
from .sandbox import Operation, PauseMode, Sandbox, State
from .tunnel import carry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.types import Receive, Scope, Send

    from .orchestrator import Orchestrator

SANDBOX_HOST = re.compile(r"(\d{1,5})-([a-z0-9]+)\.")
FILES_PATH = "/files"
HIGHEST_PORT = 65535
OPERATIONS: Mapping[str, Operation] = {"GET": "read", "HEAD": "read", "POST": "write"}

MAX_PARTS = 64  # of a body that travel together

# Ours alone: the orchestrator speaks to the guest past the router.
HOST_ONLY_PATHS = ("/init",)

# Between two neighbours, never passed on (RFC 9110, 7.6.1), and what proved the right to enter.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade".split()
)
_CREDENTIALS = frozenset(b"x-api-key x-access-token e2b-traffic-access-token".split())
_NOT_FOR_THE_GUEST = (
    _HOP_BY_HOP | _CREDENTIALS | {b"expect", b"e2b-sandbox-id", b"e2b-sandbox-port"}
)


class Target(NamedTuple):
    sandbox_id: str | None  # None: the signature of a file URL tells
    port: int


def target_of(scope: Scope) -> Target | None:
    """Where a request wants to go; `None`: it is meant for the control plane."""
    headers = Headers(scope=scope)
    if (sandbox_id := headers.get("e2b-sandbox-id")) is not None:
        return Target(sandbox_id, _port(headers.get("e2b-sandbox-port", str(ENVD_PORT))))
    if match := SANDBOX_HOST.match(headers.get("host", "")):
        return Target(match[2], _port(match[1]))
    if scope["path"] == FILES_PATH:
        return Target(None, ENVD_PORT)
    return None


class Router:
    def __init__(self, orchestrator: Orchestrator) -> None:
        self._orchestrator = orchestrator

    async def __call__(self, scope: Scope, receive: Receive, send: Send, target: Target) -> None:
        entry = _Entry.of(scope, target.port)
        try:
            sandbox = self._admit(target, entry)
            if isinstance(sandbox, Sandbox):
                refusal = await self._forward(sandbox, entry, scope, receive, send)
            else:
                refusal = sandbox
        except SandboxNotFound as exc:
            refusal = not_found(target.sandbox_id or "", exc.reason)
        if refusal is not None:
            await refusal(scope, receive, send)

    def _admit(self, target: Target, entry: _Entry) -> Sandbox | JSONResponse:
        """The sandbox that this request may enter, or the answer that refuses it."""
        if target.sandbox_id is None:
            for sandbox in self._orchestrator.sandboxes():
                if entry.signed_by(sandbox):
                    return entry.expired() or sandbox
            return _unauthorized()
        sandbox = self._orchestrator.find(target.sandbox_id)
        if entry.path in HOST_ONLY_PATHS and target.port == ENVD_PORT:
            return error(403, f"{entry.path} is not open to clients")
        if entry.may_enter(sandbox):
            return sandbox
        if entry.signed_by(sandbox):
            return entry.expired() or sandbox
        return _unauthorized() if entry.port == ENVD_PORT else _forbidden(sandbox.id)

    async def _awaken(self, sandbox: Sandbox) -> JSONResponse | None:
        """Sees to it that the sandbox runs, or says why it does not."""
        if sandbox.state is State.RUNNING:
            return None
        if not sandbox.spec.lifecycle.auto_resume or sandbox.pause_mode is not PauseMode.FULL:
            return not_found(sandbox.id)
        try:
            await self._orchestrator.wake(sandbox)
        except SandboxNotFound:
            raise
        except Refusal as exc:
            return _bad_gateway(sandbox.id, exc.message)
        return None

    async def tunnel(
        self, request: h11.Request, scope: Scope, client: Connection, target: Target
    ) -> None:
        entry = _Entry.of(scope, target.port)
        try:
            sandbox = self._admit(target, entry)
            refusal = sandbox if isinstance(sandbox, JSONResponse) else await self._awaken(sandbox)
        except SandboxNotFound as exc:
            refusal = not_found(target.sandbox_id or "", exc.reason)
        if refusal is not None:
            await refuse(client, refusal.status_code, json.loads(bytes(refusal.body)))
            return
        assert isinstance(sandbox, Sandbox)
        with sandbox.exchange():
            guest = Connection(*await asyncio.open_unix_connection(sandbox.socket_path))
            try:
                await carry(client, guest, _upgrade_head(request, sandbox, target.port))
            finally:
                guest.writer.close()

    async def _forward(
        self, sandbox: Sandbox, entry: _Entry, scope: Scope, receive: Receive, send: Send
    ) -> JSONResponse | None:
        if (refusal := await self._awaken(sandbox)) is not None:
            return refusal
        passage = _Passage(sandbox, scope, receive, send)
        with sandbox.exchange():
            try:
                async with connect(sandbox.socket_path) as guest:
                    await passage.run(guest, entry.port)
            except GuestRefuses:
                if sandbox.machine is not None:
                    sandbox.machine.box.kill()
            except GuestGone:
                pass
        if passage.finished or passage.client_gone or passage.answering:
            # Returning in the middle of an answer makes the server abort the connection.
            return None
        if sandbox.machine is None or sandbox.state is State.PAUSED:
            # Not "was not found": the guest may have the request, so nobody may send it again.
            return _bad_gateway(sandbox.id, "The sandbox was killed or paused before it answered")
        return _bad_gateway(sandbox.id, "The sandbox closed the connection before it answered")


@dataclass(frozen=True)
class _Entry:
    """What a request shows to be let in."""

    method: str
    path: str
    query: Mapping[str, str]
    port: int
    envd_token: str | None
    traffic_token: str | None

    @classmethod
    def of(cls, scope: Scope, port: int) -> _Entry:
        headers = Headers(scope=scope)
        query = urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"))
        return cls(
            method=scope["method"],
            path=scope["path"],
            query=dict(query),
            port=port,
            envd_token=headers.get("x-access-token"),
            traffic_token=headers.get("e2b-traffic-access-token"),
        )

    def may_enter(self, sandbox: Sandbox) -> bool:
        if sandbox.accepts_envd(self.envd_token):
            return True
        if self.port == ENVD_PORT:
            return False
        public = self.port != INTERPRETER_PORT and sandbox.spec.public_traffic is not False
        return public or sandbox.accepts_traffic(self.traffic_token)

    def signed_by(self, sandbox: Sandbox) -> bool:
        operation = OPERATIONS.get(self.method)
        given = self.query.get("signature")
        if given is None or operation is None:
            return False
        if self.path != FILES_PATH or self.port != ENVD_PORT:
            return False
        return sandbox.signed(
            given,
            self.query.get("path", ""),
            operation,
            self.query.get("username", ""),
            self.query.get("signature_expiration"),
        )

    def expired(self) -> JSONResponse | None:
        """Asked once the signature, which covers the expiration, has been found good."""
        expiration = self.query.get("signature_expiration")
        if expiration is None or (expiration.isdecimal() and float(expiration) >= time.time()):
            return None
        return error(401, "signature is already expired")


class _Passage:
    """One request on its way in and its answer on the way out."""

    def __init__(self, sandbox: Sandbox, scope: Scope, receive: Receive, send: Send) -> None:
        self._sandbox = sandbox
        self._scope = scope
        self._receive = receive
        self._send = send
        self.answering = False
        self.finished = False
        self.client_gone = False

    async def run(self, guest: GuestConnection, port: int) -> None:
        await guest.send(_request_head(self._scope, self._sandbox, port))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._carry_in, guest, tasks.cancel_scope)
            with suppress(GuestGone):
                await self._carry_out(guest)
            tasks.cancel_scope.cancel()

    async def _carry_in(self, guest: GuestConnection, passage: anyio.CancelScope) -> None:
        """Carries the body, then watches for the client's leaving."""
        takes_body = True
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.client_gone = True
                passage.cancel()
                return
            if not takes_body:
                continue
            try:
                if body := message.get("body"):
                    await guest.send(h11.Data(data=body))
                if not message.get("more_body", False):
                    await guest.send(h11.EndOfMessage())
            except (GuestGone, h11.LocalProtocolError):
                # A guest may answer without reading the body; the answer still counts.
                takes_body = False

    async def _carry_out(self, guest: GuestConnection) -> None:
        while not self.finished:
            event = await guest.next_event()
            if isinstance(event, h11.Response):
                self.answering = True
                await self._send(_answer_head(event))
            else:
                body, ended = _gather(guest, event)
                message = {"type": "http.response.body", "body": body, "more_body": not ended}
                await self._send(message)
                self.finished = ended


def _gather(guest: GuestConnection, first: h11.Data | h11.EndOfMessage) -> tuple[bytes, bool]:
    """What has arrived of a body, and whether that is its end: small parts travel together."""
    parts: list[bytes] = []
    event: h11.Data | h11.EndOfMessage | None = first
    while isinstance(event, h11.Data):
        parts.append(event.data)
        event = guest.arrived() if len(parts) < MAX_PARTS else None
    return b"".join(parts), event is not None


def not_found(sandbox_id: str, reason: str = "") -> JSONResponse:
    """The SDKs recognize a sandbox that is gone or paused by this very message."""
    killed = f": killed: {reason}" if reason else ""
    return _bad_gateway(sandbox_id, f"The sandbox was not found{killed}")


def _bad_gateway(sandbox_id: str, message: str) -> JSONResponse:
    return JSONResponse({"sandboxId": sandbox_id, "message": message, "code": 502}, 502)


def _unauthorized() -> JSONResponse:
    return error(401, "The access token or signature of the sandbox is missing or wrong")


def _forbidden(sandbox_id: str) -> JSONResponse:
    message = "The traffic access token of the sandbox is missing or wrong"
    return JSONResponse({"sandboxId": sandbox_id, "message": message, "code": 403}, 403)


def scope_of(request: h11.Request) -> Scope:
    """As uvicorn makes one, of what is needed here."""
    raw_path, _, query_string = request.target.partition(b"?")
    return {
        "type": "http",
        "method": request.method.decode("ascii"),
        "path": urllib.parse.unquote(raw_path.decode("ascii")),
        "raw_path": raw_path,
        "query_string": query_string,
        "headers": list(request.headers),
    }


def _upgrade_head(request: h11.Request, sandbox: Sandbox, port: int) -> h11.Request:
    upgrade = [(k, v) for k, v in request.headers if k in (b"connection", b"upgrade")]
    headers = _headers_for_guest(request.headers, sandbox, port) + upgrade
    return h11.Request(method=request.method, target=request.target, headers=headers)


def _headers_for_guest(
    headers: Iterable[tuple[bytes, bytes]], sandbox: Sandbox, port: int
) -> list[tuple[bytes, bytes]]:
    kept = [(k, v) for k, v in headers if k not in _NOT_FOR_THE_GUEST]
    if mask := sandbox.spec.mask_request_host:
        host = mask.replace("${PORT}", str(port)).encode()
        kept = [(k, host if k == b"host" else v) for k, v in kept]
    named = (b"e2b-sandbox-id", sandbox.id.encode()), (b"e2b-sandbox-port", str(port).encode())
    return [*kept, *named]


def _request_head(scope: Scope, sandbox: Sandbox, port: int) -> h11.Request:
    headers = _headers_for_guest(scope["headers"], sandbox, port)
    if any(k == b"transfer-encoding" for k, _ in scope["headers"]):
        headers.append((b"transfer-encoding", b"chunked"))
    headers.append((b"connection", b"close"))
    target = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    return h11.Request(method=scope["method"], target=target, headers=headers)


def _answer_head(event: h11.Response) -> dict[str, object]:
    headers: Iterable[tuple[bytes, bytes]] = event.headers
    return {
        "type": "http.response.start",
        "status": event.status_code,
        "headers": [(k, v) for k, v in headers if k not in _HOP_BY_HOP],
    }


def _port(text: str) -> int:
    """0, where nobody can listen, for what is no port."""
    port = int(text) if text.isdecimal() and len(text) <= 5 else 0
    return port if port <= HIGHEST_PORT else 0
