"""What the engine is measured against: kernels, a server and a pipe with nothing in between."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

KERNEL = "plain"
# Without what changes how a Python buffers and what it compiles again.
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

FILE_SERVER = """
import os, sys, uvicorn
from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.responses import FileResponse, Response
from starlette.routing import Route

async def up(request):
    with open(sys.argv[2], "wb") as file:
        async for chunk in request.stream():
            await run_sync(file.write, chunk)
    return Response(status_code=204)

async def down(request):
    return FileResponse(sys.argv[2])

app = Starlette(routes=[Route("/", up, methods=["POST"]), Route("/", down)])
server = uvicorn.Server(uvicorn.Config(app, fd=int(sys.argv[1]), log_level="error"))
server.run()
"""


STREAM_SERVER = """
import os, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

TYPES = {"execute": "application/x-ndjson", "Start": "application/connect+json"}

async def parts(content):
    for start in range(0, len(content), 1 << 18):
        yield content[start : start + (1 << 18)]

async def answer(request):
    await request.body()
    name = os.path.basename(request.url.path)
    with open(os.path.join(sys.argv[2], name), "rb") as file:
        return StreamingResponse(parts(file.read()), media_type=TYPES[name])

app = Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
server = uvicorn.Server(uvicorn.Config(app, fd=int(sys.argv[1]), log_level="error"))
server.run()
"""


class Kernels:
    """ipykernels with the packages of the template, started as any notebook starts one."""

    def __init__(self, python: str, site: Path, specs: Path) -> None:
        spec = {
            "argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "env": {"PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
            "display_name": KERNEL,
            "language": "python",
        }
        (specs / KERNEL).mkdir()
        (specs / KERNEL / "kernel.json").write_text(json.dumps(spec))
        self._specs = KernelSpecManager(kernel_dirs=[str(specs)])

    @asynccontextmanager
    async def kernel(self) -> AsyncIterator[tuple[int, AsyncKernelClient]]:
        """Its pid, and a client that it has answered."""
        manager = AsyncKernelManager(kernel_name=KERNEL, kernel_spec_manager=self._specs)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        await manager.start_kernel(env=dict(ENVIRON), **quiet)
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            yield manager.provisioner.pid, client
        finally:
            client.stop_channels()
            await manager.shutdown_kernel(now=True)


async def execute(client: AsyncKernelClient, code: str) -> dict[str, object]:
    """The reply; every message on the way is read, as a front end does."""

    def read(message: dict[str, object]) -> None:
        assert message["msg_type"] != "error", message

    reply: dict[str, object] = await client.execute_interactive(code, output_hook=read)
    return reply


def file_server(file: Path) -> AbstractContextManager[tuple[str, int]]:
    """A uvicorn that keeps one file and gives it back; its URL and pid."""
    return _server(FILE_SERVER, file)


def stream_server(folder: Path) -> AbstractContextManager[tuple[str, int]]:
    """One that answers what the SDK asks with what lies in a folder, in large parts."""
    return _server(STREAM_SERVER, folder)


@contextmanager
def _server(program: str, path: Path) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(listener.fileno()), str(path)],
            env=ENVIRON,
            pass_fds=[listener.fileno()],
        )
    try:
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def read_pipe(python: str, code: str) -> str:
    """What a program prints, as text, through a pipe."""
    done = subprocess.run([python, "-c", code], env=ENVIRON, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode()


@contextmanager
def scratch() -> Iterator[Path]:
    """Short (unix sockets) and open to pass (boxes of a root engine are another user's)."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)
