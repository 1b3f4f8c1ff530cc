"""The kernel's shell. A zygote builds one ahead of all kernels: they share it in memory.

What a shell learns from where it is built (folder, variables, `__main__`), it learns again when
its kernel takes it. It is ipykernel's own: libraries know it by the name of its class.
"""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

from ipykernel.compiler import XCachingCompiler
from ipykernel.zmqshell import ZMQInteractiveShell
from traitlets.config import Config


def build_ahead(config: Config) -> None:
    """Leaves the process as it was but for the shell."""
    environ, main = dict(os.environ), sys.modules["__main__"]
    shell = ZMQInteractiveShell.instance(config=config, compiler_class=XCachingCompiler)
    atexit.unregister(shell.atexit_operations)
    sys.modules["__main__"] = main
    os.environ.clear()
    os.environ.update(environ)


def forget_another(config: Config) -> None:
    """A file of the user's own may configure the shell otherwise."""
    if ZMQInteractiveShell.initialized() and ZMQInteractiveShell.instance().config != config:
        ZMQInteractiveShell.clear_instance()


# `Any`: a kernel and its shell, which have no types.
def give(kernel: Any) -> None:
    """To the kernel, if the shell that it found was built ahead."""
    shell = kernel.shell
    if shell.kernel is kernel:
        return
    shell.parent = shell.kernel = kernel
    shell.profile_dir = kernel.profile_dir
    shell.starting_dir = os.getcwd()
    shell.history_manager.dir_hist[:] = [Path.cwd()]
    shell.init_environment()
    shell.init_virtualenv()
    shell.sys_excepthook = sys.excepthook
    shell.save_sys_module_state()
    shell.init_sys_modules()
    atexit.register(shell.atexit_operations)
