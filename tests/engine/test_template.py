"""How the read-only environment comes to be: once, completely, and readable by every box."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from e2b_agent_mcp.engine.folders import (
    move_into_place,
    put_folder,
    remove_leftovers,
    staging,
)
from e2b_agent_mcp.engine.index import PackageIndex
from e2b_agent_mcp.engine.isolation import Owner
from e2b_agent_mcp.engine.isolation.owner import DEDICATED_ID
from e2b_agent_mcp.engine.template import in_use, prune
from e2b_agent_mcp.engine.template.build import describe, repair_scripts, without_credentials
from e2b_agent_mcp.engine.template.etc import etc_binds, prepare_etc
from e2b_agent_mcp.engine.template.interpreter import Interpreter
from e2b_agent_mcp.engine.template.turn import sole_builder

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = Owner(DEDICATED_ID, DEDICATED_ID, is_other=True)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# ---------------------------------------------------------------- folders


def test_a_folder_is_named_after_its_content_and_put_once(tmp_path: Path) -> None:
    def write(text: str) -> Path:
        return put_folder(tmp_path, lambda folder: write_file(folder / "f", text))

    assert write("a") == write("a") != write("b")
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_put_can_be_read_by_everybody_whatever_the_umask(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        write_file(folder / "sub/data", "x")
        write_file(folder / "sub/tool", "x").chmod(0o700)

    with umask(0o077):
        place = put_folder(tmp_path / "cache", write)

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (place, *place.rglob("*"))}
    assert modes == {place.name: 0o755, "sub": 0o755, "data": 0o644, "tool": 0o755}


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write_file(folder / "f", "x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        put_folder(tmp_path, fail)

    assert list(tmp_path.iterdir()) == []


def test_the_second_to_finish_keeps_the_first_ones_folder(tmp_path: Path) -> None:
    place = tmp_path / "place"
    for text in ("first", "second"):
        with staging(tmp_path) as stage:
            write_file(stage / "f", text)
            move_into_place(stage, place)

    assert (place / "f").read_text() == "first"
    assert list(tmp_path.iterdir()) == [place]


def test_leftovers_of_a_killed_build_are_removed_by_the_next(tmp_path: Path) -> None:
    for name in (".building-abc-1", ".building-other-1", "abc"):
        write_file(tmp_path / name / "f", "x")

    remove_leftovers(tmp_path, "abc")

    assert sorted(p.name for p in tmp_path.iterdir()) == [".building-other-1", "abc"]


# ---------------------------------------------------------------- one builder


async def test_one_builds_while_the_other_waits_and_hears_its_progress(tmp_path: Path) -> None:
    place = tmp_path / "place"
    built: list[str] = []
    heard: dict[str, list[str]] = {"a": [], "b": []}
    waiting = anyio.Event()

    async def start(name: str) -> None:
        def hear(message: str) -> None:
            heard[name].append(message)
            if len(heard[name]) and name == "b":
                waiting.set()

        async with sole_builder(place, hear) as report:
            if not place.exists():
                report("downloading")
                if name == "a":
                    await waiting.wait()  # until b has heard of it, so both were in flight
                place.mkdir()
                built.append(name)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start, "a")
            tasks.start_soon(start, "b")

    assert built == ["a"]
    assert heard == {"a": ["downloading"], "b": ["downloading"]}


# ---------------------------------------------------------------- the pieces


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Resolved 65 packages in 1.23s", "installing 65 packages"),
        ("Downloading plotly (9.5MiB)", "downloading plotly (9.5MiB)"),
        ("Installed 65 packages in 2.92s", "installed 65 packages; compiling them"),
        (" + numpy==2.3.5", None),
    ],
)
def test_uvs_lines_are_told_in_plain_words(line: str, message: str | None) -> None:
    assert describe(line) == message


def test_an_error_shows_no_credentials() -> None:
    said = "failed to fetch https://user:secret@index.corp/simple/six/"

    assert without_credentials(said) == "failed to fetch https://***@index.corp/simple/six/"


def test_scripts_find_the_sandboxes_python_not_the_hosts(tmp_path: Path) -> None:
    python = "/root/.pyenv/bin/python3.11"
    write_file(tmp_path / "pip", f"#!{python}\nimport pip\n")
    write_file(tmp_path / "tool", "#!/bin/sh\ntrue\n")

    repair_scripts(tmp_path, python)

    assert (tmp_path / "pip").read_text() == "#!/usr/bin/env python3\nimport pip\n"
    assert (tmp_path / "tool").read_text() == "#!/bin/sh\ntrue\n"


def test_etc_knows_one_user_and_carries_the_indexs_files(tmp_path: Path) -> None:
    authorities = write_file(tmp_path / "ca.pem", "authorities")
    constraints = (write_file(tmp_path / "a", "six<2"), write_file(tmp_path / "b", "attrs<99"))
    index = PackageIndex(certificates=authorities, constraints=constraints)

    etc = prepare_etc(tmp_path / "cache", index)

    assert "isouser" not in (etc / "passwd").read_text()
    assert (etc / "ssl/certs/ca-certificates.crt").read_text() == "authorities"
    assert (etc / "pip/constraints.txt").read_text() == "six<2\nattrs<99"
    assert "PATH" not in (etc / "profile").read_text()
    assert not (etc / "shadow").exists()
    assert next(etc_binds(etc)).target == "/etc"


def test_an_interpreter_in_usr_is_seen_anyway(tmp_path: Path) -> None:
    python = Interpreter(Path("/usr"), "/usr", "python3.11", needs_copy=False)

    assert list(python.binds(tmp_path)) == []
    assert python.executable == "/usr/bin/python3.11"


def test_an_interpreter_elsewhere_is_shown_without_its_packages(tmp_path: Path) -> None:
    prefix = fake_prefix(tmp_path)
    python = Interpreter(prefix, str(prefix), "python3.11", needs_copy=False)
    template = tmp_path / "template"

    shown = {(str(source), target) for source, target in python.binds(template)}

    assert shown == {
        (f"{prefix}/bin", f"{prefix}/bin"),
        (f"{prefix}/lib", f"{prefix}/lib"),
        (f"{template}/empty", f"{prefix}/lib/python3.11/site-packages"),
    }


def test_an_interpreter_that_boxes_cannot_read_is_copied_without_what_they_do_not_need(
    tmp_path: Path,
) -> None:
    prefix = fake_prefix(tmp_path)
    python = Interpreter(prefix, "/opt/python", "python3.11", needs_copy=True)
    template = tmp_path / "template"
    template.mkdir()

    python.copy_to(template)

    copied = {str(p.relative_to(template / "python")) for p in template.rglob("*") if p.is_file()}
    assert copied == {
        "bin/python3.11",
        "bin/python3",
        "lib/libpython3.11.so.1.0",
        "lib/python3.11/os.py",
    }
    assert {bind.target for bind in python.binds(template)} == {
        "/opt/python/bin",
        "/opt/python/lib",
    }


def test_another_user_reads_only_what_is_open_all_the_way() -> None:
    with tempfile.TemporaryDirectory(prefix="e2b-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        open_file = write_file(folder / "open/f", "x")
        closed = write_file(folder / "closed/f", "x")
        closed.parent.chmod(0o700)

        assert NOBODY.can_read(open_file)
        assert not NOBODY.can_read(closed)
        assert not NOBODY.can_read(folder / "missing")


def fake_prefix(tmp_path: Path) -> Path:
    prefix = tmp_path / "prefix"
    for name in (
        "bin/python3.11",
        "lib/libpython3.11.so.1.0",
        "lib/python3.11/os.py",
        "lib/python3.11/test/test_os.py",
        "lib/python3.11/config-3.11-x86_64-linux-gnu/libpython3.11.a",
        "lib/python3.11/site-packages/secret.py",
    ):
        write_file(prefix / name, "x")
    return prefix


def write_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---------------------------------------------------------------- what nobody uses


def test_what_was_not_used_for_a_month_is_removed(tmp_path: Path) -> None:
    paths = ("templates/a", "templates/b", "templates/held", "guest/cpython-311/a", "etc/a")
    for path in paths:
        (tmp_path / path).mkdir(parents=True)
        write_file(tmp_path / path / "file", "x")
        os.utime(tmp_path / path, (1, 1))
    with in_use([tmp_path / "templates/held"]):
        os.utime(tmp_path / "templates/held", (1, 1))  # in use for longer than a month
        os.utime(tmp_path / "templates/b")
        removed = prune(tmp_path)

    assert removed == [tmp_path / p for p in ("templates/a", "guest/cpython-311/a", "etc/a")]
    assert sorted(p.name for p in (tmp_path / "templates").iterdir()) == ["b", "held"]
    with in_use([tmp_path / "templates/held"]):
        pass
    assert prune(tmp_path) == []  # its use has set its time
    assert prune(tmp_path, kept=-1) == [tmp_path / "templates/b", tmp_path / "templates/held"]


def test_a_removal_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    left = tmp_path / "templates/.removed-x"
    left.mkdir(parents=True)
    write_file(left / "file", "x")

    assert prune(tmp_path) == []
    assert not left.exists()
