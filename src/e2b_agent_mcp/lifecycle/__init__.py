"""The sandboxes of sessions: `SandboxManager` leases them. The door of E2B's SDK.

`control` speaks to E2B's control plane, `lease` to the sandbox, `manager` decides between them.
"""

from e2b_agent_mcp.connection import Connect, E2BParams, Progress
from e2b_agent_mcp.lifecycle.files import FileInfo
from e2b_agent_mcp.lifecycle.lease import CommandRun, Lease, Run, RunStatus
from e2b_agent_mcp.lifecycle.manager import SandboxManager, SessionInfo
from e2b_agent_mcp.lifecycle.output import Output
from e2b_agent_mcp.lifecycle.usage import Usage

__all__ = [
    "CommandRun",
    "Connect",
    "E2BParams",
    "FileInfo",
    "Lease",
    "Output",
    "Progress",
    "Run",
    "RunStatus",
    "SandboxManager",
    "SessionInfo",
    "Usage",
]
