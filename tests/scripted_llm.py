"""A language model for tests: an OpenAI-compatible HTTP server that says what it is told.

    with ScriptedLLM() as llm:
        llm.script(code("x = 6 * 7"), Reply(status=429, headers={"retry-after": "0"}), ...)
        settings = Settings(agent=llm.settings())

It has a thread and an event loop of its own, so a test that blocks its loop does not block the
model. A request beyond the script is answered with 418, and fails the test at the end.
"""

import asyncio
import json
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import anyio
import uvicorn
from anyio import to_thread

from e2b_agent_mcp.settings import AgentSettings, Secret

KEY = "sk-scripted-secret"
MODEL = "openai/scripted"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer; as a stream when the request asks for one."""

    text: str = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: str = "scripted error"  # message of a status that is not 200
    error_code: str | None = None
    finish: str = "stop"
    delay: float = 0.0  # seconds before the first byte
    stall: float = 0.0  # seconds in the middle of a stream
    pieces: int = 4
    cut: bool = False  # the connection ends in the middle of the stream
    tool: tuple[str, dict[str, object]] | None = None  # called instead, when it is not a stream
    usage: tuple[int, int] | None = None  # tokens in and out; None: counted as 4 characters each


FOREVER = 3600.0  # a delay or stall that only a disconnect ends

Request = dict[str, Any]
Turn = str | Reply | Callable[[Request], "str | Reply"]


def code(source: str, thought: str = "Let me see.") -> str:
    """A reply in the form that the agent asks for."""
    return f"{thought}\n<python>\n{source}\n</python>"


class ScriptedLLM:
    def __init__(self) -> None:
        self.requests: list[Request] = []  # bodies, in the order of arrival
        self.keys: list[str] = []  # what each request carried as its key
        self.times: list[float] = []  # time.monotonic() of each arrival
        self.answering: list[float] = []  # seconds from an arrival to its answer's end, in order
        self.disconnects = 0  # requests whose client went away before their end
        self.open = 0  # requests that are being answered
        self.unscripted = 0
        self._turns: deque[Turn] = deque()
        self._changed = threading.Condition()
        self._socket = socket.create_server(("127.0.0.1", 0))
        # Inherited by every connection; without it a delayed acknowledgement costs 40 ms.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
        if kind is None:
            assert not self.unscripted, "the model was asked more often than the script foresees"

    def script(self, *turns: Turn) -> None:
        """Adds replies; a function makes its reply from the request's body."""
        self._turns.extend(turns)

    def forget(self) -> None:
        """Drops the replies that nobody has asked for yet."""
        self._turns.clear()

    @property
    def unused(self) -> int:
        """Replies that nobody has asked for yet."""
        return len(self._turns)

    def settings(self, **changes: Any) -> AgentSettings:
        values = {"model": MODEL, "base_url": self.url, "api_key": Secret(KEY), **changes}
        return AgentSettings(**values)

    async def asked(self, times: int = 1) -> None:
        """Waits for that many requests in all."""
        await self._until(lambda: len(self.requests) >= times)

    async def left(self, times: int = 1) -> None:
        """Waits until so many clients have gone away before their reply's end."""
        await self._until(lambda: self.disconnects >= times)

    async def idle(self) -> None:
        """Waits until no request is being answered."""
        await self._until(lambda: self.open == 0)

    async def _until(self, condition: Callable[[], bool]) -> None:
        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(condition, timeout=100)

        with anyio.CancelScope(shield=True):
            assert await to_thread.run_sync(wait), "the model waited in vain"

    # The server's side; runs in its own thread.

    # Any: ASGI.
    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = json.loads(body or b"{}")
        turn = self._next(request, dict(scope["headers"]))
        number = len(self.times) - 1
        try:
            await self._reply(request, turn, receive, send)
        finally:
            with self._changed:
                self.answering[number] = time.monotonic() - self.times[number]
                self.open -= 1
                self._changed.notify_all()

    # Any: ASGI.
    async def _reply(self, request: Request, turn: Turn, receive: Any, send: Any) -> None:
        reply = turn(request) if callable(turn) else turn
        reply = Reply(text=reply) if isinstance(reply, str) else reply
        answering = asyncio.ensure_future(self._answer(request, reply, send))
        leaving = asyncio.ensure_future(_gone(receive))
        done, _ = await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if answering not in done:
            answering.cancel()
            with self._changed:
                self.disconnects += 1
                self._changed.notify_all()
        else:
            answering.result()

    def _next(self, request: Request, headers: Mapping[bytes, bytes]) -> Turn:
        with self._changed:
            self.open += 1
            self.requests.append(request)
            self.keys.append(headers.get(b"authorization", b"").decode().removeprefix("Bearer "))
            self.times.append(time.monotonic())
            self.answering.append(0.0)
            if not self._turns:
                self.unscripted += 1
            turn = self._turns.popleft() if self._turns else Reply(status=418)
            self._changed.notify_all()
            return turn

    # Any: ASGI.
    async def _answer(self, request: Request, reply: Reply, send: Any) -> None:
        await asyncio.sleep(reply.delay)
        streaming = bool(request.get("stream")) and reply.status == 200
        kind = "text/event-stream" if streaming else "application/json"
        headers = {"content-type": kind, **reply.headers}
        await send(
            {
                "type": "http.response.start",
                "status": reply.status,
                "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
            }
        )
        if streaming:
            await self._stream(request, reply, send)
        else:
            body = _error(reply) if reply.status != 200 else _completion(request, reply)
            await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    # Any: ASGI.
    async def _stream(self, request: Request, reply: Reply, send: Any) -> None:
        async def event(data: str) -> None:
            body = f"data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        pieces = _pieces(_stopped(request, reply.text), reply.pieces)
        for number, piece in enumerate(pieces):
            if number == len(pieces) // 2:
                await asyncio.sleep(reply.stall)
                if reply.cut:
                    raise ConnectionError("cut, as the script says")
            delta = {"role": "assistant", "content": piece}
            await event(json.dumps(_chunk([{"index": 0, "delta": delta, "finish_reason": None}])))
        end = {"index": 0, "delta": {}, "finish_reason": reply.finish}
        await event(json.dumps(_chunk([end])))
        if request.get("stream_options", {}).get("include_usage"):
            await event(json.dumps({**_chunk([]), "usage": _usage(request, reply)}))
        await event("[DONE]")
        await send({"type": "http.response.body", "body": b""})


# Any: ASGI.
async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _stopped(request: Request, text: str) -> str:
    """What a real model would have said: it ends before a stop sequence."""
    stops = request.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0]
    return text


def _pieces(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // count))
    return re.findall(f"(?s).{{1,{size}}}", text) or [""]


def _chunk(choices: list[dict[str, object]]) -> dict[str, object]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "scripted",
        "choices": choices,
    }


def _completion(request: Request, reply: Reply) -> dict[str, object]:
    message: dict[str, object] = {
        "role": "assistant",
        "content": _stopped(request, reply.text),
    }
    if reply.tool is not None:
        name, arguments = reply.tool
        function = {"name": name, "arguments": json.dumps(arguments)}
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": reply.finish}
    usage = _usage(request, reply)
    return {**_chunk([]), "object": "chat.completion", "choices": [choice], "usage": usage}


def _usage(request: Request, reply: Reply) -> dict[str, int]:
    given = len(json.dumps(request["messages"])) // 4, len(reply.text) // 4
    prompt, completion = reply.usage or given
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _error(reply: Reply) -> dict[str, object]:
    return {"error": {"message": reply.error, "type": "error", "code": reply.error_code}}
