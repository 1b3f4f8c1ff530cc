"""An MCP server with Python sandboxes and an agent that works in them.

The public names are loaded on first use: the MCP and E2B SDKs take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2b_agent_mcp.agent.executor import SandboxExecutor
    from e2b_agent_mcp.agent.interpreter_tool import E2BPythonInterpreterTool
    from e2b_agent_mcp.errors import E2BAgentError
    from e2b_agent_mcp.lifecycle import CommandRun, Lease, Run, SandboxManager
    from e2b_agent_mcp.pool import SessionKey
    from e2b_agent_mcp.server import create_server
    from e2b_agent_mcp.settings import Settings

__all__ = [
    "CommandRun",
    "E2BAgentError",
    "E2BPythonInterpreterTool",
    "Lease",
    "Run",
    "SandboxExecutor",
    "SandboxManager",
    "SessionKey",
    "Settings",
    "create_server",
]

_MODULES = {
    "CommandRun": "e2b_agent_mcp.lifecycle",
    "E2BAgentError": "e2b_agent_mcp.errors",
    "Lease": "e2b_agent_mcp.lifecycle",
    "Run": "e2b_agent_mcp.lifecycle",
    "SessionKey": "e2b_agent_mcp.pool",
    "E2BPythonInterpreterTool": "e2b_agent_mcp.agent.interpreter_tool",
    "SandboxExecutor": "e2b_agent_mcp.agent.executor",
    "SandboxManager": "e2b_agent_mcp.lifecycle",
    "Settings": "e2b_agent_mcp.settings",
    "create_server": "e2b_agent_mcp.server",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
