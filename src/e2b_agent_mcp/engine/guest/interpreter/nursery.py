"""Kernels that are forked: a request to the guest's parent, which has the packages in memory.

A wish and its answers are one message each: a wish names the kernel's variables, folder and
connection file and brings two descriptors, where to answer and where the kernel's log is. The
kernel answers with its pidfd, or an error; how it ended, the parent adds.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anyio

MAX_WISH = 1 << 20  # bytes
MAX_ANSWER = 4096  # bytes
FORK_TIMEOUT = 5.0  # seconds; usually 10 ms
LAST_WORD = 1.0  # seconds between a kernel's end and the word of how
# What every home's environment holds, and nothing else as long as nothing was installed.
UNTOUCHED = frozenset({"template.pth", "__pycache__"})


class ForkedKernel(NamedTuple):
    pidfd: int
    answers: socket.socket

    async def status(self) -> int | None:
        """How it ended, as `subprocess` would say; None when nobody knows."""
        with self.answers, anyio.move_on_after(LAST_WORD, shield=True):
            answer, _ = await _hear(self.answers)
            status: int | None = answer.get("status")
            return status
        return None


class Nursery:
    """The guest's end. Python kernels only, and none at all before it is attached."""

    def __init__(self) -> None:
        self._wishes: socket.socket | None = None

    def attach(self, wishes: socket.socket) -> None:
        wishes.setblocking(False)
        wishes.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_WISH)
        self._wishes = wishes

    async def fork(
        self, connection_file: Path, *, environ: Mapping[str, str], cwd: Path, log: Path
    ) -> ForkedKernel:
        """Raises `OSError` as starting a program would."""
        if self._wishes is None:
            raise OSError("there is no nursery")
        wish = {
            "environment": dict(environ),
            "cwd": str(cwd),
            "connection_file": str(connection_file),
        }
        answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("wb") as output:
            fds = [theirs.fileno(), output.fileno()]
            socket.send_fds(self._wishes, [json.dumps(wish).encode()], fds)
        try:
            with anyio.fail_after(FORK_TIMEOUT):
                answer, pidfds = await _hear(answers)
            if not pidfds:
                raise OSError(answer.get("error", "the process could not be forked"))
        except BaseException:
            answers.close()
            raise
        return ForkedKernel(pidfds[0], answers)


def is_untouched(python: Path) -> bool:
    """Whether a kernel of this environment would find the template's packages, all of them."""
    places = python.parent.parent.glob("lib/python*/site-packages")
    return all(set(os.listdir(place)) <= UNTOUCHED for place in places)


def tell(answers: socket.socket, answer: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Never waits: an answer that nobody takes is lost."""
    answers.setblocking(False)
    try:
        socket.send_fds(answers, [json.dumps(answer).encode()], fds)
    except OSError:
        return


async def _hear(answers: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """An empty answer when there will be none."""
    answers.setblocking(False)
    await anyio.wait_readable(answers)
    data, fds, _, _ = socket.recv_fds(answers, MAX_ANSWER, 1)
    return json.loads(data or b"{}"), fds
