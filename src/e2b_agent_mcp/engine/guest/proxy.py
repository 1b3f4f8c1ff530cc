"""Requests for the other ports of a sandbox: carried to 127.0.0.1 (or ::1) in the box.

Bodies stream both ways. An answer that ends early aborts the client's connection: a cut-off
answer never looks complete.
"""

from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import h11
from anyio.abc import SocketStream
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

CHUNK = 64 * 1024  # bytes
LOOPBACKS = ("127.0.0.1", "::1")
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class PortProxy:
    def to(self, port: int) -> ASGIApp:
        async def forward(scope: Scope, receive: Receive, send: Send) -> None:
            stream = await _connect(port)
            if stream is None:
                answer = _bad_gateway(scope, "The sandbox is running but port is not open")
                await answer(scope, receive, send)
                return
            exchange = _Exchange(stream)
            async with stream, anyio.create_task_group() as tasks:
                tasks.start_soon(exchange.send_request, scope, receive, tasks.cancel_scope)
                head = await exchange.receive_head()
                if head is None:
                    answer = _bad_gateway(scope, f"The server on port {port} gave no answer")
                    await answer(scope, receive, send)
                else:
                    await _relay(head, exchange.body(), send)
                tasks.cancel_scope.cancel()

        return forward


def _bad_gateway(scope: Scope, message: str) -> JSONResponse:
    sandbox_id = Headers(scope=scope).get("e2b-sandbox-id", "")
    return JSONResponse({"sandboxId": sandbox_id, "message": message, "code": 502}, 502)


async def _connect(port: int) -> SocketStream | None:
    for host in LOOPBACKS:
        with suppress(OSError):
            return await anyio.connect_tcp(host, port)
    return None


async def _relay(head: h11.Response, body: AsyncIterator[bytes], send: Send) -> None:
    headers = [(name, value) for name, value in head.headers if name not in HOP_BY_HOP]
    await send({"type": "http.response.start", "status": head.status_code, "headers": headers})
    async for chunk in body:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class _Exchange:
    """One request and its answer over one connection."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    async def send_request(self, scope: Scope, receive: Receive, gone: anyio.CancelScope) -> None:
        """Then stays to cancel the exchange when the client goes."""
        request = Request(scope, receive)
        with suppress(anyio.BrokenResourceError):  # it may have answered without reading it all
            await self._send(_request_head(scope))
            async for chunk in request.stream():
                await self._send(h11.Data(chunk))
            await self._send(h11.EndOfMessage())
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.cancel()

    async def receive_head(self) -> h11.Response | None:
        """None if the connection ended, or was not HTTP, before an answer."""
        try:
            event = await self._next_event()
            while isinstance(event, h11.InformationalResponse):
                event = await self._next_event()
        except (h11.RemoteProtocolError, anyio.BrokenResourceError):
            return None
        return event if isinstance(event, h11.Response) else None

    async def body(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next_event(), h11.Data):
            yield bytes(event.data)

    async def _send(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        if data := self._http.send(event):
            await self._stream.send(data)

    async def _next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            try:
                self._http.receive_data(await self._stream.receive(CHUNK))
            except anyio.EndOfStream:
                self._http.receive_data(b"")
        return event


def _request_head(scope: Scope) -> h11.Request:
    target: bytes = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    headers = [(name, value) for name, value in scope["headers"] if name not in HOP_BY_HOP]
    if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        headers.append((b"transfer-encoding", b"chunked"))
    headers.append((b"connection", b"close"))
    return h11.Request(method=scope["method"], target=target, headers=headers)
