"""The kernel program: ipykernel, quiet, without history file, debugger or colours.

Its output never gets lost and never grows without bound: the publishing socket blocks when
the reader is behind (ipykernel's own would drop messages), and `output` makes a printing
thread wait for it.
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

# Looking for debugpy costs a kernel 140 ms and 10 MiB. A user may still import it.
sys.modules["debugpy"] = None  # type: ignore[assignment]
import zmq  # noqa: E402
from ipykernel import ipkernel  # noqa: E402
from ipykernel.ipkernel import IPythonKernel  # noqa: E402
from ipykernel.kernelapp import IPKernelApp  # noqa: E402
from IPython.core import shellapp  # noqa: E402
from traitlets.config import Config  # noqa: E402

del sys.modules["debugpy"]

from . import commands, formats, images, output, shell  # noqa: E402

PR_SET_PDEATHSIG = 1
SEND_HIGH_WATER = 8  # messages; `output.CHUNK` bounds the ones that a print makes


class Kernel(IPythonKernel):
    """Interrupts a cell that awaits. ipykernel's own way leaves a sleeping loop asleep, and
    cannot stop code between two awaits."""

    # `Any`: what the app tells, itself as `parent`.
    def __init__(self, **told: Any) -> None:
        shell.forget_another(told["parent"].config)
        super().__init__(**told)
        shell.give(self)

    @contextmanager
    def _cancel_on_sigint(self, cell: asyncio.Task[Any]) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def interrupt(*args: Any) -> None:
            if asyncio.current_task(loop) is cell:
                raise KeyboardInterrupt
            loop.call_soon_threadsafe(cell.cancel)

        previous = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)


class KernelApp(IPKernelApp):
    """A kernel whose output socket waits for a slow reader instead of dropping.

    It leaves out what looks at every module or option: a forked kernel shares them with others
    in memory, and a look (its reference count) is a copy.
    """

    name = "e2b-kernel"
    modules: frozenset[str]

    def parse_command_line(self, argv: Any = None) -> None:
        """There is none."""

    def _configure_logging(self) -> None:
        """For its log alone: to configure logging as a whole looks at every logger there is."""
        logging.getLogger(type(self).__name__).setLevel(logging.CRITICAL)

    def update_config(self, config: Config) -> None:
        """IPython repeats what it was told first, in case that a file has said otherwise."""
        if config != self.config:
            super().update_config(config)

    def init_pdb(self) -> None:
        """Done by `make_app`."""

    def init_heartbeat(self) -> None:
        """Nobody listens to it; it would be three threads."""

    def init_kernel(self) -> None:
        # The files of all modules would be for a debugger, which we have not.
        with _replaced(ipkernel, "sys", _SystemWithoutModules()):
            super().init_kernel()

    def init_code(self) -> None:
        with _replaced(shellapp, "sys", _SystemWithoutModules()):
            super().init_code()
        self.shell._sys_modules_keys = self.modules  # `%reset -f aggressive` spares them

    def init_iopub(self, context: zmq.Context[Any]) -> None:
        class Lossless(zmq.Context[Any]):
            def socket(self, *args: Any, **kwargs: Any) -> Any:
                socket = super().socket(*args, **kwargs)
                if socket.socket_type == zmq.XPUB:
                    socket.set_hwm(SEND_HIGH_WATER)
                    socket.setsockopt(zmq.XPUB_NODROP, 1)
                return socket

        super().init_iopub(Lossless(shadow=context))


@contextmanager
def _replaced(module: ModuleType, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


class _SystemWithoutModules:
    modules: ClassVar[dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def make_app() -> KernelApp:
    """The one of this process; a zygote makes it for all that it forks."""
    app: KernelApp = KernelApp.instance(config=_config())
    if not hasattr(app, "modules"):
        app.modules = frozenset(sys.modules)
        IPKernelApp.init_pdb(app)
    return app


def main(connection_file: str) -> None:
    _die_with_parent()
    app = make_app()
    app.connection_file = connection_file
    try:
        app.initialize([])
        formats.install(app.shell)
        output.keep_none(app.shell)
        images.install()
        commands.install()
    except BaseException:  # zmq's threads would keep a half-made kernel from ending
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    _silence_the_original_streams()
    _unset_colours()
    app.start()


def _config() -> Config:
    config = Config()
    config.IPKernelApp.kernel_class = Kernel
    config.IPKernelApp.outstream_class = "e2b_startup.output.BoundedStream"
    config.IPKernelApp.log_level = "CRITICAL"
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.autocall = 0
    config.PlainTextFormatter.max_seq_length = 0
    config.HistoryManager.enabled = False
    config.Session.copy_threshold = 1 << 30  # without a copy, zmq needs a thread that frees
    config.IPythonKernel._execute_sleep = 0.0  # for streams that may not have flushed; ours have
    return config


def _die_with_parent() -> None:
    """A kernel outside of a box must not outlive its guest; in a box all die together."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _unset_colours() -> None:
    """ipykernel tells the programs that a cell starts to write for a colour terminal."""
    for name in ("CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR"):
        os.environ.pop(name, None)
    os.environ["TERM"] = "dumb"


def _silence_the_original_streams() -> None:
    """ipykernel echoes what subprocesses print to the log that it was started with."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        original = getattr(stream, "_original_stdstream_copy", None)
        if original is not None:
            os.dup2(null, original)
    os.close(null)
