"""`mcp.json.example` starts a server that runs code, launched exactly as it is written.

Only the package's source differs: a wheel built from this tree instead of an index.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from e2b_agent_mcp.engine import EngineAddress

ROOT = Path(__file__).parent.parent
FIRST_START = 240.0  # seconds: uvx installs all dependencies


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own, which would keep half a gigabyte of uv's cache."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.anyio
@pytest.mark.timeout(300)
async def test_the_example_configuration_runs_code(folder: Path, engine: EngineAddress) -> None:
    subprocess.run(
        [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", folder, ROOT],
        check=True,
    )
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "UV_FIND_LINKS": str(folder),
        "UV_CACHE_DIR": str(folder / "cache"),
        "E2B_API_KEY": engine.api_key,
        "E2B_API_URL": engine.api_url,
        "E2B_SANDBOX_URL": engine.sandbox_url,
    }
    (server,) = json.loads((ROOT / "mcp.json.example").read_text())["mcpServers"].values()
    server["env"] = {**environment, **server["env"]}
    parameters = StdioServerParameters.model_validate(server)
    async with Client(parameters, mode="legacy", read_timeout_seconds=FIRST_START) as client:
        result = await client.call_tool("run_python", {"code": "6 * 7", "session": "example"})
        await client.call_tool("end_session", {"session": "example"})
    assert result.structured_content is not None
    assert result.structured_content["text"] == "42"
