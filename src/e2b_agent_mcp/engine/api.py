"""The control plane: E2B's REST API for sandboxes, as its SDKs call it.

Rule: every answer that is not a success is JSON `{"code", "message"}`; the SDKs crash on
anything else. What this engine does not offer is refused by name, never ignored.
"""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .egress import NetworkPolicy
from .errors import Busy, InvalidRequest, NotSupported, Refusal, SnapshotNotFound, TemplateNotFound
from .reading import (
    Json,
    flag,
    host_name,
    lifecycle_of,
    metadata_filter,
    moment,
    number,
    object_of,
    page_size,
    read_body,
    rules,
    said,
    string_map,
)
from .sandbox import (
    ENVD_VERSION,
    TEMPLATES,
    PauseMode,
    Sandbox,
    SandboxSpec,
    State,
)

if TYPE_CHECKING:
    from .orchestrator import Orchestrator
    from .snapshots import Snapshot

DEFAULT_TIMEOUT = 300  # seconds, as in E2B's SDKs
CLIENT_ID = "e2b-agent-mcp"
IDEMPOTENCY_KEY_LENGTH = 255

Answer = Callable[[Request], Awaitable[Response]]


def create_api(orchestrator: Orchestrator, domain: str) -> Starlette:
    """The ASGI application; the front door has checked the API key.

    `domain` is what SDKs put behind `{port}-{id}.` to name a port of a sandbox.
    """
    api = ControlPlane(orchestrator, domain)
    routes = [
        *_both("/sandboxes", api.create, "POST"),
        Route("/v2/sandboxes", api.list_page, methods=["GET"]),
        Route("/sandboxes", api.list_running, methods=["GET"]),
        Route("/sandboxes/{id}", api.get, methods=["GET"]),
        Route("/sandboxes/{id}", api.kill, methods=["DELETE"]),
        *_both("/sandboxes/{id}/connect", api.connect, "POST"),
        Route("/sandboxes/{id}/resume", api.resume, methods=["POST"]),
        Route("/sandboxes/{id}/pause", api.pause, methods=["POST"]),
        Route("/sandboxes/{id}/timeout", api.set_timeout, methods=["POST"]),
        Route("/sandboxes/{id}/refreshes", api.refresh, methods=["POST"]),
        Route("/sandboxes/{id}/network", api.set_network, methods=["PUT"]),
        Route("/sandboxes/{id}/metrics", api.metrics, methods=["GET"]),
        Route("/sandboxes/{id}/snapshots", api.take_snapshot, methods=["POST"]),
        Route("/sandboxes/{id}/fork", api.fork, methods=["POST"]),
        Route("/snapshots", api.list_snapshots, methods=["GET"]),
        Route("/templates/{reference:path}", api.delete_snapshot, methods=["DELETE"]),
        *(_absent(path, what) for path, what in _ABSENT),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={Refusal: _refusal, HTTPException: _http_error, Exception: _crash},
    )
    app.router.redirect_slashes = False  # a redirect is no JSON
    return app


_ABSENT = (
    ("/sandboxes/{id}/logs", "Sandbox logs"),
    ("/templates", "Building templates"),
    ("/templates/{rest:path}", "Building templates"),
    ("/v2/templates{rest:path}", "Building templates"),
    ("/v3/templates{rest:path}", "Building templates"),
    ("/volumes{rest:path}", "Volumes"),
    ("/secrets{rest:path}", "Secrets"),
)


