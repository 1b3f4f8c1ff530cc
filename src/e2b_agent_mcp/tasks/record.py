"""What is known of a task: the data that is stored, and that results are rendered from. Pure."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from e2b_agent_mcp.agent.events import Failure, Image, Step, Usage
from e2b_agent_mcp.pool import SandboxState, SessionKey

TaskStatus = Literal[
    "working", "completed", "failed", "cancelled", "budget_exceeded", "interrupted"
]


@dataclass(frozen=True, kw_only=True)
class NewFile:
    """A file that a task made or changed."""

    path: str
    size: int  # bytes
    mime_type: str


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """One task, at one moment; `steps` are those of all its runs, numbered through."""

    task_id: str
    key: SessionKey
    task: str
    status: TaskStatus = "working"
    model: str = ""
    sandbox_id: str = ""  # "" until the session is its
    sandbox_state: SandboxState = "reused"
    note: str = ""  # what was lost with an earlier sandbox
    answer: Any = None  # Any: JSON
    answer_text: str = ""
    steps: tuple[Step, ...] = ()
    usage: Usage = field(default_factory=Usage)
    files: tuple[NewFile, ...] = ()
    error: Failure | None = None
    asked: str = ""  # the same for two requests of the same, while the task is at work
    created_at: float = field(default_factory=time.time)
    changed_at: float = field(default_factory=time.time, compare=False)


def new_task_id() -> str:
    """128 bits: on a server without tokens, to know it is to be allowed to use it."""
    return f"t-{secrets.token_hex(16)}"


# Any, below: JSON.
def to_json(record: TaskRecord) -> dict[str, Any]:
    """Without the steps, which are stored one by one."""
    return {
        "task": record.task,
        "model": record.model,
        "sandbox_id": record.sandbox_id,
        "sandbox_state": record.sandbox_state,
        "note": record.note,
        "answer": record.answer,
        "answer_text": record.answer_text,
        "usage": asdict(record.usage),
        "files": [asdict(file) for file in record.files],
        "error": asdict(record.error) if record.error else None,
        "asked": record.asked,
        "created_at": record.created_at,
    }


def from_json(
    stored: Mapping[str, Any],
    *,
    task_id: str,
    key: SessionKey,
    status: TaskStatus,
    changed_at: float,
) -> TaskRecord:
    typed = {
        "usage": Usage(**stored["usage"]),
        "files": tuple(NewFile(**file) for file in stored["files"]),
        "error": Failure(**stored["error"]) if stored["error"] else None,
    }
    known = {"task_id": task_id, "key": key, "status": status, "changed_at": changed_at}
    # Tasks that an earlier version stored have no time of their beginning.
    return TaskRecord(**{"created_at": changed_at, **stored, **typed, **known})


def step_to_json(step: Step) -> dict[str, Any]:
    """Without the images, which are stored as they are."""
    return {name: value for name, value in asdict(step).items() if name != "images"}


def step_from_json(stored: Mapping[str, Any], images: tuple[Image, ...]) -> Step:
    return Step(**{**stored, "usage": Usage(**stored["usage"]), "images": images})
