"""Fills a template: packages by uv, the interpreter if it must be copied, a trial in a box."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio.streams.text import TextReceiveStream
from uv import find_uv_bin

from ..errors import TemplateError
from ..folders import move_into_place, remove_leftovers, staging
from ..isolation import BoxSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from ..index import PackageIndex
    from ..isolation import Isolation
    from . import Template
    from .interpreter import Interpreter
    from .turn import Progress

TRIAL_TIMEOUT = 300.0  # seconds; usually 10
ERROR_LINES = 20

# Settings of uv that say how to download, not from where: the index says that.
UV_KEPT = frozenset(
    {
        "UV_CACHE_DIR",
        "UV_CONCURRENT_DOWNLOADS",
        "UV_HTTP_RETRIES",
        "UV_HTTP_TIMEOUT",
        "UV_KEYRING_PROVIDER",
        "UV_SYSTEM_CERTS",
    }
)

# Runs in a box; matplotlib leaves its list of fonts where MPLCONFIGDIR says.
TRIAL = """
import sys
sys.path += ["/opt/e2b/lib", "/opt/e2b/site"]
import bz2, ctypes, hashlib, lzma, sqlite3, ssl, zlib
import anyio, h11, python_multipart, starlette, uvicorn
import ipykernel, jupyter_client, numpy, pandas, zmq
import matplotlib.font_manager
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`requirements` by the folder they go to; `template` describes one that lies at a path."""

    python: Interpreter
    requirements: Mapping[str, tuple[str, ...]]
    index: PackageIndex
    environ: Mapping[str, str]
    isolation: Isolation
    template: Callable[[Path], Template]


async def build(recipe: Recipe, place: Path, report: Progress) -> None:
    """The caller is the only one to build `place`."""
    remove_leftovers(place.parent, place.name)
    with staging(place.parent, place.name) as stage:
        report("preparing the sandbox template (first use only, about a minute)")
        await _copy_python(recipe.python, stage)
        for folder, requirements in recipe.requirements.items():
            await _install(recipe, stage / folder, requirements, report)
        repair_scripts(stage / "site/bin", recipe.python.executable)
        (stage / "fonts").mkdir()
        stage.chmod(0o755)  # for the trial
        report("trying the template in a box")
        await _try(recipe, stage)
        await anyio.to_thread.run_sync(move_into_place, stage, place)


async def _copy_python(python: Interpreter, stage: Path) -> None:
    """With bytecode for all of it: where it is mounted, none can be added."""
    await anyio.to_thread.run_sync(python.copy_to, stage)
    if python.needs_copy:
        library = stage / "python/lib" / python.version
        compile_all = [sys.executable, "-I", "-m", "compileall", "-q", "-j", "0", str(library)]
        await anyio.run_process(compile_all, check=False, env={})


async def _install(
    recipe: Recipe, target: Path, requirements: tuple[str, ...], report: Progress
) -> None:
    command = [find_uv_bin(), "pip", "install", "--target", str(target)]
    command += ["--python", str(recipe.python.prefix / "bin" / recipe.python.version)]
    # No source distribution: building one would run its code on the host.
    command += ["--compile-bytecode", "--no-build", "--no-progress", "--color", "never"]
    command += [*recipe.index.uv_arguments(), *requirements]
    said: deque[str] = deque(maxlen=ERROR_LINES)
    async with await anyio.open_process(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=target.parent,
        env=_uv_environment(recipe),
        umask=0o022,
    ) as uv:
        assert uv.stderr is not None
        async for line in _lines(TextReceiveStream(uv.stderr)):
            said.append(line)
            if message := describe(line):
                report(message)
        if await uv.wait() != 0:
            raise TemplateError(
                "The packages of the sandbox template could not be installed:\n"
                + without_credentials("\n".join(said))
            )


def describe(line: str) -> str | None:
    """What a line of uv's means to a person; None for what does not matter."""
    if found := re.match(r"Resolved (\d+) packages?", line):
        return f"installing {found[1]} packages"
    if found := re.match(r"Downloading (\S+) \((.+)\)", line):
        return f"downloading {found[1]} ({found[2]})"
    if found := re.match(r"Installed (\d+) packages?", line):
        return f"installed {found[1]} packages; compiling them"
    return None


def without_credentials(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//***@", text)


def _uv_environment(recipe: Recipe) -> dict[str, str]:
    """The host's, for proxies and the like, without what would change the result."""
    kept = {
        name: value
        for name, value in recipe.environ.items()
        if not name.startswith(("UV_", "PYTHON", "VIRTUAL_ENV", "CONDA_")) or name in UV_KEPT
    }
    return kept | recipe.index.uv_environment()


async def _lines(stream: TextReceiveStream) -> AsyncIterator[str]:
    rest = ""
    async for text in stream:
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line.strip()
    if rest:
        yield rest.strip()


def repair_scripts(folder: Path, executable: str) -> None:
    """Scripts name the interpreter alone, which finds the template's packages only by the venv."""
    for script in folder.iterdir():
        data = script.read_bytes()
        first, _, rest = data.partition(b"\n")
        if first.startswith(b"#!") and executable.rpartition("/")[2].encode() in first:
            script.write_bytes(b"#!/usr/bin/env python3\n" + rest)


async def _try(recipe: Recipe, stage: Path) -> None:
    """Imports everything in a real box, and takes over matplotlib's list of fonts."""
    owner = recipe.isolation.owner
    with tempfile.TemporaryDirectory(prefix="e2b-trial-") as home:
        owner.take(Path(home))
        template = recipe.template(stage)
        spec = BoxSpec(
            sandbox_id="trial",
            home=Path(home),
            template=template,
            command=(template.python, "-I", "-S", "-c", TRIAL),
            env={"MPLCONFIGDIR": "/home/user"},
        )
        with anyio.fail_after(TRIAL_TIMEOUT):
            async with await recipe.isolation.launch(spec) as box:
                if await box.wait() != 0:
                    raise TemplateError(f"The template does not work in a box:\n{box.log}")
        _take_fonts(Path(home), stage / "fonts")


def _take_fonts(home: Path, folder: Path) -> None:
    for fonts in home.glob("fontlist-*.json"):
        shutil.copyfile(fonts, folder / fonts.name, follow_symlinks=False)
