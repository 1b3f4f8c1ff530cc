"""`!command` in a cell: an interrupt ends the command with all that it started, and then the cell.

IPython's own forgets an interrupt that comes while it forks, which takes a kernel of many packages
milliseconds, or leaves the command running; and the cell goes on where the command was stopped.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

from ipykernel import zmqshell
from IPython.core import interactiveshell

GRACE = 0.2  # seconds between an interrupt and the end by force
LOOK = 0.05  # seconds of silence after which a command is looked at
READ = 1 << 16  # bytes


def install() -> None:
    zmqshell.system = system
    interactiveshell.getoutput = getoutput


def system(command: str) -> int:
    """Runs it in a terminal, as IPython does; a negative status is the signal that ended it."""
    import pexpect

    child: Any = None
    try:
        with _interrupts_later():
            child = pexpect.spawn(
                _shell(), ["-c", command], encoding="utf-8", codec_errors="replace"
            )
            child.ptyproc.delayafterclose = 0.0
        _show(child)
    except BaseException:
        with _interrupts_later():
            if child is not None:
                _signal(child.pid, signal.SIGINT)
                _show(child, seconds=GRACE)
                _signal(child.pid, signal.SIGKILL)
                child.wait()
                child.close()
        raise
    child.close()
    status: int = -child.signalstatus if child.exitstatus is None else child.exitstatus
    return 128 - status if status > 128 else status  # a shell's word for a signal


def getoutput(command: str) -> str:
    """What it prints, on both channels together."""
    process: subprocess.Popen[bytes] | None = None
    try:
        with _interrupts_later():
            process = subprocess.Popen(
                [_shell(), "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout as output:
            said = output.read()
        process.wait()
        return said.decode("utf-8", "replace")
    except BaseException:
        with _interrupts_later():
            if process is not None:
                _signal(process.pid, signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
                _signal(process.pid, signal.SIGKILL)
                process.wait()
        raise


# Any: a `pexpect.spawn`; the package is the template's.
def _show(child: Any, *, seconds: float = inf) -> None:
    """Prints what it prints until it ends, or for so long."""
    import pexpect

    until = time.monotonic() + seconds
    with suppress(pexpect.EOF):
        while time.monotonic() < until:
            with suppress(pexpect.TIMEOUT):
                print(child.read_nonblocking(READ, LOOK), end="", flush=True)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """An interrupt that comes in this block is raised at its end."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: came.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came.is_set():
            signal.raise_signal(signal.SIGINT)


def _shell() -> str:
    return os.environ.get("SHELL") or "sh"
