"""The first process of a box: it forks the guest, and then the kernels that the guest asks for.

It is the parent of both, tells the guest how a kernel ended, and ends with the guest. It stays
single-threaded, as a fork must be, which a guest is not.
"""

import json
import os
import select
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .. import __main__ as guest
from ..config import GuestConfig
from ..interpreter import nursery as client
from ..kills import Kills

if TYPE_CHECKING:
    from .server import Request

STARTUP = Path(client.__file__).parent / "startup"


class Imports(NamedTuple):
    """What kernels have from the zygote: variables that modules have set, and modules, by name,
    that they are not to find."""

    variables: dict[str, str]
    hidden: list[str]

    @classmethod
    def since(cls, imported: Collection[str], variables: dict[str, str]) -> Self:
        """User code that imports a package which the guest has too gets its own."""
        ours = [name for name in sys.modules if name not in imported and _is_ours(name)]
        # Names of their own, side by side: to hide a module copies the memory of its name.
        hidden = [name.encode().decode() for name in ours]
        for name in hidden:
            sys.modules[name] = sys.modules.pop(name)
        return cls(variables, hidden)


class Unborn:
    """A guest that lacks nothing but what its box tells; the parser of options costs it too."""

    def __init__(self) -> None:
        self.guest = guest.Guest(GuestConfig())
        self._options = guest.parse(["--listen-fd", "-1"])

    def options(self, request: "Request") -> Namespace:
        given = request.descriptors
        told = {
            **request.guest,
            "listen_fd": given.listener,
            "kills": Kills(tuple(given.kills), request.kills),
        }
        return Namespace(**{**vars(self._options), **told})


def run(request: "Request", hold: int, imports: Imports, unborn: Unborn) -> None:
    """Returns when the guest or, in a forked process, the kernel has ended."""
    given = request.descriptors
    for fd, standard in ((given.stdin, 0), (given.log, 1), (given.log, 2)):
        os.dup2(fd, standard)
    if request.program:
        _settle(request.environment)
        _start_program(request.program, hold)
        return
    options = unborn.options(request)
    guest.prepare(options, keep=frozenset({hold}))
    ours, guests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        os.close(hold)
        ours.close()
        _settle(request.environment)  # not earlier: what this process writes to, it copies
        _serve_guest(unborn.guest, options, guests)
        return
    guests.close()
    for fd in (given.listener, *given.kills):
        os.close(fd)
    _discard_stdin()
    kernel = _Nursery(ours, os.pidfd_open(child)).serve()
    ours.close()
    if kernel is not None:
        _run_kernel(kernel, imports)


def _start_program(program: list[str], hold: int) -> None:
    """Returns when it has ended."""
    guest.close_all_but(guest.STANDARD_FDS | {hold})
    child = os.fork()
    if child == 0:
        os.close(hold)
        os.execv(program[0], program)  # noqa: S606
    _discard_stdin()
    os.waitpid(child, 0)


def _serve_guest(ready: guest.Guest, options: Namespace, nursery: socket.socket) -> None:
    """Imports from now on are as safe as a guest's that was started: nothing from the home."""
    root, home = Path(guest.__file__).parent.parent, os.environ["HOME"]
    sys.path[:] = [entry for entry in sys.path if entry and not entry.startswith(home)]
    sys.path.append(str(root / "site"))
    ready.serve(options, nursery)


class _Nursery:
    """Waits for two things: a wish of the guest, and the end of a child."""

    def __init__(self, wishes: socket.socket, guest: int) -> None:
        self._wishes = wishes
        self._guest = guest
        self._kernels: dict[int, socket.socket] = {}  # by pidfd: who is to hear of the end
        self._poll = select.poll()
        self._poll.register(wishes, select.POLLIN)
        self._poll.register(guest, select.POLLIN)

    def serve(self) -> "_Kernel | None":
        """A kernel to become, in a forked process; None when the guest has ended."""
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._guest:
                    return None
                if fd != self._wishes.fileno():
                    self._bury(fd)
                elif (kernel := self._grant()) is not None:
                    return kernel

    def _grant(self) -> "_Kernel | None":
        message, fds, _, _ = socket.recv_fds(self._wishes, client.MAX_WISH, 2)
        if not message:
            self._poll.unregister(self._wishes)  # the guest is ending
            return None
        reply = socket.socket(fileno=fds[0])
        child = os.fork()
        if child == 0:
            return _Kernel(json.loads(message), reply, log=fds[1])
        os.close(fds[1])
        pidfd = os.pidfd_open(child)
        self._kernels[pidfd] = reply
        self._poll.register(pidfd, select.POLLIN)
        return None

    def _bury(self, pidfd: int) -> None:
        self._poll.unregister(pidfd)
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        assert ended is not None
        status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        with self._kernels.pop(pidfd) as reply:
            client.tell(reply, {"status": status})


class _Kernel:
    """What a forked process was asked to be."""

    def __init__(self, wish: dict[str, Any], reply: socket.socket, log: int) -> None:
        self.wish = wish
        self.reply = reply
        self.log = log


def _run_kernel(kernel: _Kernel, imports: Imports) -> None:
    os.setsid()
    os.dup2(kernel.log, 1)
    os.dup2(kernel.log, 2)
    os.close(kernel.log)
    with kernel.reply:
        try:
            os.chdir(kernel.wish["cwd"])
        except OSError as exc:
            client.tell(kernel.reply, {"error": str(exc)})
            return
        client.tell(kernel.reply, {}, [os.pidfd_open(os.getpid())])
    guest.close_all_but(guest.STANDARD_FDS)
    _set_environment({**imports.variables, **kernel.wish["environment"]})
    hidden = _hide(imports.hidden)  # noqa: F841 - kept: to free memory would copy it too
    _seed()
    sys.argv = [str(STARTUP), kernel.wish["connection_file"]]
    from e2b_startup.launch import main  # type: ignore[import-not-found]

    main(sys.argv[1])


def _settle(variables: dict[str, str]) -> None:
    _set_environment(variables)
    os.chdir(variables["HOME"])


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
    time.tzset()


def _discard_stdin() -> None:
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)


def _is_ours(name: str) -> bool:
    root = Path(guest.__file__).parent.parent
    place = getattr(sys.modules[name], "__file__", None) or ""
    return place.startswith((str(root / "guest"), str(root / "lib")))


def _hide(modules: list[str]) -> list[ModuleType]:
    """None but these are looked at: a look is a copy of memory that is shared."""
    root = Path(guest.__file__).parent.parent
    sys.path[:] = [entry for entry in sys.path if entry not in (str(root), str(root / "lib"))]
    return [sys.modules.pop(name) for name in modules]


def _seed() -> None:
    """Python's own `random` does it by itself."""
    import_module("numpy").random.seed()
