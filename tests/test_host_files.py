"""Host files that tools may touch: below the roots, and nowhere else whatever the path is."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import pytest

from e2b_agent_mcp.errors import E2BAgentError, PathNotAllowedError
from e2b_agent_mcp.server.host_files import open_source, open_target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Holds a file, links to a secret beside it, and a link to itself beside it."""
    root = tmp_path / "root"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "data.csv").write_bytes(b"a,b")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    (root / "link").symlink_to(secret / "key")
    (root / "links").symlink_to(secret)
    os.mkfifo(root / "pipe")
    (tmp_path / "alias").symlink_to(root)
    return root


def read(path: str | Path, *roots: Path) -> bytes:
    with open_source(str(path), roots) as file:
        return file.read()


def test_a_file_below_a_root_is_read(root: Path) -> None:
    assert read(root / "deep" / "data.csv", root) == b"a,b"


def test_a_root_may_be_a_link_that_the_operator_made(root: Path) -> None:
    alias = root.parent / "alias"
    assert read(alias / "deep" / "data.csv", alias) == b"a,b"
    assert read(root / "deep" / "data.csv", alias) == b"a,b"


ESCAPES = [
    pytest.param("{root}/link", id="a link to a file"),
    pytest.param("{root}/links/key", id="through a link to a folder"),
    pytest.param("{root}/../secret/key", id="dots"),
    pytest.param("{root}/deep/../../secret/key", id="dots further down"),
    pytest.param("{root}x/key", id="a folder whose name only starts alike"),
    pytest.param("/etc/passwd", id="elsewhere"),
    pytest.param("{root}", id="the root itself"),
    pytest.param("deep/data.csv", id="a relative path"),
    pytest.param("{root}/deep/data.csv\0", id="a null"),
    pytest.param("{root}/pipe", id="a pipe"),
    pytest.param("{root}/deep", id="a folder"),
    pytest.param("{root}/missing", id="no file"),
    pytest.param("{root}/missing/file", id="no folder"),
]


@pytest.mark.parametrize("path", ESCAPES)
def test_nothing_else_is_read(root: Path, path: str) -> None:
    with pytest.raises(E2BAgentError, match="source_path: "):
        read(path.format(root=root), root)


@pytest.mark.parametrize("path", ["{root}/links/new", "{root}/../new", "/tmp/new", "{root}/deep"])
def test_nothing_is_written_elsewhere(root: Path, path: str) -> None:
    before = snapshot(root.parent)
    with (
        pytest.raises(E2BAgentError, match="target_path: "),
        target(path.format(root=root), root) as file,
    ):
        file.write(b"x")
    assert snapshot(root.parent) == before


def test_a_link_is_replaced_and_not_written_through(root: Path) -> None:
    with target(root / "link", root) as file:
        file.write(b"new")
    assert (root / "link").read_bytes() == b"new"
    assert (root.parent / "secret" / "key").read_bytes() == b"secret"


def test_a_file_appears_only_when_it_is_complete(root: Path) -> None:
    path = root / "deep" / "data.csv"
    with pytest.raises(OSError, match="broken"):
        write_half(path, root)
    assert path.read_bytes() == b"a,b"
    assert os.listdir(root / "deep") == ["data.csv"]


def write_half(path: Path, root: Path) -> None:
    with target(path, root) as file:
        file.write(b"half")
        raise OSError("broken")


def test_without_roots_the_refusal_names_the_option(root: Path) -> None:
    with pytest.raises(PathNotAllowedError, match="E2B_AGENT_MCP_FILES_ROOTS"):
        read(root / "deep" / "data.csv")


def target(path: str | Path, root: Path) -> AbstractContextManager[BinaryIO]:
    return open_target(str(path), [root])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }
