"""The commands as a shell sees them: what they print, where, and how they exit."""

import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from e2b_agent_mcp.cli import main
from e2b_agent_mcp.engine import EngineAddress, EngineOptions
from e2b_agent_mcp.install import CLIENTS, NAME, Place, install, merged

START = 30.0  # seconds


@pytest.fixture
def shell(engine: EngineAddress) -> "Shell":
    return Shell(
        {
            "E2B_API_KEY": engine.api_key,
            "E2B_API_URL": engine.api_url,
            "E2B_SANDBOX_URL": engine.sandbox_url,
        }
    )


class Shell:
    """Runs commands in an environment of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {**os.environ, **environment}

    def __call__(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "e2b_agent_mcp", *args],
            input=stdin,
            env=self.environment,
            capture_output=True,
            text=True,
        )


# run


def test_run_keeps_variables_in_a_session(shell: Shell) -> None:
    shell("run", "--session", "kept", "-c", "x = 41")
    assert shell("run", "--session", "kept", "-c", "print('first'); x + 1").stdout == "first\n42\n"
    assert shell("sessions", "end", "kept").stdout == "Ended.\n"


def test_run_exits_with_1_and_the_traceback_on_stderr_when_the_code_raises(shell: Shell) -> None:
    done = shell("run", "--session", "raises", "-", stdin="print('before')\n1 / 0")
    assert (done.returncode, done.stdout) == (1, "before\n")
    assert "ZeroDivisionError: division by zero" in done.stderr


def test_run_exits_with_124_at_its_time_limit(shell: Shell) -> None:
    done = shell("run", "--timeout", "0.5", "-c", "while True: pass")
    assert done.returncode == 124
    assert "kept" in done.stderr


def test_run_prints_json_for_programs(shell: Shell, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("{'a': [1, 2]}")
    done = shell("run", "--session", "json", "--json", str(script))
    answer = json.loads(done.stdout)
    assert (answer["status"], answer["session"], answer["error"]) == ("ok", "json", None)
    assert answer["results"][0]["json"] == {"a": [1, 2]}


def test_run_refuses_a_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere.py"]) == 2
    assert "cannot read nowhere.py: No such file or directory" in capsys.readouterr().err


def test_ctrl_c_ends_a_run_quietly(shell: Shell) -> None:
    code = "import time; print('up'); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-m", "e2b_agent_mcp", "run", "-c", code],
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 130
    assert "Traceback" not in stderr


# sessions


def test_sessions_are_listed_and_ended(shell: Shell) -> None:
    shell("run", "--session", "listed", "-c", "1")
    found = json.loads(shell("sessions", "--json").stdout)
    assert "listed" in {item["session"] for item in found}
    (listed,) = (item for item in found if item["session"] == "listed")
    assert listed["usage"]["memory_total"] > listed["usage"]["memory_used"] > 0
    table = shell("sessions").stdout
    assert re.search(r"^listed +running .* of \d+\.\d GiB +\d+ +\$0\.00 ", table, re.MULTILINE)
    assert re.search(r"^Spent in \d{4}-\d\d: \d+ s of sandbox\.$", table, re.MULTILINE)
    spent = json.loads(shell("sessions", "spending", "--json").stdout)
    assert "listed" in {item["session"] for item in spent["sessions"]}
    assert spent["total"]["sandbox_seconds"] > 0
    assert shell("sessions", "spending", "--month", "2020-01").stdout == (
        "Spent in 2020-01: 0 s of sandbox.\n"
    )
    assert shell("sessions", "prune", "--dry-run", "--json").stdout == "[]\n"
    assert shell("sessions", "end", "listed").returncode == 0
    assert shell("sessions", "end", "listed").returncode == 1


# settings and errors


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("e2b-agent-mcp ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["doctor", "--set", "nope=1"], "nope", id="unknown name"),
        pytest.param(["--set", "runs.timeout", "doctor"], "NAME=VALUE", id="no value"),
        pytest.param(["run", "--timeout", "-1", "-c", "1"], "runs.timeout", id="bad value"),
        pytest.param(["doctor", "--config", "nowhere.toml"], "nowhere.toml", id="no config"),
        pytest.param(["sessions", "end"], "name the session", id="no session"),
        pytest.param(["run", "-c", "1", "x.py"], "not both", id="file and code"),
    ],
)
def test_wrong_use_exits_with_2_and_says_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


# doctor


def test_doctor_shows_every_value_and_its_origin_but_no_secret(
    shell: Shell, engine: EngineAddress, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[outputs]\nimages = 3\n")
    shell.environment["E2B_AGENT_MCP_RUNS_TIMEOUT"] = "7"
    shell.environment["E2B_AGENT_MCP_AGENT_BASE_URL"] = "http://bob:hunter2@127.0.0.1:9/v1"
    done = shell("doctor", "--json", "--config", str(config), "--set", "session=mine")
    report = json.loads(done.stdout)
    lines = {line["name"]: (line["value"], line["origin"]) for line in report["settings"]}
    assert lines["e2b.api_key"] == ("***", "environment")
    assert lines["runs.timeout"] == ("7.0", "environment")
    assert lines["outputs.images"] == ("3", "config file")
    assert lines["session"] == ("mine", "flag")
    assert lines["runs.max_timeout"] == ("3600.0", "default")
    assert lines["agent.base_url"] == ("http://***@127.0.0.1:9/v1", "environment")
    assert engine.api_key not in done.stdout + done.stderr
    assert (done.returncode, report["ok"]) == (0, True)


def test_doctor_exits_with_1_when_e2b_rejects_the_key(shell: Shell) -> None:
    shell.environment["E2B_API_KEY"] = "e2b_" + "0" * 40
    done = shell("doctor")
    assert done.returncode == 1
    assert "E2B rejected the API key" in done.stdout


def test_doctor_tells_of_the_embedded_engine(engine_options: EngineOptions) -> None:
    done = Shell(own_engine(engine_options))("doctor", "--json")
    report = json.loads(done.stdout)
    assert report["ok"], report["problems"]
    assert report["sandboxes"]["isolation"].startswith("bubblewrap ")


def test_doctor_exits_with_1_when_no_box_can_be_made(engine_options: EngineOptions) -> None:
    environment = own_engine(engine_options) | {"E2B_AGENT_MCP_ENGINE_BUBBLEWRAP": "/bin/false"}
    done = Shell(environment)("doctor", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"]


def own_engine(options: EngineOptions) -> dict[str, str]:
    return {
        "E2B_API_KEY": "",
        "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(options.state_dir),
        "E2B_AGENT_MCP_ENGINE_RUNTIME_DIR": str(options.runtime_dir),
    }


# engine


def test_engine_prints_what_an_sdk_needs_and_ends_with_ctrl_c(
    fresh_options: EngineOptions,
) -> None:
    environment = {**os.environ, **own_engine(fresh_options)}
    command = [sys.executable, "-m", "e2b_agent_mcp", "engine"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], START)[0]
    printed = [process.stdout.readline() for _ in range(4)]
    exports = re.findall(r"^export (\w+)=(\S+)$", "".join(printed), re.MULTILINE)
    again = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    process.stdout.close()
    assert [name for name, _ in exports] == ["E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY"]
    assert json.loads(again.stdout)["api_key"] == exports[2][1]


def test_engine_stop_without_an_engine(fresh_options: EngineOptions) -> None:
    assert Shell(own_engine(fresh_options))("engine", "--stop").stdout == "No engine is running.\n"


# install

PLACE = Place(home=Path("/home/ann"), project=Path("/work"), platform="linux")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("claude-desktop", "/home/ann/.config/Claude/claude_desktop_config.json"),
        ("claude-code", "/work/.mcp.json"),
        ("cursor", "/home/ann/.cursor/mcp.json"),
        ("vscode", "/work/.vscode/mcp.json"),
    ],
)
def test_every_client_has_its_file(name: str, path: str) -> None:
    assert str(CLIENTS[name].path(PLACE)) == path


def test_install_keeps_what_is_there_and_a_copy_of_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "mcp.json"
    old = {"mcpServers": {"other": {"command": "x"}, NAME: {"env": {"A": "b"}}}, "theme": "dark"}
    path.write_text(json.dumps(old))
    backup = install(CLIENTS["cursor"], path)
    new = json.loads(path.read_text())
    assert new["theme"] == "dark"
    assert new["mcpServers"]["other"] == {"command": "x"}
    assert new["mcpServers"][NAME]["env"] == {"A": "b"}
    assert new["mcpServers"][NAME]["command"] == sys.executable
    assert backup is not None
    assert json.loads(backup.read_text()) == old


def test_install_makes_a_missing_file_and_its_folder(tmp_path: Path) -> None:
    path = tmp_path / ".vscode" / "mcp.json"
    assert install(CLIENTS["vscode"], path) is None
    assert json.loads(path.read_text())["servers"][NAME]["type"] == "stdio"


def test_install_leaves_a_file_alone_that_is_not_plain_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mcp.json"
    path.write_text('{"servers": {}} // mine')
    assert main(["install", "vscode", "--file", str(path)]) == 2
    assert "left alone" in capsys.readouterr().err
    assert path.read_text() == '{"servers": {}} // mine'


def test_install_print_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mcp.json"
    assert main(["install", "cursor", "--print", "--file", str(path)]) == 0
    assert capsys.readouterr().out == merged(CLIENTS["cursor"], "")
    assert not path.exists()
