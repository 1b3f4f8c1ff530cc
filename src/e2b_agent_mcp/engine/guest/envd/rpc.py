"""The Connect protocol with its JSON codec: the small part of it that E2B's SDKs speak.

- Unary: a JSON object each way; an error is an HTTP status and `{"code", "message"}`.
- Streams: frames of one flag byte, a big-endian uint32 length and a JSON object. The last frame
  has the flag `END` and says how the stream ended; the HTTP status is always 200.
- A stream that is cut off without an `END` frame failed: nothing of ours ever ends cleanly early.
"""

import base64
import binascii
import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import USERS

Code = Literal[
    "already_exists",
    "deadline_exceeded",
    "failed_precondition",
    "internal",
    "invalid_argument",
    "not_found",
    "permission_denied",
    "resource_exhausted",
    "unauthenticated",
    "unimplemented",
]
HTTP_STATUS: Mapping[Code, int] = {
    "already_exists": 409,
    "deadline_exceeded": 504,
    "failed_precondition": 400,
    "internal": 500,
    "invalid_argument": 400,
    "not_found": 404,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "unauthenticated": 401,
    "unimplemented": 501,
}

END = 0x02
COMPRESSED = 0x01
FRAME_HEAD = 5  # bytes

Value = TypeVar("Value")
Reply = Mapping[str, object]
Emit = Callable[[Reply | bytes], Awaitable[None]]  # bytes: JSON already


class RpcError(Exception):
    """How a call fails as the client shall see it."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def as_reply(self) -> Reply:
        return {"code": self.code, "message": self.message}


class Fields:
    """A proto3 JSON object, read by field: an absent field is its type's zero value.

    A field of the wrong JSON type raises `invalid_argument`.
    """

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values

    @classmethod
    def parse(cls, body: bytes) -> Self:
        try:
            values = json.loads(body or b"{}")
        except ValueError as error:
            raise RpcError("invalid_argument", f"the message is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise RpcError("invalid_argument", "the message is not a JSON object")
        return cls(values)

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def text(self, name: str) -> str:
        return self._typed(name, str, "")

    def flag(self, name: str) -> bool:
        return self._typed(name, bool, False)

    def number(self, name: str) -> int:
        return self._typed(name, int, 0)

    def octets(self, name: str) -> bytes:
        try:
            return base64.b64decode(self.text(name), validate=True)
        except binascii.Error as error:
            raise RpcError("invalid_argument", f"'{name}' is not base64") from error

    def message(self, name: str) -> "Fields":
        return Fields(self._typed(name, dict, {}))

    def texts(self, name: str) -> list[str]:
        return [str(value) for value in self._typed(name, list, [])]

    def mapping(self, name: str) -> dict[str, str]:
        return {str(key): str(value) for key, value in self._typed(name, dict, {}).items()}

    def _typed(self, name: str, kind: type[Value], default: Value) -> Value:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, kind):
            raise RpcError("invalid_argument", f"'{name}' is not of type {kind.__name__}")
        return value


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request: its message and what its headers ask for (both times in seconds)."""

    fields: Fields
    timeout: float | None
    keepalive: float | None

    @classmethod
    def of(cls, headers: Headers, fields: Fields) -> Self:
        authenticate(headers)
        timeout = _positive_number(headers.get("connect-timeout-ms"))
        return cls(
            fields=fields,
            timeout=timeout and timeout / 1000,
            keepalive=_positive_number(headers.get("keepalive-ping-interval")),
        )


def authenticate(headers: Headers) -> None:
    """Refuses a user that the sandbox does not have; who may call at all, the host decided."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return
    try:
        user = base64.b64decode(credentials).decode().partition(":")[0]
    except ValueError as error:
        raise RpcError("unauthenticated", "the user name is not readable") from error
    require_user(user)


def require_user(user: str) -> None:
    if user not in USERS:
        raise RpcError("unauthenticated", f"user '{user}' does not exist")


def unary(answer: Callable[[Call], Awaitable[Reply]]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers one message with one message."""

    async def endpoint(request: Request) -> Response:
        try:
            call = Call.of(request.headers, Fields.parse(await request.body()))
            return JSONResponse(await answer(call))
        except RpcError as error:
            return JSONResponse(error.as_reply(), HTTP_STATUS[error.code])

    return endpoint