class ControlPlane:
    """One method per call; each parses, asks the orchestrator, and words the answer."""

    def __init__(self, orchestrator: Orchestrator, domain: str) -> None:
        self._orchestrator = orchestrator
        self._domain = domain

    async def create(self, request: Request) -> Response:
        body = await read_body(request)
        spec = self._spec(body)
        key = request.headers.get("idempotency-key")
        if key is not None and not 0 < len(key) <= IDEMPOTENCY_KEY_LENGTH:
            raise InvalidRequest("Idempotency-Key must have 1 to 255 characters")
        sandbox = await self._orchestrator.create(spec, idempotency_key=key)
        return JSONResponse(self._created(sandbox), 201)

    def _spec(self, body: Json) -> SandboxSpec:
        for name in ("mcp", "iam", "volumeMounts"):
            if body.get(name):
                raise NotSupported(f"{name} is not supported by the embedded engine")
        template, snapshot = self._origin(str(body.get("templateID") or TEMPLATES[0]))
        network = object_of(body, "network")
        return SandboxSpec(
            template=template,
            timeout=self._timeout(body),
            snapshot=snapshot,
            network=self._network(network, body),
            metadata=string_map(body, "metadata"),
            env_vars=string_map(body, "envVars"),
            lifecycle=lifecycle_of(body),
            public_traffic=said(network, "allowPublicTraffic"),
            mask_request_host=host_name(network, "maskRequestHost"),
        )

    def _origin(self, asked: str) -> tuple[str, str | None]:
        """The template as it is listed, and the snapshot that it is."""
        if asked in TEMPLATES:
            return asked, None
        try:
            snapshot = self._orchestrator.snapshots.find(asked)
        except SnapshotNotFound:
            raise TemplateNotFound(
                f"Template {asked[:100]!r} not found. This engine has the templates "
                f"{' and '.join(TEMPLATES)}, and the snapshots that it is asked to take."
            ) from None
        return snapshot.reference, snapshot.id

    async def take_snapshot(self, request: Request) -> Response:
        self._orchestrator.find(request.path_params["id"])
        body = await read_body(request)
        if flag(body, "memory", default=False):
            raise NotSupported(
                "Snapshots of memory are not supported by the embedded engine: "
                "take one with mode='filesystem', or without a mode"
            )
        name = body.get("name") or None
        if name is not None and not isinstance(name, str):
            raise InvalidRequest("name must be a string")
        snapshot = await self._orchestrator.snapshot(request.path_params["id"], name)
        return JSONResponse(_snapshot_info(snapshot), 201)

    async def list_snapshots(self, request: Request) -> Response:
        query = request.query_params
        found = sorted(
            (
                s
                for s in self._orchestrator.snapshots.all()
                if query.get("sandboxID") in (None, s.sandbox_id)
                and ("name" not in query or s.is_meant_by(query["name"]))
            ),
            key=lambda s: (s.created_at, s.id),
            reverse=True,
        )
        if token := query.get("nextToken"):
            last = _moment_and_id(token)
            found = [s for s in found if (s.created_at, s.id) < last]
        limit = page_size(query.get("limit"))
        page, rest = found[:limit], found[limit:]
        headers = {"x-next-token": f"{page[-1].created_at!r}_{page[-1].id}"} if rest else {}
        return JSONResponse([_snapshot_info(s) for s in page], headers=headers)

    async def delete_snapshot(self, request: Request) -> Response:
        reference = urllib.parse.unquote(request.path_params["reference"])
        snapshots = self._orchestrator.snapshots
        for snapshot in snapshots.find_all(reference):
            snapshots.delete(snapshot)
        return Response(status_code=204)

    async def fork(self, request: Request) -> Response:
        self._orchestrator.find(request.path_params["id"])
        raise NotSupported(
            "Forking a sandbox with its memory is not supported by the embedded engine. "
            "Take a snapshot of its files and create sandboxes from that."
        )

    async def connect(self, request: Request) -> Response:
        body = await read_body(request)
        sandbox, resumed = await self._orchestrator.resume(
            request.path_params["id"],
            self._timeout(body),
            restore_memory=flag(body, "memory", default=True),
        )
        return JSONResponse(self._created(sandbox), 201 if resumed else 200)

    async def resume(self, request: Request) -> Response:
        """The older call: like connect, but refuses a running sandbox."""
        sandbox = self._orchestrator.find(request.path_params["id"])
        if sandbox.state is State.RUNNING:
            return error(409, f"Sandbox {sandbox.id} is already running")
        return await self.connect(request)

    async def get(self, request: Request) -> Response:
        sandbox = self._orchestrator.find(request.path_params["id"])
        details = self._described(sandbox) | _details(sandbox) | {"domain": self._domain}
        return JSONResponse(details)

    async def list_page(self, request: Request) -> Response:
        query = request.query_params
        states = [s for value in query.getlist("state") for s in value.split(",") if s]
        found = sorted(
            self._select(query.get("metadata"), states, query), key=_page_key, reverse=True
        )
        if query.get("order") == "asc":
            found.reverse()
        if token := query.get("nextToken"):
            found = _after(found, token, ascending=query.get("order") == "asc")
        limit = page_size(query.get("limit"))
        page, rest = found[:limit], found[limit:]
        headers = {"x-next-token": _token(page[-1])} if rest else {}
        return JSONResponse([self._described(s) for s in page], headers=headers)

    async def list_running(self, request: Request) -> Response:
        """The older call: no pages, running sandboxes only."""
        query = request.query_params
        found = self._select(query.get("metadata"), [State.RUNNING], query)
        return JSONResponse([self._described(s) for s in found])

    def _select(
        self, metadata: str | None, states: list[str], query: Mapping[str, str]
    ) -> list[Sandbox]:
        wanted = metadata_filter(metadata)
        after = moment(query.get("startedAfter"))
        template = query.get("template")
        return [
            s
            for s in self._orchestrator.sandboxes()
            if (not states or s.state in states)
            and wanted.items() <= s.spec.metadata.items()
            and round(s.started_at, 6) >= after  # as precise as clients see it
            and template in (None, s.spec.template)
        ]

    async def kill(self, request: Request) -> Response:
        await self._orchestrator.kill(request.path_params["id"])
        return Response(status_code=204)

    async def pause(self, request: Request) -> Response:
        body = await read_body(request)
        mode = PauseMode.FULL if flag(body, "memory", default=True) else PauseMode.FILESYSTEM
        strict = flag(body, "requireHealthyGuest", default=mode is PauseMode.FILESYSTEM)
        await self._orchestrator.pause(request.path_params["id"], mode, strict=strict)
        return Response(status_code=204)

    async def set_timeout(self, request: Request) -> Response:
        timeout = self._seconds(await read_body(request), "timeout", None)
        self._orchestrator.set_timeout(request.path_params["id"], timeout)
        return Response(status_code=204)

    async def refresh(self, request: Request) -> Response:
        duration = self._seconds(await read_body(request), "duration", DEFAULT_TIMEOUT)
        self._orchestrator.extend(request.path_params["id"], duration)
        return Response(status_code=204)

    async def set_network(self, request: Request) -> Response:
        body = await read_body(request)
        policy = self._network(body, body)
        self._orchestrator.set_network(request.path_params["id"], policy)
        return Response(status_code=204)

    async def metrics(self, request: Request) -> Response:
        sandbox = self._orchestrator.find(request.path_params["id"])
        if sandbox.state is State.RUNNING:
            await self._orchestrator.history.sample_now(sandbox)
        start = number(request.query_params.get("start"), 0.0)
        end = number(request.query_params.get("end"), math.inf)
        options = self._orchestrator.options
        return JSONResponse(
            [
                {
                    "timestamp": _iso(s.at),
                    "timestampUnix": int(s.at),
                    "cpuCount": options.cpu_count,
                    "cpuUsedPct": round(s.cpu_percent, 2),
                    "memUsed": s.memory_bytes,
                    "memTotal": options.memory_mb * 1024 * 1024,
                    "memCache": 0,
                    "diskUsed": s.disk_bytes,
                    "diskTotal": options.disk_mb * 1024 * 1024,
                }
                for s in sandbox.samples
                if start <= s.at <= end + 1
            ]
        )

    def _network(self, network: Json, asked: Json) -> NetworkPolicy:
        """`asked` has `allow_internet_access`: beside `network` in a create, in it later."""
        for name in ("rules", "egressProxy", "dnsServers", "httpsPorts"):
            if network.get(name):
                raise NotSupported(f"network.{name} is not supported by the embedded engine")
        policy = NetworkPolicy(
            internet=said(asked, "allow_internet_access"),
            allow_out=rules(network, "allowOut"),
            deny_out=rules(network, "denyOut"),
        )
        if policy.is_moot:
            raise InvalidRequest(
                "allowOut names hosts but denyOut does not deny the rest, so that all is allowed. "
                "Add 0.0.0.0/0 (all traffic) to denyOut."
            )
        return policy

    def _created(self, sandbox: Sandbox) -> Json:
        return {
            "templateID": sandbox.spec.template,
            "alias": sandbox.spec.template,
            "sandboxID": sandbox.id,
            "clientID": CLIENT_ID,
            "envdVersion": ENVD_VERSION,
            "envdAccessToken": sandbox.envd_token,
            "trafficAccessToken": sandbox.traffic_token,
            "domain": self._domain,
        }

    def _timeout(self, body: Json) -> int:
        value = self._seconds(body, "timeout", DEFAULT_TIMEOUT)
        if value <= 0:
            raise InvalidRequest("Timeout must be greater than 0")
        return value

    def _seconds(self, body: Json, name: str, default: int | None) -> int:
        value = body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{name} must be a whole number of seconds")
        longest = self._orchestrator.options.longest_run
        if value > longest:
            raise InvalidRequest(f"{name} cannot be greater than {longest} seconds")
        return value

    def _described(self, sandbox: Sandbox) -> Json:
        options = self._orchestrator.options
        return {
            "templateID": sandbox.spec.template,
            "alias": sandbox.spec.template,
            "sandboxID": sandbox.id,
            "clientID": CLIENT_ID,
            "startedAt": _iso(sandbox.started_at),
            "endAt": _iso(sandbox.end_at),
            "cpuCount": options.cpu_count,
            "memoryMB": options.memory_mb,
            "diskSizeMB": options.disk_mb,
            "state": sandbox.state,
            "envdVersion": ENVD_VERSION,
            "metadata": dict(sandbox.spec.metadata),
        }


