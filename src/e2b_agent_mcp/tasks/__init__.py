"""Tasks: what an agent was asked, how far it is, what came of it. They outlive calls
and servers.
"""

from e2b_agent_mcp.tasks.live import (
    Attendant,
    Doing,
    ModelQuestion,
    Prepare,
    TaskEvent,
    TaskRequest,
)
from e2b_agent_mcp.tasks.questions import Question, Questions
from e2b_agent_mcp.tasks.record import NewFile, TaskRecord, TaskStatus
from e2b_agent_mcp.tasks.registry import TaskRegistry
from e2b_agent_mcp.tasks.store import TaskStore

__all__ = [
    "Attendant",
    "Doing",
    "ModelQuestion",
    "NewFile",
    "Prepare",
    "Question",
    "Questions",
    "TaskEvent",
    "TaskRecord",
    "TaskRegistry",
    "TaskRequest",
    "TaskStatus",
    "TaskStore",
]
