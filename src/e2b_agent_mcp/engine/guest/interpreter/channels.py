"""Jupyter's wire protocol, the client's side, on two zmq sockets.

Spoken here and not through jupyter_client: importing it adds 0.1 s of CPU to the 0.27 s that a
guest takes to start, and its sockets' buffers are not ours to bound: few messages are held at a
time, and a kernel whose output nobody takes waits.
"""

import hashlib
import hmac
import json
import socket as sockets
import uuid
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import anyio
import zmq
import zmq.asyncio

from .messages import DELIMITER, Message

RECONNECT = 10  # ms between tries while the kernel starts
RECEIVE_HIGH_WATER = 8  # messages in zmq; the rest of a busy kernel's output waits there
INBOX = 4  # messages
INFO_REPEAT = 0.05  # seconds between questions until the kernel's output arrives here
LAST_WORDS = 50  # ms to take what a dead kernel had sent
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")

Transport = Literal["ipc", "tcp"]


class Channels:
    """A kernel's shell and output sockets, in a folder that only this sandbox sees."""

    def __init__(self, folder: Path, transport: Transport) -> None:
        self.connection_file = folder / "connection.json"
        # Nobody else reaches an ipc socket; who reads its folder would find a key there, too.
        self._key = "" if transport == "ipc" else uuid.uuid4().hex
        self._session = uuid.uuid4().hex
        # Absolute: a kernel's working folder is another one.
        self._address = f"ipc://{folder / 'zmq'}-" if transport == "ipc" else "tcp://127.0.0.1:"
        self._ports = _choose_ports(transport)
        self._write_connection_file()
        context = zmq.asyncio.Context.instance()
        self._shell = self._connect(context.socket(zmq.DEALER), "shell")
        self._output = context.socket(zmq.SUB)
        self._output.subscribe(b"")
        self._connect(self._output, "iopub")
        self._inbox, self.messages = anyio.create_memory_object_stream[Message](INBOX)
        self._request: str | None = None

    def _write_connection_file(self) -> None:
        transport, _, address = self._address.partition("://")
        info = {
            "transport": transport,
            "ip": address[:-1],
            "key": self._key,
            "signature_scheme": "hmac-sha256",
            "kernel_name": "",
        }
        ports = {f"{name}_port": port for name, port in self._ports.items()}
        self.connection_file.write_text(json.dumps(info | ports))

    def _connect(self, socket: zmq.asyncio.Socket, name: str) -> zmq.asyncio.Socket:
        socket.linger = 0
        socket.reconnect_ivl = RECONNECT
        socket.rcvhwm = RECEIVE_HIGH_WATER
        socket.connect(f"{self._address}{self._ports[name]}")
        return socket

    async def request(self, kind: str, content: dict[str, Any]) -> str:
        """Sends; from now on what the kernel says to it arrives in `messages`."""
        self._discard()
        self._request = uuid.uuid4().hex
        header = {
            "msg_id": self._request,
            "msg_type": kind,
            "session": self._session,
            "username": "user",
            "date": datetime.now(UTC).isoformat(),
            "version": "5.3",
        }
        parts = [json.dumps(part).encode() for part in (header, {}, {}, content)]
        await self._shell.send_multipart([DELIMITER, self._sign(parts), *parts])
        return self._request

    def _sign(self, parts: list[bytes]) -> bytes:
        if not self._key:
            return b""
        return hmac.new(self._key.encode(), b"".join(parts), hashlib.sha256).hexdigest().encode()

    def release(self) -> None:
        """Nobody reads `messages` until the next request; what comes meanwhile is dropped."""
        self._request = None
        self._discard()

    def _discard(self) -> None:
        with suppress(anyio.WouldBlock, anyio.EndOfStream):
            while True:
                self.messages.receive_nowait()

    async def serve(self) -> None:
        """Moves messages into `messages`, for as long as the kernel lives."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._pump, self._shell)
            tasks.start_soon(self._pump, self._output)

    async def drain(self) -> None:
        """What a kernel that has died said before; then `messages` ends."""
        while await self._output.poll(LAST_WORDS):
            await self._deliver(await self._output.recv_multipart())
        self._inbox.close()

    async def _pump(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            await self._deliver(await socket.recv_multipart())

    async def _deliver(self, frames: list[bytes]) -> None:
        message = Message.read(frames)
        if message and self._request and self._concerns(message):
            await self._inbox.send(message)

    def _concerns(self, message: Message) -> bool:
        # A thread that an earlier cell started prints into the cell that runs now.
        shown = message.kind in ("stream", "display_data")
        return message.parent == self._request or (shown and bool(message.parent))

    async def wait_ready(self) -> None:
        """Until the kernel answers *and* its output is heard: a subscription takes a moment."""
        answered = heard = False
        while not (answered and heard):
            await self.request("kernel_info_request", {})
            with anyio.CancelScope() as patience:
                while not (answered and heard):
                    message = await self.messages.receive()
                    heard = heard or message.kind == "status"
                    if message.kind == "kernel_info_reply":
                        answered = True
                        patience.deadline = anyio.current_time() + INFO_REPEAT

    def close(self) -> None:
        self._inbox.close()
        self._shell.close()
        self._output.close()


def _choose_ports(transport: Transport) -> dict[str, int]:
    """For TCP, ports that were free a moment ago; for ipc, the ends of file names."""
    if transport == "ipc":
        return {name: number for number, name in enumerate(CHANNELS, start=1)}
    with ExitStack() as held:
        chosen = [held.enter_context(sockets.create_server(("127.0.0.1", 0))) for _ in CHANNELS]
        return {n: s.getsockname()[1] for n, s in zip(CHANNELS, chosen, strict=True)}
