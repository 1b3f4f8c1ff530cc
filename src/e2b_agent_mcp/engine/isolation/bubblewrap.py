"""The arguments for bubblewrap: everything a box can see, in the order it is mounted.

Rules: the box has a root of its own and starts with nothing of the host. What is bound is
read-only, but for the home. The home is the last mount and nothing is ever mounted below it:
bubblewrap would follow a symlink that the sandbox planted there in an earlier life (advisory
GHSA-pxhw-h44j-8pfx). A box never has the host's network.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .limits import MIB, Limits

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping

HOME = "/home/user"
EGRESS = "/run/egress"
HOMES = "/run/homes"  # in the zygote's box
PROXY = "http://127.0.0.1:3128"  # the relay of the guest, which leads to EGRESS
BOX_UID = 1000
BOX_GID = 1000

_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


class Bind(NamedTuple):
    """Read-only; `target` is the path in the box."""

    source: Path
    target: str


@dataclass(frozen=True)
class HostTree:
    """How the host's root is laid out: `links` as /bin -> usr/bin, `folders` if not merged."""

    links: tuple[tuple[str, str], ...] = ()
    folders: tuple[str, ...] = ()


class BoxTemplate(Protocol):
    """What every box of a template has in common; `binds` are of the host, read-only."""

    @property
    def binds(self) -> tuple[Bind, ...]: ...
    @property
    def environment(self) -> Mapping[str, str]: ...
    @property
    def command(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True)
class BoxSpec:
    """One box to launch. `home` must belong to the box's user; `egress_dir` None is no network.

    `listener` is inherited by the guest. `command` replaces the template's.
    """

    sandbox_id: str
    home: Path
    template: BoxTemplate
    listener: socket.socket | None = None
    egress_dir: Path | None = None
    limits: Limits = field(default_factory=Limits)
    env: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] | None = None


def read_host_tree(root: Path = Path("/")) -> HostTree:
    links, folders = [], []
    for name in _SYSTEM_FOLDERS:
        path = root / name
        if path.is_symlink():
            links.append((os.readlink(path), f"/{name}"))
        elif path.is_dir():
            folders.append(f"/{name}")
    return HostTree(tuple(links), tuple(folders))


def build_arguments(spec: BoxSpec, tree: HostTree, *, disable_userns: bool) -> list[str]:
    """What the box consists of, whoever makes it and whatever runs in it."""
    return [
        *_namespaces(disable_userns),
        *_file_system(spec.template, tree, spec.limits),
        *_egress(spec),
        *("--dir", HOME),
        *("--remount-ro", "/"),
        *("--bind", str(spec.home), HOME, "--chdir", HOME),
    ]


def build_outer_arguments(
    template: BoxTemplate, tree: HostTree, folders: Mapping[str, Path], homes: Path
) -> list[str]:
    """The zygote's box. It holds what the boxes in it are made of: the template where they have
    it, `folders` (by their path in the box, read-only) and the homes."""
    return [
        *_namespaces(disable_userns=False),
        *_file_system(template, tree, Limits()),
        *(word for at, path in folders.items() for word in ("--ro-bind", str(path), at)),
        *("--tmpfs", HOME, "--dir", HOMES),
        *("--remount-ro", "/"),
        *("--bind", str(homes), HOMES, "--chdir", HOME),
    ]


def build_counter_arguments(home: Path, tree: HostTree) -> list[str]:
    """A box for a program of the host that may look everywhere in one home, and do nothing."""
    return [
        *_namespaces(disable_userns=False, uid=0),
        *("--cap-add", "CAP_DAC_READ_SEARCH", "--die-with-parent"),
        *_system(tree),
        *("--ro-bind", str(home), "/home", "--remount-ro", "/", "--"),
    ]


def build_rights() -> list[str]:
    """For a guest that is started: what `guest.rights` needs, before it gives up all of it."""
    return ["--cap-add", "CAP_SYS_RESOURCE", "--cap-add", "CAP_SETPCAP"]


def build_command(spec: BoxSpec, kernel: str, kills: str = "") -> list[str]:
    """The guest with what only this box knows, or the command that was asked for.

    `kills` are for the guest to read; see `kills.py`.
    """
    if spec.command is not None:
        return list(spec.command)
    command = [*spec.template.command, "--limits", spec.limits.to_json(kernel)]
    if kills:
        command += ["--kills", kills]
    if spec.listener is not None:
        command += ["--listen-fd", str(spec.listener.fileno())]
    return command


def _namespaces(disable_userns: bool, uid: int = BOX_UID) -> Iterator[str]:
    yield from ("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc")
    yield from ("--unshare-uts", "--unshare-cgroup-try")
    if disable_userns:
        yield from ("--disable-userns", "--assert-userns-disabled")
    yield from ("--uid", str(uid), "--gid", str(BOX_GID), "--hostname", "sandbox")
    yield from ("--new-session", "--cap-drop", "ALL")


def _file_system(template: BoxTemplate, tree: HostTree, limits: Limits) -> Iterator[str]:
    yield from _system(tree)
    yield from _devices(limits)
    yield from _binds(template)
    yield from ("--remount-ro", "/dev")


def _system(tree: HostTree) -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for target, link in tree.links:
        yield from ("--symlink", target, link)
    for folder in tree.folders:
        yield from ("--ro-bind", folder, folder)


def _devices(limits: Limits) -> Iterator[str]:
    """Memory filesystems have a size each; the ones that need none become read-only later."""
    yield from ("--proc", "/proc", "--dev", "/dev")
    yield from ("--size", str(limits.shm_mb * MIB), "--tmpfs", "/dev/shm")  # noqa: S108
    yield from ("--size", str(limits.tmp_mb * MIB), "--perms", "1777", "--tmpfs", "/tmp")  # noqa: S108
    yield from ("--dir", "/var", "--symlink", "../tmp", "/var/tmp")  # noqa: S108


def _binds(template: BoxTemplate) -> Iterator[str]:
    for source, target in template.binds:
        if Path(target).is_relative_to(HOME):
            raise ValueError(f"nothing may be mounted below the home: {target}")
        yield from ("--ro-bind", str(source), target)


def _egress(spec: BoxSpec) -> Iterator[str]:
    if spec.egress_dir is not None:
        yield from ("--ro-bind", str(spec.egress_dir), EGRESS)


def build_environment(spec: BoxSpec) -> dict[str, str]:
    """The variables that the guest starts with."""
    cpus = str(spec.limits.cpu_count)
    found = {
        **spec.template.environment,
        # Numeric libraries start a thread per core of the host otherwise.
        "OMP_NUM_THREADS": cpus,
        "OPENBLAS_NUM_THREADS": cpus,
    }
    if spec.egress_dir is not None:
        found |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), PROXY)
        found |= dict.fromkeys(("no_proxy", "NO_PROXY"), "localhost,127.0.0.1,::1")
    return found | dict(spec.env)


def set_environment(variables: Mapping[str, str]) -> Iterator[str]:
    """As arguments."""
    yield "--clearenv"
    for name, value in variables.items():
        yield from ("--setenv", name, value)
