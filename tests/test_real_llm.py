"""A real language model, end to end: an MCP client, our server on stdio, its engine, llama.cpp.

    E2B_AGENT_MCP_TEST_MODEL=model.gguf python -m pytest tests/test_real_llm.py

It takes minutes of CPU and a gigabyte of weights, so it runs only when asked for. `.ci/real-llm`
fetches the model that the numbers are for.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from conftest import temporary_options

MODEL = os.environ.get("E2B_AGENT_MCP_TEST_MODEL", "")
ENOUGH = 5  # of the tasks; a model of this size does not solve every one
TASK_LIMIT = 600.0  # seconds; the model writes six tokens a second on a busy machine
CALL_LIMIT = TASK_LIMIT + 60


@dataclass(frozen=True)
class Task:
    text: str
    answer: object
    before: str = ""  # run by run_python in the session first


TASKS = (
    Task("What is 12 * 34?", 408),
    Task("What is the sum of the squares of the whole numbers from 1 to 100?", 338350),
    Task("How often does the letter r occur in the word strawberry?", 3),
    Task("Give a list of all prime numbers below 20.", [2, 3, 5, 7, 11, 13, 17, 19]),
    Task("What is the 20th Fibonacci number? The first two are 1 and 1.", 6765),
    Task("What is the median of the list numbers?", 17, before="numbers = [40, 3, 17, 28, 5]"),
)


@pytest.fixture
def model_url() -> Iterator[str]:
    script = Path(__file__).parent / "llama_server.py"
    process = subprocess.Popen(
        [sys.executable, script, MODEL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url, "the model could not be loaded"
            yield f"{url}/v1"
        finally:
            process.kill()


@pytest.fixture
def server(model_url: str) -> Iterator[StdioServerParameters]:
    """It starts an engine of its own, in folders that no other one uses."""
    with temporary_options() as options:
        environment = {
            **os.environ,
            "E2B_API_KEY": "",
            "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(options.state_dir),
            "E2B_AGENT_MCP_ENGINE_RUNTIME_DIR": str(options.runtime_dir),
            "E2B_AGENT_MCP_AGENT_MODEL": "openai/local",
            "E2B_AGENT_MCP_AGENT_BASE_URL": model_url,
            "E2B_AGENT_MCP_AGENT_REPLIES": "json",
            "E2B_AGENT_MCP_AGENT_REQUEST_TIMEOUT": str(TASK_LIMIT),
        }
        command = [sys.executable, "-m", "e2b_agent_mcp"]
        yield StdioServerParameters(command=command[0], args=command[1:], env=environment)
        subprocess.run([*command, "engine", "--stop"], env=environment, check=True)


@pytest.mark.skipif(not MODEL, reason="needs a model's file in E2B_AGENT_MCP_TEST_MODEL")
@pytest.mark.timeout(len(TASKS) * CALL_LIMIT)
@pytest.mark.anyio
async def test_a_small_model_solves_small_tasks(
    server: StdioServerParameters, capsys: pytest.CaptureFixture[str]
) -> None:
    solved = 0
    async with Client(server, read_timeout_seconds=CALL_LIMIT) as client:
        for number, task in enumerate(TASKS):
            started = time.monotonic()
            result = await do(client, task, session=f"task-{number}")
            is_solved = as_data(result["answer"]) == task.answer
            solved += is_solved
            with capsys.disabled():
                print(f"\n{'solved' if is_solved else 'FAILED'}: {task.text}")
                print(f"  answer {result['answer']!r}, {result['status']}, ", end="")
                print(f"{len(result['steps'])} steps, {time.monotonic() - started:.1f} s")
                for step in [] if is_solved else result["steps"]:
                    print(f"  {json.dumps({k: step[k] for k in ('code', 'output', 'error')})}")
    assert solved >= ENOUGH


async def do(client: Client, task: Task, *, session: str) -> dict[str, Any]:
    if task.before:
        await client.call_tool("run_python", {"code": task.before, "session": session})
    arguments = {
        "timeout": TASK_LIMIT,
        "task": task.text,
        "session": session,
        "max_steps": 4,
        "wait": CALL_LIMIT,
    }
    result = await client.call_tool("run_agent_task", arguments)
    await client.call_tool("end_session", {"session": session})
    assert result.structured_content is not None, result
    return result.structured_content


def as_data(answer: object) -> object:
    """A small model gives a number as text now and then; in words it counts as wrong."""
    if not isinstance(answer, str):
        return answer
    try:
        data: object = json.loads(answer)
    except ValueError:
        return answer
    return data
