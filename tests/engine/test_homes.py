"""Folders that a hostile sandbox leaves are removed, whatever they are."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from e2b_agent_mcp.engine.homes import Removals, remove_tree

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

DEPTH = 300


async def test_a_deep_tree_is_removed_with_few_descriptors(tmp_path: Path) -> None:
    """Each level would else hold one, and the engine with all of them could make no sandbox."""
    home = folder = tmp_path / "home"
    for _ in range(DEPTH):
        folder.mkdir()
        folder /= "d"
    before = most = len(os.listdir("/proc/self/fd"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(remove_tree, home)
        while home.exists():
            most = max(most, len(os.listdir("/proc/self/fd")))
            await anyio.lowlevel.checkpoint()

    assert not home.exists()
    assert most - before < 20


async def test_a_removal_for_which_the_host_has_nothing_left_is_done_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "home"
    (home / "folder").mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Removals() as removals:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            removals.remove(home)
            with anyio.fail_after(5):
                while "is removed later" not in caplog.text:
                    await anyio.lowlevel.checkpoint()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert list(tmp_path.iterdir()) == []


async def test_what_a_sandbox_shut_or_linked_is_removed_and_nothing_else(tmp_path: Path) -> None:
    home, kept = tmp_path / "home", tmp_path / "kept"
    kept.mkdir(mode=0o500)
    (home / "shut/f").mkdir(parents=True)
    (home / "-rf\n").touch()
    (home / "link").symlink_to(kept)
    os.mkfifo(home / "fifo")
    (home / "shut").chmod(0)
    await remove_tree(home)
    await remove_tree(home)

    assert list(tmp_path.iterdir()) == [kept]
    assert kept.stat().st_mode & 0o777 == 0o500