def server_stream(
    answer: Callable[[Call, Emit], Awaitable[None]], *, keepalive: Reply
) -> Callable[[Request], Awaitable[ASGIApp]]:
    """An endpoint that answers one message with many; `answer` is cancelled if the client goes."""

    async def endpoint(request: Request) -> ASGIApp:
        async def reply(emit: Emit) -> None:
            call = await _only_call(request)
            failure: RpcError | None = None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when_gone, request.receive, tasks.cancel_scope)
                if call.keepalive:
                    tasks.start_soon(_repeat, emit, keepalive, call.keepalive)
                try:
                    with deadline(call.timeout):
                        await answer(call, emit)
                except RpcError as error:  # leaving the task group would wrap it
                    failure = error
                tasks.cancel_scope.cancel()
            if failure:
                raise failure

        return _stream_response(reply)

    return endpoint


def client_stream(
    answer: Callable[[AsyncIterator[Fields]], Awaitable[Reply]],
) -> Callable[[Request], Awaitable[ASGIApp]]:
    """An endpoint that takes many messages, each as it comes, and answers with one."""

    async def endpoint(request: Request) -> ASGIApp:
        async def reply(emit: Emit) -> None:
            call = Call.of(request.headers, Fields({}))
            with deadline(call.timeout):
                await emit(await answer(read_frames(request.stream())))

        return _stream_response(reply)

    return endpoint


@contextmanager
def deadline(timeout: float | None) -> Iterator[None]:
    with anyio.move_on_after(timeout) as scope:
        yield
    if scope.cancelled_caught:
        raise RpcError("deadline_exceeded", f"the deadline of {timeout:g} s passed")


def frame(flags: int, message: Reply | bytes) -> bytes:
    if not isinstance(message, bytes):
        message = json.dumps(message, separators=(",", ":")).encode()
    return b"".join((bytes([flags]), len(message).to_bytes(4), message))


async def read_frames(chunks: AsyncIterable[bytes]) -> AsyncIterator[Fields]:
    """The messages of a request body; a message that is cut off raises `invalid_argument`."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= FRAME_HEAD:
            end = FRAME_HEAD + int.from_bytes(buffer[1:FRAME_HEAD])
            if len(buffer) < end:
                break
            if buffer[0] & COMPRESSED:
                raise RpcError("unimplemented", "compressed messages are not supported")
            if buffer[0] & END:
                return
            yield Fields.parse(bytes(buffer[FRAME_HEAD:end]))
            del buffer[:end]
    if buffer:
        raise RpcError("invalid_argument", "the last message is cut off")


async def _only_call(request: Request) -> Call:
    messages = [message async for message in read_frames(request.stream())]
    if len(messages) != 1:
        raise RpcError("invalid_argument", "exactly one message is expected")
    return Call.of(request.headers, messages[0])


def _stream_response(reply: Callable[[Emit], Awaitable[None]]) -> ASGIApp:
    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def emit(message: Reply | bytes) -> None:
            await write(frame(0, message), more=True)

        async def write(body: bytes, *, more: bool) -> None:
            nonlocal started
            if not started:
                # Not earlier: pyqwest drops a request body that it has not sent by then.
                started = True
                headers = [(b"content-type", b"application/connect+json")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body, "more_body": more})

        outcome: Reply = {}
        try:
            await reply(emit)
        except RpcError as error:
            outcome = {"error": error.as_reply()}
        await write(frame(END, outcome), more=False)

    return respond


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _repeat(emit: Emit, message: Reply, interval: float) -> None:
    while True:
        await anyio.sleep(interval)
        await emit(message)


def _positive_number(value: str | None) -> float | None:
    try:
        number = float(value or 0)
    except ValueError as error:
        raise RpcError("invalid_argument", f"'{value}' is not a number") from error
    return number if number > 0 else None
