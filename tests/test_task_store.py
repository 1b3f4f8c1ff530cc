"""Tasks on disk: what is kept, for whom, and what the end of a process makes of them."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from e2b_agent_mcp.agent import Failure, Image, Step, Usage
from e2b_agent_mcp.errors import NotFoundError
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.tasks import NewFile, TaskRecord, TaskStore
from e2b_agent_mcp.tasks.record import new_task_id
from e2b_agent_mcp.tasks.store import KEPT_FOR, LEAST_KEPT, MOST_IMAGE_BYTES, MOST_TASKS, Memory

ANN = SessionKey("ann", "work")


@pytest.fixture
def store(tmp_path: Path) -> TaskStore:
    return TaskStore(lambda: tmp_path / "tasks")


def a_task(task_id: str = "t-1", key: SessionKey = ANN, **fields: object) -> TaskRecord:
    return TaskRecord(task_id=task_id, key=key, task="Add.", **fields)  # type: ignore[arg-type]


def test_a_task_reads_as_it_was_written(store: TaskStore) -> None:
    task = a_task(
        status="failed",
        model="openai/x",
        sandbox_id="i1",
        sandbox_state="created",
        note="lost",
        answer={"a": [1, None]},
        answer_text="one",
        usage=Usage(llm_calls=2, input_tokens=3, cost_usd=None),
        files=(NewFile(path="/home/user/a.csv", size=2, mime_type="text/csv"),),
        error=Failure(code="rate_limited", message="Slow down.", hint="Wait."),
        steps=(
            Step(number=1, thought="first", images=(Image(b"1", "image/png"),)),
            Step(number=2, code="x", error="NameError", usage=Usage(output_tokens=5)),
        ),
    )
    store.save(task)
    store.add_steps(task.task_id, task.steps, ())
    assert store.load("ann", "t-1") == task


def test_a_task_of_another_owner_is_not_there(store: TaskStore) -> None:
    store.save(a_task())
    with pytest.raises(NotFoundError):
        store.load("bob", "t-1")


def test_task_ids_cannot_be_guessed() -> None:
    assert len({new_task_id() for _ in range(100)}) == 100
    assert len(new_task_id()) == len("t-") + 128 // 4


def test_nobody_else_may_read_the_file(store: TaskStore, tmp_path: Path) -> None:
    store.save(a_task())
    assert stat.S_IMODE((tmp_path / "tasks").stat().st_mode) == 0o700
    for file in (tmp_path / "tasks").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


LOOK = """
import sys
from pathlib import Path
from e2b_agent_mcp.tasks import TaskStore
store = TaskStore(lambda: Path(sys.argv[1]))
print([store.load("ann", task_id).task_id for task_id in sys.argv[2:]])
store.close()
"""


def test_two_stores_of_one_process_share_the_file_with_other_processes(
    store: TaskStore, tmp_path: Path
) -> None:
    """What a second one does must not take the first one's locks, or others clean up under it."""

    def look_from_elsewhere(*task_ids: str) -> str:
        command = [sys.executable, "-c", LOOK, str(tmp_path / "tasks"), *task_ids]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    store.save(a_task("t-1"))
    second = TaskStore(lambda: tmp_path / "tasks")
    assert second.load("ann", "t-1").task == "Add."
    assert look_from_elsewhere("t-1") == "['t-1']\n"
    store.save(a_task("t-2"))
    assert look_from_elsewhere("t-1", "t-2") == "['t-1', 't-2']\n"
    assert second.load("ann", "t-2").task == "Add."


def test_what_a_killed_process_worked_on_reads_as_interrupted(
    store: TaskStore, tmp_path: Path
) -> None:
    killed = """
import os, sys
from pathlib import Path
from e2b_agent_mcp.agent import Step
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.tasks import TaskRecord, TaskStore
store = TaskStore(lambda: Path(sys.argv[1]))
store.save(TaskRecord(task_id="t-1", key=SessionKey("ann", "work"), task="Add."))
store.add_steps("t-1", [Step(number=1, thought="first")], [{"role": "user"}])
print("ready", flush=True)
sys.stdin.read()
os.kill(os.getpid(), 9)
"""
    with subprocess.Popen(
        [sys.executable, "-c", killed, str(tmp_path / "tasks")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        assert store.load("ann", "t-1").status == "working"
        process.stdin.close()
    found = store.load("ann", "t-1")
    assert (found.status, len(found.steps)) == ("interrupted", 1)
    assert store.memory("t-1").turns == [{"role": "user"}]


def test_what_a_closed_store_left_at_work_reads_as_interrupted(
    store: TaskStore, tmp_path: Path
) -> None:
    store.save(a_task())
    store.close()
    assert TaskStore(lambda: tmp_path / "tasks").load("ann", "t-1").status == "interrupted"


def test_a_session_remembers_its_last_task_until_it_ends(store: TaskStore) -> None:
    for task_id in ("t-1", "t-2"):
        store.save(a_task(task_id, sandbox_id=f"i-{task_id}"))
        store.add_steps(task_id, [], [{"of": task_id}])
    store.save(a_task("t-3"))  # has no step yet
    assert store.latest_memory(ANN) == Memory([{"of": "t-2"}], "i-t-2")
    assert store.latest_memory(SessionKey("bob", "work")) == Memory()
    store.end_session(ANN)
    assert store.latest_memory(ANN) == Memory()
    assert store.memory("t-1") == Memory([{"of": "t-1"}], "i-t-1")


def test_ending_a_session_makes_no_file_where_there_are_no_tasks(
    store: TaskStore, tmp_path: Path
) -> None:
    store.end_session(ANN)
    assert list(tmp_path.iterdir()) == []


def test_old_tasks_are_deleted_and_so_are_too_many(tmp_path: Path) -> None:
    now = 0.0
    store = TaskStore(lambda: tmp_path, clock=lambda: now)
    store.save(a_task("old", status="completed"))
    store.add_steps("old", [Step(number=1, images=(Image(b"1", "image/png"),))], [1])
    store.save(a_task("old-and-at-work"))
    now = KEPT_FOR + 1
    for number in range(MOST_TASKS + 1):
        now += 1
        store.save(a_task(f"t-{number}", status="completed"))
    assert store.load("ann", "t-0").status == "completed"  # a day is promised
    now += LEAST_KEPT
    store.save(a_task("new", status="completed"))
    for gone in ("old", "t-0"):
        with pytest.raises(NotFoundError):
            store.load("ann", gone)
    assert store.load("ann", "old-and-at-work").status == "working"
    assert store.load("ann", f"t-{MOST_TASKS}").status == "completed"


def test_images_beyond_the_limit_are_not_kept(store: TaskStore) -> None:
    store.save(a_task())
    half = Image(bytes(MOST_IMAGE_BYTES // 2), "image/png")
    for number in (1, 2, 3):
        store.add_steps("t-1", [Step(number=number, images=(half,))], None)
    assert [len(step.images) for step in store.load("ann", "t-1").steps] == [1, 1, 0]


def test_without_a_folder_to_write_in_tasks_last_as_long_as_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    store = TaskStore(lambda: tmp_path / "file")
    store.save(a_task(status="completed"))
    assert store.load("ann", "t-1").status == "completed"
    assert "tasks end with this server" in caplog.text
