"""An MCP server with Python sandboxes and an agent that works in them.

The public names are loaded on first use: the MCP and E2B SDKs take seconds to import.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from e2b_agent_mcp.agent.executor import SandboxExecutor
    from e2b_agent_mcp.agent.interpreter_tool import E2BPythonInterpreterTool
    from e2b_agent_mcp.lifecycle import SandboxManager
    from e2b_agent_mcp.server import create_server
    from e2b_agent_mcp.settings import Settings

__all__ = [
    "E2BPythonInterpreterTool",
    "SandboxExecutor",
    "SandboxManager",
    "Settings",
    "create_server",
]

_MODULES = {
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
