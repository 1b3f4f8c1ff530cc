"""Tasks: what an agent was asked, how far it is, what came of it. They outlive calls
and servers.
"""

from e2b_agent_mcp.tasks.record import NewFile, TaskRecord, TaskStatus
from e2b_agent_mcp.tasks.registry import Doing, Prepare, TaskEvent, TaskRegistry, TaskRequest
from e2b_agent_mcp.tasks.store import TaskStore

__all__ = [
    "Doing",
    "NewFile",
    "Prepare",
    "TaskEvent",
    "TaskRecord",
    "TaskRegistry",
    "TaskRequest",
    "TaskStatus",
    "TaskStore",
]
