"""Boxes by gVisor (`runsc`): a kernel of its own between the sandbox and the host's.

Rules:
- `runsc` runs as root in a pid namespace that bubblewrap makes: what it starts dies with it, is
  counted with it and stands still with it, as the processes of any other box.
- The guest listens in a folder that it may write. Whoever connects from outside opens the socket
  itself first and follows no link, so the guest can offer nothing else of the host.
- Other programs in a box (those that count or copy a home) use bubblewrap alone.

No checkpoints: `runsc` 20221219 saves no TCP socket that epoll watches, and every ipykernel has
one; a save that fails ends the sandbox. A pause keeps the memory by standing still.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import stat
import tempfile
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ..errors import LaunchError
from .bubblewrap import EGRESS, HOME, build_command, build_environment
from .limits import MIB
from .owner import Owner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from .box import Box, Launcher
    from .bubblewrap import BoxSpec

SOCKET = "/run/guest/s"  # in a box
CHUNK = 64 * 1024  # bytes
GUEST_TIMEOUT = 60.0  # seconds until the guest listens
LOOK_AGAIN = 0.02  # seconds between two looks for its socket
PROCESS_FACTOR = 4  # threads of gVisor's own for each of a box

_PLACES = ("proc", "dev", "tmp", "var", "run", "home", "opt", "etc", "usr")


@dataclass(frozen=True, kw_only=True)
class Runsc:
    """`launcher` is bubblewrap's, whose namespaces hold it."""

    program: Path
    version: str
    launcher: Launcher
    platform: str = "ptrace"  # the one that every version has

    async def launch(self, spec: BoxSpec) -> Box:
        """Returns when the guest listens, or the command runs."""
        parent = spec.egress_dir.parent if spec.egress_dir is not None else None
        folder = Path(tempfile.mkdtemp(suffix=".net", dir=parent))
        async with AsyncExitStack() as on_error:
            on_error.callback(shutil.rmtree, folder, ignore_errors=True)
            self._prepare(spec, folder)
            box = await self._start(spec, folder)
            box.opaque = True
            box.also_frees(on_error.pop_all())
        if spec.listener is not None:
            try:
                await _serve(box, spec.listener, folder / "guest/s")
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await box.aclose()
                raise
        return box

    def _prepare(self, spec: BoxSpec, folder: Path) -> None:
        owner = self.launcher.owner
        folder.chmod(0o711)
        for name in ("guest", "rootfs", "state"):
            (folder / name).mkdir(mode=0o755)
        owner.take(folder / "guest")
        for name in _PLACES:
            (folder / "rootfs" / name).mkdir()
        for target, link in self.launcher.tree.links:
            (folder / "rootfs" / link.lstrip("/")).symlink_to(target)
        for name in self.launcher.tree.folders:
            (folder / "rootfs" / name.lstrip("/")).mkdir()
        (folder / "passwd").write_text(f"user:x:{owner.uid}:{owner.gid}:user:{HOME}:/bin/bash\n")
        (folder / "config.json").write_text(json.dumps(build_config(spec, self.launcher, folder)))

    async def _start(self, spec: BoxSpec, folder: Path) -> Box:
        root = replace(self.launcher, owner=Owner(0, 0, is_other=False))
        limits = replace(spec.limits, max_processes=spec.limits.max_processes * PROCESS_FACTOR)
        with root.restraints(replace(spec, limits=limits)) as restraints:
            return await root.start(
                spec.sandbox_id,
                ["--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--cap-add", "ALL"],
                [
                    *(str(self.program), "--root", str(folder / "state")),
                    *("--network=none", "--ignore-cgroups", "--host-uds=all"),
                    # Its name is that of a socket which all the host's runsc share.
                    *(f"--platform={self.platform}", "run", f"--bundle={folder}", folder.name),
                ],
                environment={"PATH": os.defpath},
                inherited=[],
                restraints=restraints,
            )


