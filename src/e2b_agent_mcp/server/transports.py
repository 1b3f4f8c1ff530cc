"""Serves over stdio or streamable HTTP until the client leaves or a signal comes.

Clients kill a server 2 s after they closed its stdin, and the SDK's own runners either skip the
cleanup (SIGTERM), hang after it (SIGINT), or wait for running calls. So here one watcher cancels
what runs, cleanup gets `GRACE` seconds, and `os._exit` ends the process: a thread that still
imports or reads stdin cannot hold it up.
"""

import hmac
import ipaddress
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NoReturn

import anyio
from anyio.abc import ObjectSendStream
from mcp.server import MCPServer
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.message import SessionMessage

from e2b_agent_mcp.errors import SettingsError
from e2b_agent_mcp.server.app import create_server
from e2b_agent_mcp.server.sessions import ANONYMOUS
from e2b_agent_mcp.settings import HttpSettings, Secret, Settings

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

Transport = Literal["stdio", "http"]
Message = SessionMessage | Exception

PATH = "/mcp"
GRACE = 1.5  # seconds for cleanup, once the end has come
MAX_BODY = 16 * 1024 * 1024  # bytes of one request: an uploaded file is part of it
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(
    settings: Settings,
    *,
    transport: Transport = "stdio",
    on_listening: Callable[[str], None] = lambda url: None,
) -> NoReturn:
    """Serves and ends the process: with 0 when the client left, else 128 + the signal's number.

    `on_listening` hears the URL once an HTTP server accepts connections.
    """
    configure_logging(settings)
    if transport == "stdio":
        anyio.run(_serve_stdio, create_server(settings))
    _exit(anyio.run(_serve_http, http_server(settings), on_listening))


def configure_logging(settings: Settings) -> None:
    """Logs to stderr, as stdout belongs to MCP. Other packages log warnings only: at finer levels
    some write what passes through them."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("e2b_agent_mcp").setLevel(settings.log_level.upper())


# --- the end ------------------------------------------------------------------------------------


def _exit(code: int) -> NoReturn:
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _exit_soon(code: int) -> None:
    """Ends the process after `GRACE`, should cleanup take longer."""
    timer = threading.Timer(GRACE, os._exit, (code,))
    timer.daemon = True
    timer.start()


async def _wait_for_signal() -> int:
    """The exit code of a process that the first signal ends."""
    with anyio.open_signal_receiver(*SIGNALS) as signals:
        async for number in signals:
            logger.info("ended by %s", number.name)
            return 128 + number
    raise AssertionError("a signal receiver has no end")


# --- stdio --------------------------------------------------------------------------------------


async def _serve_stdio(mcp: MCPServer[None]) -> NoReturn:
    code = 1  # the client no longer reads, or a defect
    async with stdio_server() as (from_client, to_client):
        try:
            async with anyio.create_task_group() as tasks:

                async def end_on_signal() -> None:
                    nonlocal code
                    code = await _wait_for_signal()
                    _exit_soon(code)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(end_on_signal)
                send, receive = anyio.create_memory_object_stream[Message]()
                tasks.start_soon(_relay, from_client, send)
                lowlevel = mcp._lowlevel_server  # the SDK's `run` offers no way to be stopped
                await lowlevel.run(receive, to_client, lowlevel.create_initialization_options())
                code = 0
                tasks.cancel_scope.cancel()
        except Exception:
            logger.exception("serving failed")
        finally:
            # Within stdio_server: leaving it waits for the thread that reads stdin.
            _exit(code)


async def _relay(source: AsyncIterable[Message], target: ObjectSendStream[Message]) -> None:
    """Passes messages on, and notices the end of stdin before the calls that it cancels end."""
    async with target:
        async for message in source:
            await target.send(message)
        _exit_soon(0)


# --- HTTP ---------------------------------------------------------------------------------------


def http_server(settings: Settings) -> "uvicorn.Server":
    """A uvicorn server for `settings.http`; `SettingsError` when it would serve strangers."""
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse

    http = settings.http
    tokens = read_tokens(http.tokens)
    if not tokens and not is_loopback(http.host):
        raise SettingsError(
            f"http.host: {http.host} can be reached by others, who could run code here.",
            hint="Set E2B_AGENT_MCP_HTTP_TOKENS=name=token, or listen on 127.0.0.1.",
        )
    mcp = create_server(settings, token_verifier=StaticTokens(tokens) if tokens else None)

    async def healthz(_: Request) -> PlainTextResponse:
        return PlainTextResponse("ok\n")

    mcp.custom_route("/healthz", methods=["GET"])(healthz)
    app = mcp.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=MAX_BODY,
        transport_security=transport_security(http),
    )
    config = uvicorn.Config(
        app,
        host=http.host,
        port=http.port,
        log_config=None,  # uvicorn's own would write access lines to stdout
        timeout_graceful_shutdown=1,
    )

    class Server(uvicorn.Server):
        """Leaves the signals to `_serve_http`."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(config)


async def _serve_http(server: "uvicorn.Server", on_listening: Callable[[str], None]) -> int:
    code = 0
    sock = _listen(server.config.host, server.config.port)
    async with anyio.create_task_group() as tasks:

        async def end_on_signal() -> None:
            nonlocal code
            code = await _wait_for_signal()
            _exit_soon(code)
            server.should_exit = True

        tasks.start_soon(end_on_signal)
        on_listening(url_of(sock))
        await server.serve(sockets=[sock])
        tasks.cancel_scope.cancel()
    return code if server.started else 1


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Inherited by every connection. asyncio sets it only on sockets that say which protocol they
    # have, and a delayed answer costs 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)
    except OSError as exc:
        sock.close()
        raise SettingsError(
            f"http.port: cannot listen on {host} port {port}: {exc.strerror}.",
            hint="Choose another with --port or E2B_AGENT_MCP_HTTP_PORT.",
        ) from exc
    return sock


def url_of(sock: socket.socket) -> str:
    host, port, *_ = sock.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def transport_security(http: HttpSettings) -> TransportSecuritySettings:
    """Accepts requests that were meant for this server: a page in a browser can send others here
    under a name of its own (DNS rebinding)."""
    names = ["127.0.0.1", "localhost", "[::1]", *http.allowed_hosts]
    if not is_loopback(http.host):
        names.append(f"[{http.host}]" if ":" in http.host else http.host)
    hosts = [spelled for name in names for spelled in (name, f"{name}:*")]
    origins = [f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def read_tokens(tokens: Sequence[Secret]) -> dict[str, str]:
    """Token by name; a name owns sessions, so two tokens may not share one by mistake."""
    named: dict[str, str] = {}
    for secret in tokens:
        name, _, token = secret.reveal().partition("=")
        if not token or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise SettingsError("http.tokens: each is written name=token, with ',' between them.")
        if name in {ANONYMOUS, *named}:
            raise SettingsError(f"http.tokens: the name {name!r} is taken.")
        named[name] = token
    return named


class StaticTokens(TokenVerifier):
    """Bearer tokens of the settings; a token's name is the owner of the sessions it uses."""

    def __init__(self, tokens: dict[str, str]) -> None:
        self._tokens = tokens

    async def verify_token(self, token: str) -> AccessToken | None:
        """Compares with every token, in a time that tells nothing about them."""
        offered = token.encode("utf-8", "replace")
        matching = [
            name
            for name, known in self._tokens.items()
            if hmac.compare_digest(known.encode(), offered)
        ]
        if not matching:
            return None
        return AccessToken(token=token, client_id=matching[0], scopes=[])
