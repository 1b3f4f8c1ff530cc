"""The guest as a program: what it takes over from the engine, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def start_guest(listener: socket.socket, home: Path, *inherited: int) -> "subprocess.Popen[bytes]":
    """Not in a box, with the packages of this test run as its template."""
    arguments = {
        "--listen-fd": str(listener.fileno()),
        "--home": str(home),
        "--python": str(home / ".venv/bin/python"),
        "--site": sysconfig.get_path("purelib"),
    }
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "e2b_agent_mcp.engine.guest"),
            *(word for option in arguments.items() for word in option),
        ],
        stdin=subprocess.PIPE,
        pass_fds=(listener.fileno(), *inherited),
    )


def client(listener: socket.socket) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=20)


def start_command(http: httpx.Client, command: str) -> int:
    """Its pid; nobody stays to listen."""
    process = {"cmd": "/bin/bash", "args": ["-c", command]}
    body = json.dumps({"process": process}).encode()
    content = b"\0" + len(body).to_bytes(4, "big") + body
    with http.stream("POST", "/process.Process/Start", content=content) as response:
        first = next(response.iter_bytes())
    pid: int = json.loads(first[5:])["event"]["start"]["pid"]
    return pid


@pytest.mark.parametrize("end", ["stdin", "SIGTERM"])
def test_it_ends_with_its_engine_and_takes_its_commands_along(
    listener: socket.socket, tmp_path: Path, end: str
) -> None:
    guest = start_guest(listener, tmp_path)
    assert guest.stdin
    with client(listener) as http:
        command = os.pidfd_open(start_command(http, "sleep 300 & wait"))
    if end == "SIGTERM":
        guest.send_signal(signal.SIGTERM)
    guest.stdin.close()
    guest.wait(10)
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(command, 0)
    os.close(command)


def test_it_keeps_no_file_but_its_listener(listener: socket.socket, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    guest = start_guest(listener, tmp_path, writer)
    os.close(writer)
    with client(listener) as http:
        assert http.get("/health").status_code == 204
    assert os.read(reader, 1) == b""
    os.close(reader)
    guest.communicate(timeout=10)


def test_a_python_outside_of_the_home_is_left_alone(
    listener: socket.socket, tmp_path: Path
) -> None:
    other = tmp_path / "other/bin/python"
    other.parent.mkdir(parents=True)
    other.symlink_to(sys.executable)
    home = tmp_path / "home"
    home.mkdir()
    guest = subprocess.Popen(
        [
            *(sys.executable, "-m", "e2b_agent_mcp.engine.guest", "--home", str(home)),
            *("--listen-fd", str(listener.fileno()), "--python", str(other)),
        ],
        stdin=subprocess.PIPE,
        pass_fds=(listener.fileno(),),
    )
    with client(listener) as http:
        assert http.get("/health").status_code == 204
    guest.communicate(timeout=10)
    assert list(other.parent.parent.rglob("*")) == [other.parent, other]
