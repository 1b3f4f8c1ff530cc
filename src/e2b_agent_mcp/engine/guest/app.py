"""The guest's single door: which port of the sandbox a request is for, a header says.

The engine authenticates every request before it comes here and writes the header itself.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from .config import Environment, GuestConfig
from .envd.app import create_envd
from .interpreter.app import create_interpreter
from .interpreter.nursery import Nursery
from .proxy import PortProxy
from .tunnel import PortTunnel

PORT_HEADER = "e2b-sandbox-port"
ENVD_PORT = 49983
INTERPRETER_PORT = 49999


def create_tunnel() -> PortTunnel:
    return PortTunnel(frozenset({ENVD_PORT, INTERPRETER_PORT}))


def create_app(config: GuestConfig, environment: Environment, nursery: Nursery) -> Starlette:
    services = {
        ENVD_PORT: create_envd(config, environment),
        INTERPRETER_PORT: create_interpreter(config, environment, nursery),
    }

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as running:
            for service in services.values():
                await running.enter_async_context(service.router.lifespan_context(service))
            yield

    door = Door(services, PortProxy())
    return Starlette(routes=[Mount("/", door)], lifespan=lifespan)


class Door:
    """Sends a request to the service of its port; other ports are servers of the user's own."""

    def __init__(self, services: dict[int, Starlette], proxy: PortProxy) -> None:
        self._services = services
        self._proxy = proxy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        port = int(Headers(scope=scope).get(PORT_HEADER, ENVD_PORT))
        service: ASGIApp = self._services.get(port) or self._proxy.to(port)
        await service(scope, receive, send)
