"""The `process.Process` service: its messages on the wire, `processes.py` behind them."""

import base64
import signal
from collections.abc import AsyncIterator

from starlette.routing import Route

from .processes import Channel, Command, Data, End, Event, Process, Processes, TerminalSize
from .rpc import Call, Emit, Fields, Reply, RpcError, client_stream, server_stream, unary

KEEPALIVE: Reply = {"event": {"keepalive": {}}}
SIGNALS = {
    "SIGNAL_SIGTERM": signal.SIGTERM,
    "SIGNAL_SIGKILL": signal.SIGKILL,
}


def process_routes(processes: Processes) -> list[Route]:
    service = ProcessService(processes)
    methods = {
        "List": unary(service.list),
        "Start": server_stream(service.start, keepalive=KEEPALIVE),
        "Connect": server_stream(service.connect, keepalive=KEEPALIVE),
        "Update": unary(service.update),
        "SendInput": unary(service.send_input),
        "StreamInput": client_stream(service.stream_input),
        "SendSignal": unary(service.send_signal),
        "CloseStdin": unary(service.close_stdin),
    }
    return [
        Route(f"/process.Process/{name}", endpoint, methods=["POST"])
        for name, endpoint in methods.items()
    ]


class ProcessService:
    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    async def list(self, call: Call) -> Reply:
        return {"processes": [_info(process) for process in self._processes.list()]}

    async def start(self, call: Call, emit: Emit) -> None:
        process = await self._processes.start(_command(call.fields), call.timeout)
        await _follow(process, emit)

    async def connect(self, call: Call, emit: Emit) -> None:
        await _follow(self._selected(call.fields, ended=True), emit)

    async def update(self, call: Call) -> Reply:
        process = self._selected(call.fields)
        if size := _terminal_size(call.fields):
            process.resize(size)
        return {}

    async def send_input(self, call: Call) -> Reply:
        await _send(self._selected(call.fields), call.fields.message("input"))
        return {}

    async def stream_input(self, messages: AsyncIterator[Fields]) -> Reply:
        process: Process | None = None
        async for message in messages:
            if "start" in message:
                process = self._selected(message.message("start"))
            elif "data" in message:
                if process is None:
                    raise RpcError("invalid_argument", "data came before the process was named")
                await _send(process, message.message("data").message("input"))
        return {}

    async def send_signal(self, call: Call) -> Reply:
        process = self._selected(call.fields)
        name = call.fields.text("signal")
        if name not in SIGNALS:
            raise RpcError("invalid_argument", f"the signal must be one of {', '.join(SIGNALS)}")
        process.send_signal(SIGNALS[name])
        return {}

    async def close_stdin(self, call: Call) -> Reply:
        process = self._selected(call.fields)
        if process.command.terminal:
            raise RpcError("failed_precondition", "a terminal has no stdin to close: send Ctrl+D")
        process.close_input()
        return {}

    def _selected(self, fields: Fields, *, ended: bool = False) -> Process:
        selector = fields.message("process")
        key = selector.number("pid") if "pid" in selector else selector.text("tag")
        return self._processes.find(key, ended=ended)


async def _follow(process: Process, emit: Emit) -> None:
    with process.subscribe() as events:
        await emit({"event": {"start": {"pid": process.pid}}})
        async for event in events:
            await emit(_event(event))


def _event(event: Event) -> Reply | bytes:
    match event:
        case Data(channel, octets):
            # Base64 needs no escaping: half of the time that output takes in the guest.
            data = base64.b64encode(octets)
            return b'{"event":{"data":{"%s":"%s"}}}' % (channel.encode(), data)
        case End(returncode, limit):
            return {"event": {"end": _end(returncode, limit)}}


def _end(returncode: int, limit: str) -> Reply:
    if returncode == 0:
        return {"exitCode": 0, "exited": True, "status": "exit status 0"}
    if returncode > 0:
        status = f"exit status {returncode}"
        return {"exitCode": returncode, "exited": True, "status": status, "error": status}
    name = signal.strsignal(-returncode) or str(-returncode)
    status = f"signal: {name.lower()}"
    error = f"{status}: {limit}" if limit else status
    return {"exitCode": -1, "exited": False, "status": status, "error": error}


async def _send(process: Process, message: Fields) -> None:
    channel: Channel = "pty" if "pty" in message else "stdin"
    await process.send_input(channel, message.octets(channel))


def _command(fields: Fields) -> Command:
    process = fields.message("process")
    return Command(
        program=process.text("cmd"),
        arguments=tuple(process.texts("args")),
        variables=process.mapping("envs"),
        cwd=process.text("cwd") or None,
        stdin=fields.flag("stdin") if "stdin" in fields else True,
        terminal=_terminal_size(fields),
        tag=fields.text("tag") or None,
    )


def _terminal_size(fields: Fields) -> TerminalSize | None:
    if "pty" not in fields:
        return None
    size = fields.message("pty").message("size")
    columns, rows = size.number("cols"), size.number("rows")
    if not (0 <= columns < 2**16 and 0 <= rows < 2**16):
        raise RpcError("invalid_argument", "the terminal's size is out of range")
    return TerminalSize(columns, rows)


def _info(process: Process) -> Reply:
    command = process.command
    config: dict[str, object] = {
        "cmd": command.program,
        "args": command.arguments,
        "envs": command.variables,
    }
    if command.cwd:
        config["cwd"] = command.cwd
    tag = {"tag": command.tag} if command.tag else {}
    return {"config": config, "pid": process.pid, **tag}
