"""What an engine finds of its sandboxes, whatever became of the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import pytest

from e2b_agent_mcp.engine.records import RecordFolder

if TYPE_CHECKING:
    from pathlib import Path


def found(folder: Path) -> dict[str, object]:
    return dict(RecordFolder(folder).read_all())


def test_a_record_is_there_as_soon_as_it_is_written(tmp_path: Path) -> None:
    records = RecordFolder(tmp_path)
    records.write("i1", {"end_at": 1})
    records.write("i1", {"end_at": 2})
    assert found(tmp_path) == {"i1": {"end_at": 2}}
    records.remove("i1")
    assert found(tmp_path) == {}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("torn", [b"", b'{"end_at"', b"\0" * 20])
async def test_a_power_cut_costs_the_last_change_at_most(tmp_path: Path, torn: bytes) -> None:
    """The disk may keep a file's name and lose what it held."""
    records = RecordFolder(tmp_path)
    records.write("i1", {"end_at": 1})
    await settle(records)
    records.write("i1", {"end_at": 2})
    for path in tmp_path.iterdir():
        if path.name != "i1.json":
            path.write_bytes(torn)
    assert found(tmp_path) == {"i1": {"end_at": 1}}
    assert [path.name for path in tmp_path.iterdir()] == ["i1.json"]


async def test_what_an_earlier_engine_had_no_time_for_is_put_on_the_disk(tmp_path: Path) -> None:
    RecordFolder(tmp_path).write("i1", {"end_at": 1})
    records = RecordFolder(tmp_path)
    assert dict(records.read_all()) == {"i1": {"end_at": 1}}
    await settle(records)
    assert [path.name for path in tmp_path.iterdir()] == ["i1.json"]
    assert found(tmp_path) == {"i1": {"end_at": 1}}


async def test_a_record_that_was_removed_does_not_come_back(tmp_path: Path) -> None:
    records = RecordFolder(tmp_path)
    records.write("i1", {"end_at": 1})
    await settle(records)
    records.write("i1", {"end_at": 2})
    records.write("i2", {"end_at": 1})
    records.remove("i1")
    await settle(records)
    assert found(tmp_path) == {"i2": {"end_at": 1}}


async def settle(records: RecordFolder) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(records.keep)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
