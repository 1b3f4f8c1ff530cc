"""The zygote's loop: one message is one box to enter, and forks one process for it.

`serve` returns only in forked processes, each with its role to play, so that a guest or kernel
ends as any program does, and not inside of a loop that is not its own.
"""

import gc
import json
import os
import socket
import sys
from typing import Any, NamedTuple

from . import entrance, nursery

MAX_REQUEST = 128 * 1024  # bytes
MAX_DESCRIPTORS = 16


class Request(NamedTuple):
    """`bubblewrap` is the command that makes the box. A `program` takes the guest's place.

    `kills` are words for the reasons that are counted in `descriptors.kills`.
    """

    bubblewrap: list[str]
    environment: dict[str, str]
    guest: dict[str, str]  # what only this box knows, by option
    program: list[str]
    kills: dict[str, str]
    descriptors: "Descriptors"


class Descriptors(NamedTuple):
    """`reply` hears the pidfds of init and nursery; `groups` are to be joined at once."""

    reply: int
    stdin: int
    log: int
    seccomp: int
    kills: list[int]
    groups: list[int]
    listener: int = -1

    @classmethod
    def of(cls, names: list[str], fds: list[int]) -> "Descriptors":
        """Of `kills` and `groups` there may be any number."""
        found: dict[str, Any] = {"kills": [], "groups": []}
        for name, fd in zip(names, fds, strict=True):
            if name in ("kills", "groups"):
                found[name].append(fd)
            else:
                found[name] = fd
        return cls(**found)


def serve(control: int, imports: nursery.Imports, unborn: nursery.Unborn) -> None:
    _become_forkable()
    with socket.socket(fileno=control) as engine:
        socket.send_fds(engine, [b"ready"], [os.pidfd_open(os.getpid())])
        request = _next_request(engine)
    if request is None:
        return
    hold = entrance.enter(request)
    nursery.run(request, hold, imports, unborn)


def _become_forkable() -> None:
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    # Python's cache of attributes holds names: to replace one in it copies the memory of both.
    sys._clear_type_cache()
    # Left to the end of the program: pages that a collection touches are no longer shared.
    gc.collect()
    gc.freeze()


def _next_request(engine: socket.socket) -> Request | None:
    """In a forked process the request to serve; None in the zygote when the engine has gone."""
    while True:
        message, fds, _, _ = socket.recv_fds(engine, MAX_REQUEST, MAX_DESCRIPTORS)
        _reap()
        if not message:
            return None
        if os.fork() == 0:
            fields: dict[str, Any] = json.loads(message)
            descriptors = Descriptors.of(fields.pop("names"), fds)
            request = Request(**fields, descriptors=descriptors)
            os.dup2(request.descriptors.log, 2)  # from here on all that goes wrong is the box's
            return request
        for fd in fds:
            os.close(fd)


def _reap() -> None:
    """The entrants of earlier boxes; what they leave is adopted by the outer box's init."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