def error(code: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"code": code, "message": message}, code, headers=headers)


def _snapshot_info(snapshot: Snapshot) -> Json:
    return {
        "snapshotID": snapshot.reference,
        "names": [snapshot.reference] if snapshot.name else [],
    }


def _details(sandbox: Sandbox) -> Json:
    """Of the network, as on E2B, what was said of it."""
    lifecycle = sandbox.spec.lifecycle
    network = {
        "allowOut": list(sandbox.network.allow_out) or None,
        "denyOut": list(sandbox.network.deny_out) or None,
        "allowPublicTraffic": sandbox.spec.public_traffic,
        "maskRequestHost": sandbox.spec.mask_request_host,
    }
    details: Json = {
        "envdAccessToken": sandbox.envd_token,
        "lifecycle": {"autoResume": lifecycle.auto_resume, "onTimeout": lifecycle.on_timeout},
        "allowInternetAccess": sandbox.network.internet,
        "network": _without_nones(network),
        "pauseMode": sandbox.pause_mode,
    }
    return _without_nones(details)


def _without_nones(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


# Pages continue after the last sandbox seen, so that sandboxes that come and go between two
# pages neither repeat nor hide others.


def _page_key(sandbox: Sandbox) -> tuple[float, str]:
    return sandbox.started_at, sandbox.id


def _token(sandbox: Sandbox) -> str:
    return f"{sandbox.started_at!r}_{sandbox.id}"


def _moment_and_id(token: str) -> tuple[float, str]:
    moment, _, last_id = token.partition("_")
    try:
        return float(moment), last_id
    except ValueError:
        raise InvalidRequest("nextToken is not one of ours") from None


def _after(found: list[Sandbox], token: str, *, ascending: bool) -> list[Sandbox]:
    last = _moment_and_id(token)
    return [s for s in found if (_page_key(s) > last if ascending else _page_key(s) < last)]


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()


# Routes and errors


def _both(path: str, answer: Answer, method: str) -> list[Route]:
    return [Route(path, answer, methods=[method]), Route(f"/v2{path}", answer, methods=[method])]


def _absent(path: str, what: str) -> Route:
    async def refuse(request: Request) -> Response:
        raise NotSupported(f"{what}: not supported by the embedded engine")

    return Route(path, refuse, methods=["GET", "POST", "PUT", "PATCH", "DELETE"])


async def _refusal(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, Refusal)
    # The SDKs repeat what was refused as busy; nothing here is better a second later.
    headers = {"Should-Retry": "false"} if isinstance(exc, Busy) else None
    return error(exc.status, exc.message, headers)


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return error(exc.status_code, exc.detail, exc.headers)


async def _crash(request: Request, exc: Exception) -> Response:
    return error(500, "The engine failed; its log says more.")
