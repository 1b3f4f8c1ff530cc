"""Speaks MCP to an installed server over stdio: check_server.py COMMAND

Runs with the Python of the environment that the server is installed in, from any folder, so that
nothing of the source tree can help.
"""

import sys
from typing import Literal

import anyio
from mcp import Client, StdioServerParameters

FIRST_RUN = 600  # seconds: the first sandbox may have to build the template


async def main(command: str) -> None:
    for mode in ("legacy", "auto"):
        await check(command, mode)


async def check(command: str, mode: Literal["legacy", "auto"]) -> None:
    """With `legacy`, the client starts with `initialize`, as most clients do."""
    server = StdioServerParameters(command=command)
    async with Client(server, mode=mode, read_timeout_seconds=FIRST_RUN) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"run_python", "run_command", "list_sessions", "end_session"} <= names, names
        session = {"session": "check"}
        result = await client.call_tool(
            "run_python", {"code": "import pandas; pandas.Series([20, 22]).sum()", **session}
        )
        assert result.structured_content, result
        assert result.structured_content["status"] == "ok", result
        assert "42" in result.structured_content["text"], result
        await client.call_tool("end_session", session)
        version = client.protocol_version
    print(f"MCP {version}: {len(names)} tools; run_python works.")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
