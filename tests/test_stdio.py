"""The server as hosts start it: a process on stdio, which they end in every possible way."""

import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from e2b_agent_mcp.engine import EngineAddress

COMMAND = [sys.executable, "-m", "e2b_agent_mcp"]
END_LIMIT = 2.0  # seconds; hosts kill after that


@pytest.fixture
def env(engine: EngineAddress) -> dict[str, str]:
    return environment(engine.api_url, engine.api_key)


def environment(url: str, key: str) -> dict[str, str]:
    return {
        "E2B_API_KEY": key,
        "E2B_API_URL": url,
        "E2B_SANDBOX_URL": url,
        "E2B_AGENT_MCP_SESSION": f"t-{uuid.uuid4().hex[:8]}",
    }


class Server:
    """A server process, and a legacy client that is nothing but lines of JSON."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._next = 0

    @classmethod
    @contextmanager
    def start(cls, env: dict[str, str], *arguments: str) -> Iterator[Self]:
        with subprocess.Popen(
            [*COMMAND, *arguments],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            server = cls(process)
            try:
                server.initialize()
                yield server
            finally:
                process.kill()

    def initialize(self) -> None:
        info = {"name": "test", "version": "1"}
        version = "2025-11-25"
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": info}
        assert self.request("initialize", params)["result"]["protocolVersion"] == version
        self.send({"method": "notifications/initialized"})

    def run(self, code: str) -> dict[str, Any]:
        result = self.request("tools/call", self._call(code))["result"]
        structured: dict[str, Any] = result["structuredContent"]
        return structured

    def start_running(self, code: str) -> None:
        """Leaves `code` running, once it has printed something."""
        self._next += 1
        params = {**self._call(code), "_meta": {"progressToken": 1}}
        self.send({"id": self._next, "method": "tools/call", "params": params})
        while "running" not in str(self.receive()):
            pass

    def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._next += 1
        self.send({"id": self._next, "method": method, "params": params})
        while (message := self.receive()).get("id") != self._next:
            pass
        return message

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """The next line, which must be JSON."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server has closed its output"
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self, how: signal.Signals | None) -> tuple[int, float]:
        """Its exit code and how long it took, in seconds; None closes stdin."""
        started = time.monotonic()
        if how is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
        else:
            self.process.send_signal(how)
        return self.process.wait(30), time.monotonic() - started

    @staticmethod
    def _call(code: str) -> dict[str, Any]:
        return {"name": "run_python", "arguments": {"code": code}}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_code_runs_for_clients_of_both_eras(env: dict[str, str], mode: str) -> None:
    parameters = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=env)
    async with Client(stdio_client(parameters), mode=mode) as client:
        first = await client.call_tool("run_python", {"code": "x = 1"})
        second = await client.call_tool("run_python", {"code": "x + 1"})
        await client.call_tool("end_session", {})
    assert first.structured_content["session"] == env["E2B_AGENT_MCP_SESSION"]
    assert second.structured_content["text"] == "2"


ENDS = [
    pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
    pytest.param(signal.SIGINT, 130, id="SIGINT"),
    pytest.param(signal.SIGHUP, 129, id="SIGHUP"),
    pytest.param(None, 0, id="end of stdin"),
]


@pytest.mark.parametrize(("how", "code"), ENDS)
def test_a_busy_server_ends_in_time_and_the_next_one_finds_the_session(
    env: dict[str, str], how: signal.Signals | None, code: int
) -> None:
    with Server.start(env) as server:
        server.start_running("x = 1\nprint('running', flush=True)\nimport time; time.sleep(60)")
        ended, seconds = server.end(how)
    assert ended == code
    assert seconds < END_LIMIT
    with Server.start(env) as server:
        found = server.run("x")
    assert (found["sandbox_state"], found["text"]) == ("reused", "1")


def test_code_that_ignores_interrupts_does_not_hold_the_server_up(env: dict[str, str]) -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print('running', flush=True)\nwhile True: pass"
    )
    with Server.start(env) as server:
        server.start_running(code)
        ended, seconds = server.end(signal.SIGTERM)
    assert ended == 143
    assert seconds < END_LIMIT


def test_a_server_whose_client_no_longer_reads_ends(env: dict[str, str]) -> None:
    with Server.start(env) as server:
        assert server.process.stdout is not None
        server.process.stdout.close()
        server.send({"id": 99, "method": "ping"})
        assert server.process.wait(5) == 1


def test_a_server_that_was_killed_loses_nothing(env: dict[str, str]) -> None:
    with Server.start(env) as server:
        first = server.run("x = 41")
        server.end(signal.SIGKILL)
    with Server.start(env) as server:
        second = server.run("x + 1")
    assert (second["sandbox_id"], second["sandbox_state"]) == (first["sandbox_id"], "reused")
    assert second["text"] == "42"


def test_initialize_does_not_wait_for_e2b() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with Server.start(environment(f"http://127.0.0.1:{port}", "e2b_key")) as server:
            tools = server.request("tools/list", {})["result"]["tools"]
            ended, seconds = server.end(signal.SIGTERM)
    assert tools
    assert ended == 143
    assert seconds < END_LIMIT


def test_logs_name_no_code_and_no_key(env: dict[str, str]) -> None:
    with Server.start(env, "--log-level", "debug") as server:
        server.run("'a secret of the code'")
        server.run("1/0  # a secret of the code")
        server.end(None)
        assert server.process.stderr is not None
        log = server.process.stderr.read()
    assert "sandbox=" in log
    assert "secret of the code" not in log
    assert env["E2B_API_KEY"] not in log
