"""Boxes of both kinds, started and forked, for the tests that look at isolation itself."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from boxes import Boxes, running_zygotes
from e2b_agent_mcp.engine.index import PackageIndex, read_package_index
from e2b_agent_mcp.engine.isolation import Isolation, Zygotes, probe
from e2b_agent_mcp.engine.options import EngineOptions
from e2b_agent_mcp.engine.template import Template, ensure_template

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture(scope="module")
def index() -> PackageIndex:
    return read_package_index(os.environ, Path(sys.prefix))


@pytest.fixture(scope="module")
async def isolation() -> AsyncIterator[Isolation]:
    found = await probe(cache_dir=EngineOptions().cache_dir)
    async with found.limiting() as isolation:
        yield isolation


@pytest.fixture(scope="module")
async def template(isolation: Isolation, index: PackageIndex) -> Template:
    return await ensure_template(
        cache_dir=EngineOptions().cache_dir, isolation=isolation, index=index, environ=os.environ
    )


@pytest.fixture
def folder(isolation: Isolation) -> Iterator[Path]:
    """Short (unix sockets) and open to pass (boxes may be another user)."""
    with tempfile.TemporaryDirectory(prefix="e2b-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def home(folder: Path, isolation: Isolation) -> Path:
    home = folder / "home"
    home.mkdir(mode=0o700)
    isolation.owner.take(home)
    return home


@pytest.fixture(scope="module")
async def zygotes(isolation: Isolation, template: Template) -> AsyncIterator[Zygotes]:
    with tempfile.TemporaryDirectory(prefix="e2b-") as name:
        Path(name).chmod(0o711)
        async with running_zygotes(isolation, template, Path(name)) as zygotes:
            yield zygotes


@pytest.fixture
def started(isolation: Isolation, template: Template, home: Path) -> Boxes:
    return Boxes(isolation, template, home)


@pytest.fixture(params=["started", "forked"])
def boxes(request: pytest.FixtureRequest, started: Boxes) -> Iterator[Boxes]:
    if request.param == "started":
        yield started
        return
    zygotes: Zygotes = request.getfixturevalue("zygotes")
    home = zygotes.nest.homes_dir / secrets.token_hex(4)
    home.mkdir(mode=0o700)
    zygotes.nest.launcher.owner.take(home)
    yield Boxes(zygotes, started.template, home)
    shutil.rmtree(home)
