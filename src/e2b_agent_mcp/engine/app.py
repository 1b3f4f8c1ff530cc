"""The front door: decides whether a request is for the control plane or for a sandbox.

Rule: a web page must not reach through it. The port is on loopback, so the only callers that
are not this host's programs are browsers: a page's request carries its own host name (DNS
rebinding) or none of our keys, and no answer ever allows another origin.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Self

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response

from .api import create_api, error
from .guest.tunnel import refuse
from .options import LOOPBACK_HOSTS
from .router import SANDBOX_HOST, Router, scope_of, target_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import h11
    from starlette.types import Receive, Scope, Send

    from .guest.tunnel import Connection
    from .orchestrator import Orchestrator

HEALTH_PATH = "/health"
SHUTDOWN_PATH = "/shutdown"
SANDBOX_PATHS = ("/sandboxes/", "/v2/sandboxes/")
LONGEST_CHALLENGE = 128


class FrontDoor:
    """The engine's ASGI application."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        *,
        api_key: str,
        domain: str,
        shutdown: Callable[[], None],
    ) -> None:
        self._orchestrator = orchestrator
        self._api_key = api_key
        self._shutdown = shutdown
        self._api = create_api(orchestrator, domain)
        self._router = Router(orchestrator)
        self._closed = False
        self.in_flight = 0
        self.last_request = orchestrator.clock.now()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """From here on every request is refused; the sandboxes are about to end."""
        self._closed = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.in_flight += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.in_flight -= 1
            self.last_request = self._orchestrator.clock.now()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self._closed:
            await error(503, "The engine is ending")(scope, receive, send)
        elif not _host_allowed(headers.get("host", "")):
            await error(403, "This host name is not served")(scope, receive, send)
        elif (target := target_of(scope)) and not self._is_control(scope, headers):
            await self._router(scope, receive, send, target)
        elif scope["path"] == HEALTH_PATH:
            await self._health(scope)(scope, receive, send)
        elif not _same(headers.get("x-api-key"), self._api_key):
            await error(401, "The API key is missing or wrong")(scope, receive, send)
        elif scope["path"] == SHUTDOWN_PATH and scope["method"] == "POST":
            await self._end(scope)(scope, receive, send)
        else:
            await self._api(scope, receive, send)

    async def tunnel(self, request: h11.Request, client: Connection) -> None:
        """An upgraded connection, which leads to a port of a sandbox or nowhere."""
        scope = scope_of(request)
        target = target_of(scope)
        if (
            self._closed
            or target is None
            or not _host_allowed(Headers(scope=scope).get("host", ""))
        ):
            await refuse(client, 404, {"code": 404, "message": "There is nothing to upgrade to"})
            return
        self.in_flight += 1
        try:
            await self._router.tunnel(request, scope, client, target)
        finally:
            self.in_flight -= 1
            self.last_request = self._orchestrator.clock.now()

    def _is_control(self, scope: Scope, headers: Headers) -> bool:
        """Older SDKs name the sandbox, as if to be led to it, when they connect to it."""
        return scope["path"].startswith(SANDBOX_PATHS) and _same(
            headers.get("x-api-key"), self._api_key
        )

    def _health(self, scope: Scope) -> Response:
        """Proves to who knows the key that this is the engine, without hearing the key."""
        challenge = QueryParams(scope["query_string"]).get("challenge", "")[:LONGEST_CHALLENGE]
        return JSONResponse({"proof": proof(self._api_key, challenge)} if challenge else {})

    def _end(self, scope: Scope) -> Response:
        if QueryParams(scope["query_string"]).get("if") == "idle" and self._orchestrator.busy:
            return error(409, "The engine has sandboxes")
        self._shutdown()
        return Response(status_code=204)


def proof(api_key: str, challenge: str) -> str:
    return hmac.new(api_key.encode(), challenge.encode(), hashlib.sha256).hexdigest()


def _host_allowed(host: str) -> bool:
    if SANDBOX_HOST.match(host):
        return True
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    return name.strip("[]") in LOOPBACK_HOSTS


def _same(given: str | None, expected: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), expected.encode())
