"""The code interpreter's HTTP door (port 49999), as E2B's clients know it.

An execution's stream ends with `end_of_execution` or is torn off: a clean end without it would
read as success. A client that goes away has its code interrupted.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from json import JSONDecodeError
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ..config import Environment, GuestConfig
from .contexts import Context, ContextNotFoundError, ContextRefusedError, Contexts, Execution
from .languages import PYTHON
from .messages import END, KEEPALIVE, write_line
from .nursery import Nursery

# Every write passes through three programs: what is said within a MOMENT is one.
MOMENT = 0.005  # seconds
FULL = 256 * 1024  # bytes
KEEPALIVE_INTERVAL = 5.0  # seconds of silence; a write is how a vanished client is noticed


def create_interpreter(
    config: GuestConfig, environment: Environment, nursery: Nursery
) -> Starlette:
    """Its contexts live in its lifespan, which the caller runs."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with Contexts.open(config, environment, nursery) as contexts:
            app.state.contexts = contexts
            yield

    return Starlette(
        routes=[
            Route("/health", _health),
            Route("/execute", _execute, methods=["POST"]),
            Route("/contexts", _create_context, methods=["POST"]),
            Route("/contexts", _list_contexts),
            Route("/contexts/{context_id}", _remove_context, methods=["DELETE"]),
            Route("/contexts/{context_id}/restart", _restart_context, methods=["POST"]),
        ],
        exception_handlers={ContextRefusedError: _bad_request, ContextNotFoundError: _not_found},
        lifespan=lifespan,
    )


async def _health(request: Request) -> Response:
    return PlainTextResponse("OK")


async def _execute(request: Request) -> Response:
    body = await _read_body(request)
    code = body.get("code")
    if not isinstance(code, str):
        raise HTTPException(400, "'code' must be a string")
    context_id, language = _read_text(body, "context_id"), _read_text(body, "language")
    if context_id and language:
        raise HTTPException(400, "Only one of context_id or language can be provided")
    contexts = _contexts(request)
    if context_id:
        context = contexts.find(context_id)
    else:
        context = contexts.find_default(language or PYTHON.name)
    return ExecutionResponse(context, code, _read_variables(body))


async def _create_context(request: Request) -> Response:
    body = await _read_body(request)
    language = _read_text(body, "language") or PYTHON.name
    return JSONResponse(_describe(_contexts(request).create(language, _read_text(body, "cwd"))))


async def _list_contexts(request: Request) -> Response:
    return JSONResponse([_describe(context) for context in _contexts(request).list_all()])


async def _remove_context(request: Request) -> Response:
    await _contexts(request).remove(request.path_params["context_id"])
    return Response(status_code=204)


async def _restart_context(request: Request) -> Response:
    await _contexts(request).find(request.path_params["context_id"]).restart()
    return Response(status_code=204)


def _bad_request(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(str(exc), status_code=400)


def _not_found(request: Request, exc: Exception) -> Response:
    return PlainTextResponse(str(exc), status_code=404)


def _describe(context: Context) -> dict[str, str]:
    return {"id": context.id, "language": context.language.name, "cwd": str(context.cwd)}


def _contexts(request: Request) -> Contexts:
    contexts: Contexts = request.app.state.contexts
    return contexts


async def _read_body(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except (JSONDecodeError, UnicodeDecodeError) as exc:
        raise HTTPException(400, f"The body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise HTTPException(400, "The body must be a JSON object")
    return body


def _read_text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise HTTPException(400, f"'{name}' must be a string")
    return value or None


def _read_variables(body: dict[str, Any]) -> dict[str, str]:
    variables = body.get("env_vars") or {}
    if not isinstance(variables, dict) or not all(map(_is_variable, variables.items())):
        raise HTTPException(400, "'env_vars' must map names to strings")
    return variables


def _is_variable(item: tuple[str, object]) -> bool:
    name, value = item
    if not isinstance(value, str) or "\0" in name + value:
        return False
    return bool(name) and "=" not in name


class ExecutionResponse(Response):
    """Streams one execution. Its end, however it comes about, releases the context."""

    def __init__(self, context: Context, code: str, variables: dict[str, str]) -> None:
        super().__init__(media_type="application/x-ndjson")
        del self.headers["content-length"]
        self._context = context
        self._code = code
        self._variables = variables

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        execution = self._context.submit(self._code, self._variables)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_at_disconnect, receive, tasks.cancel_scope)
                await self._stream(execution, send)
                tasks.cancel_scope.cancel()
        finally:
            execution.abandon()

    async def _stream(self, execution: Execution, send: Send) -> None:
        headers = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(headers)
        finished = False
        while not finished:
            lines, finished = await _next_lines(execution)
            await send({"type": "http.response.body", "body": lines, "more_body": not finished})


async def _next_lines(execution: Execution) -> tuple[bytes, bool]:
    """What was said within a moment, and whether it is the last."""
    event = KEEPALIVE
    with anyio.move_on_after(KEEPALIVE_INTERVAL):
        event = await execution.events.receive()
    lines = write_line(event)
    with anyio.move_on_after(MOMENT):
        while event is not END and event is not KEEPALIVE and len(lines) < FULL:
            event = await execution.events.receive()
            lines += write_line(event)
    return lines, event is END


async def _cancel_at_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
