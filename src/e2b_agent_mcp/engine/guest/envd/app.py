"""envd: the part of a sandbox that E2B's SDKs reach on port 49983."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..config import Environment, GuestConfig
from .files import file_routes
from .filesystem import filesystem_routes
from .metrics import Metrics
from .process import process_routes
from .processes import Processes
from .watch import Watches


def create_envd(config: GuestConfig, environment: Environment) -> Starlette:
    processes = Processes(config, environment)
    watches = Watches(config.home)
    metrics = Metrics(config.home)

    async def health(request: Request) -> Response:
        return Response(status_code=204)

    async def envs(request: Request) -> Response:
        return JSONResponse(dict(environment.variables))

    async def read_metrics(request: Request) -> Response:
        return JSONResponse(await run_sync(metrics.read))

    async def init(request: Request) -> Response:
        """Sent by the engine once, before any client is let in."""
        message = json.loads(await request.body() or b"{}")
        environment.set_variables(message.get("envVars") or {})
        return Response(status_code=204)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with processes.running(), watches.running():
            yield

    routes = [
        Route("/health", health),
        Route("/envs", envs),
        Route("/metrics", read_metrics),
        Route("/init", init, methods=["POST"]),
        *process_routes(processes),
        *filesystem_routes(config.home),
        *watches.routes(),
        *file_routes(config.home),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
