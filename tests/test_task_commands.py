"""`task` and `interactive` as a shell sees them: a real engine, a scripted model."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from e2b_agent_mcp.commands.terminal import safe
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.lifecycle import SandboxManager
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import Settings
from scripted_llm import FOREVER, KEY, Reply, ScriptedLLM, code

LONG = "words = '" + "a " * 80 + "its end'"
PLOT = f"""{LONG}
import matplotlib.pyplot as plt
print('row', 1)
display('displayed')
plt.plot([1, 2])
plt.show()"""


@pytest.fixture
def llm() -> Iterator[ScriptedLLM]:
    with ScriptedLLM() as llm:
        yield llm


class Shell:
    """Starts commands in a folder and a session of their own."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment = {**os.environ, **environment}
        self.folder = folder

    def start(self, *args: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "e2b_agent_mcp", *args],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *args: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        with self.start(*args) as process:
            out, err = process.communicate(stdin)
        return subprocess.CompletedProcess(args, process.returncode, out, err)


@pytest.fixture
def shell(engine: EngineAddress, llm: ScriptedLLM, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(
        {
            "E2B_API_KEY": engine.api_key,
            "E2B_API_URL": engine.api_url,
            "E2B_SANDBOX_URL": engine.sandbox_url,
            "E2B_AGENT_MCP_SESSION": f"t-{uuid.uuid4().hex[:8]}",
            "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(tmp_path / "state"),
            "E2B_AGENT_MCP_AGENT_MODEL": "openai/scripted",
            "E2B_AGENT_MCP_AGENT_BASE_URL": llm.url,
            "E2B_AGENT_MCP_AGENT_API_KEY": KEY,
        },
        tmp_path,
    )
    yield shell
    anyio.run(end_session, Settings.load(shell.environment))


async def end_session(settings: Settings) -> None:
    async with SandboxManager(settings) as manager:
        await manager.end_session(SessionKey(settings.local_owner, settings.session))


def test_task_prints_the_answer_alone_on_stdout_and_the_steps_on_stderr(
    shell: Shell, llm: ScriptedLLM
) -> None:
    llm.script(code(PLOT, "I plot it."), code("final_answer({'a': [1, 2]})"))
    done = shell("task", "Plot it.", "--output", "plots")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"a": [1, 2]})
    for words in (
        "step 1",
        "I plot it.",
        "row 1",
        "displayed",
        "end'",
        "completed: 2 steps",
        "cost unknown",
    ):
        assert words in done.stderr
    assert (shell.folder / "plots" / "plot-1.png").read_bytes().startswith(b"\x89PNG")


def test_task_prints_json_for_programs(shell: Shell, llm: ScriptedLLM) -> None:
    (shell.folder / "data.csv").write_text("a\n1\n")
    llm.script(code("final_answer(open('data.csv').read())"))
    task = json.loads(shell("task", "Read it.", "-f", "data.csv", "--json").stdout)
    assert (task["status"], task["answer"], task["plots"]) == ("completed", "a\n1\n", [])
    llm.script(code("final_answer(2)"))
    more = json.loads(shell("task", "More.", "--continue", task["task_id"], "--json").stdout)
    assert (more["task_id"], more["answer"], len(more["steps"])) == (task["task_id"], 2, 2)


def test_task_that_fails_exits_with_1_and_says_why(shell: Shell) -> None:
    done = shell("task", "Anything.", "-f", "missing.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert "missing.csv: No such file" in done.stderr
    assert "failed: 0 steps" in done.stderr


def test_task_without_a_model_says_what_to_set(shell: Shell) -> None:
    for name in ("MODEL", "BASE_URL", "API_KEY"):
        shell.environment[f"E2B_AGENT_MCP_AGENT_{name}"] = ""
    done = shell("task", "Anything.")
    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_a_task_and_leaves_its_session_and_steps(
    shell: Shell, llm: ScriptedLLM
) -> None:
    llm.script(code("x = 41"), Reply(text="never", delay=FOREVER))
    with shell.start("task", "Endless.") as process:
        ask(llm, 2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert shell("run", "-c", "x + 1").stdout == "42\n"


def test_interactive_is_a_conversation_that_ctrl_c_does_not_end(
    shell: Shell, llm: ScriptedLLM
) -> None:
    llm.script(
        code("x = 41\nfinal_answer('**forty-one**')"),
        Reply(text="never", delay=FOREVER),
        code("open('a b.txt', 'w').write('hi')\nfinal_answer(x + 1)"),
    )
    with shell.start("interactive") as process:
        assert process.stdin is not None
        process.stdin.write("Take the PELICANS.\nEndless.\n")
        process.stdin.flush()
        ask(llm, 2)
        process.send_signal(signal.SIGINT)
        lines = [
            "And one more.",
            *(":files", ":get '/home/user/a b.txt' copy.txt", ":get '/home/user/a b.txt' copy.txt"),
            *(":cost", ":model", ":model anthropic/x", ":nothing", ":cost 1 2", ":help"),
            *(":reset", ":files", ":quit", "never"),
        ]
        out, err = process.communicate("\n".join(lines), timeout=60)
    assert (process.returncode, err) == (0, "")
    for words in (
        "forty-one",
        "cancelled: 0 steps",
        "42",
        "/home/user/a b.txt",
        "saved copy.txt",
        "copy.txt exists.",
        "cost unknown",
        "model openai/scripted",
        "ANTHROPIC_API_KEY",
        "There is no :nothing.",
        ":cost: see :help.",
        ":reset",
        "The session has ended",
        "No files.",
    ):
        assert words in out
    assert (shell.folder / "copy.txt").read_text() == "hi"
    assert "PELICANS" in json.dumps(llm.requests[2]["messages"])


def test_interactive_says_what_a_command_waits_for_and_ctrl_c_stops_waiting(
    shell: Shell, llm: ScriptedLLM
) -> None:
    llm.script(Reply(text="never", delay=FOREVER))
    with shell.start("task", "Endless.") as other, shell.start("interactive") as process:
        ask(llm, 1)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(":files\n")
        process.stdin.flush()
        while "Waiting for a call or task of another server" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(":quit\n", timeout=10)  # nothing holds up its end
        other.send_signal(signal.SIGINT)
    assert (process.returncode, err) == (0, "")
    assert "Stopped." in out


def test_interactive_remembers_lines_where_only_the_user_may_read_them(shell: Shell) -> None:
    shell("interactive", stdin=":cost\n")
    history = shell.folder / "state" / "tasks" / "history"
    assert history.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        pytest.param("a\x1b[2J\x1b]0;title\x07b", "ab", id="screen and title"),
        pytest.param("a\x9b2Jb\x00\x08", "a2Jb", id="control characters"),
        pytest.param("ü\n\t漢", "ü\n\t漢", id="plain text"),
    ],
)
def test_nothing_a_sandbox_sends_controls_the_terminal(sent: str, shown: str) -> None:
    assert safe(sent) == shown


def ask(llm: ScriptedLLM, times: int) -> None:
    """Waits until the model was asked so often."""
    with llm._changed:
        assert llm._changed.wait_for(lambda: len(llm.requests) >= times, timeout=60)