def build_config(spec: BoxSpec, launcher: Launcher, folder: Path) -> dict[str, object]:
    """What the container runtimes' specification calls a bundle's configuration."""
    owner = launcher.owner
    # gVisor counts nothing by user: such limits say nothing there, and some cannot be set.
    arguments = build_command(replace(spec, listener=None), kernel="")
    if spec.listener is not None:
        arguments += ["--listen-path", SOCKET]
    nothing: list[str] = []
    rights = dict.fromkeys(("bounding", "effective", "inheritable", "permitted"), nothing)
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": owner.uid, "gid": owner.gid},
            "args": arguments,
            "env": [f"{name}={value}" for name, value in build_environment(spec).items()],
            "cwd": HOME,
            "noNewPrivileges": True,
            "capabilities": rights,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "sandbox",
        "mounts": list(_mounts(spec, launcher, folder)),
        "linux": {"namespaces": [{"type": t} for t in ("pid", "network", "ipc", "uts", "mount")]},
    }


def _mounts(spec: BoxSpec, launcher: Launcher, folder: Path) -> Iterator[dict[str, object]]:
    yield {"destination": "/proc", "type": "proc", "source": "proc"}
    for target, size in (("/tmp", spec.limits.tmp_mb), ("/dev/shm", spec.limits.shm_mb)):  # noqa: S108
        options = [f"size={size * MIB}", "mode=1777"]
        yield {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}
    yield _bind(Path("/usr"), "/usr")
    for name in launcher.tree.folders:
        yield _bind(Path(name), name)
    for source, target in spec.template.binds:
        yield _bind(source, target)
        if target == "/etc":
            yield _bind(folder / "passwd", "/etc/passwd")
    if spec.egress_dir is not None:
        yield _bind(spec.egress_dir, EGRESS)
    yield _bind(folder / "guest", str(Path(SOCKET).parent), "rw")
    yield _bind(spec.home, HOME, "rw")


def _bind(source: Path, target: str, access: str = "ro") -> dict[str, object]:
    return {
        "destination": target,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", access, "nosuid", "nodev"],
    }


async def _serve(box: Box, listener: socket.socket, guest: Path) -> None:
    """Connections of the engine's are carried to the guest until the box has ended."""
    with anyio.move_on_after(GUEST_TIMEOUT):
        while not box.ended:
            with suppress(OSError, LaunchError):
                (await _connect(guest)).close()
                break
            await anyio.sleep(LOOK_AGAIN)  # a file system tells nobody of a socket that listens
    if box.ended:
        raise LaunchError(f"gVisor made no box: {box.log.strip()}")

    async def carry(client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        with suppress(OSError, LaunchError):
            inside, requests = await asyncio.open_unix_connection(sock=await _connect(guest))
            await _both_ways((client, requests), (inside, answers))
        answers.close()

    server = await asyncio.start_unix_server(carry, sock=listener.dup(), limit=CHUNK)
    frees = AsyncExitStack()
    frees.callback(server.close)
    box.also_frees(frees)


async def _connect(guest: Path) -> socket.socket:
    """To a socket and nothing else, though the sandbox can put anything in its place."""
    with ExitStack() as held:
        fd = os.open(guest, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        held.callback(os.close, fd)
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise LaunchError("the guest does not listen")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        on_error = held.enter_context(ExitStack())
        on_error.callback(connection.close)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, f"/proc/self/fd/{fd}")
        on_error.pop_all()
        return connection


Way = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _both_ways(one: Way, other: Way) -> None:
    """When either side ends, so does the connection: each carries one exchange."""
    try:
        async with anyio.create_task_group() as tasks:
            for reader, writer in (one, other):
                tasks.start_soon(_pump, reader, writer, tasks.cancel_scope)
    finally:
        for _, writer in (one, other):
            writer.transport.abort() if writer.transport.is_closing() else writer.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: anyio.CancelScope
) -> None:
    with suppress(OSError):
        async for data in _chunks(reader):
            writer.write(data)
            await writer.drain()
    connection.cancel()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(CHUNK):
        yield data
