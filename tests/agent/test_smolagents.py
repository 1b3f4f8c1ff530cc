"""Agents that users build with smolagents: the interpreter as a tool, and as their executor."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from e2b_code_interpreter import E2B
from smolagents import CodeAgent, LogLevel, OpenAIModel, Tool, ToolCallingAgent, tool

from e2b_agent_mcp import E2BPythonInterpreterTool, SandboxExecutor
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.settings import E2BSettings, Secret, Settings
from scripted_llm import KEY, Reply, ScriptedLLM


@pytest.fixture
def settings(engine: EngineAddress) -> Settings:
    return Settings(
        e2b=E2BSettings(
            api_key=Secret(engine.api_key), api_url=engine.api_url, sandbox_url=engine.sandbox_url
        )
    )


@pytest.fixture
def interpreter(
    engine: EngineAddress, monkeypatch: pytest.MonkeyPatch
) -> Iterator[E2BPythonInterpreterTool]:
    """Made with the guide's arguments alone; the environment says where E2B is."""
    monkeypatch.setenv("E2B_API_URL", engine.api_url)
    monkeypatch.setenv("E2B_SANDBOX_URL", engine.sandbox_url)
    interpreter = E2BPythonInterpreterTool(
        api_key=engine.api_key, template_id="code-interpreter-v1", timeout=300, max_runtime=600
    )
    yield interpreter
    interpreter.close()


@pytest.fixture
def executor(settings: Settings) -> Iterator[SandboxExecutor]:
    executor = SandboxExecutor(timeout=30, max_runtime=60, settings=settings)
    yield executor
    executor.cleanup()


@pytest.fixture
def model(llm: ScriptedLLM) -> OpenAIModel:
    return OpenAIModel("scripted", api_base=llm.url, api_key=KEY)


def code(source: str) -> str:
    """In smolagents' own form."""
    return f"Thought: I see.\n<code>\n{source}\n</code>"


def test_the_tool_keeps_variables_and_says_what_happened(
    interpreter: E2BPythonInterpreterTool,
) -> None:
    assert interpreter(code="x = 41") == "(nothing was printed)"
    assert interpreter(code="print('now'); x + 1") == "now\n42"
    assert "ZeroDivisionError" in interpreter(code="1 / 0")
    interpreter(code="import matplotlib.pyplot as plt; plt.plot([1]); plt.show()")
    assert [image.mime_type for image in interpreter.images] == ["image/png"]


def test_the_tool_in_a_code_agent(
    interpreter: E2BPythonInterpreterTool, llm: ScriptedLLM, model: OpenAIModel
) -> None:
    llm.script(
        code("print(python_interpreter(code='21 * 2'))"),
        code("final_answer(python_interpreter(code='_ + 1'))"),
    )
    agent = CodeAgent(tools=[interpreter], model=model, verbosity_level=LogLevel.OFF)
    assert agent.run("What is 21 * 2?") == "43"


def test_the_tool_in_a_tool_calling_agent_that_streams(
    interpreter: E2BPythonInterpreterTool, llm: ScriptedLLM, model: OpenAIModel
) -> None:
    llm.script(
        Reply(tool=("python_interpreter", {"code": "6 * 7"})),
        Reply(tool=("final_answer", {"answer": "42"})),
    )
    agent = ToolCallingAgent(tools=[interpreter], model=model, verbosity_level=LogLevel.OFF)
    steps = list(agent.run("What is 6 * 7?", stream=True))
    assert steps[-1].output == "42"
    assert "42" in str(llm.requests[1]["messages"][-1]["content"])


def test_the_executor_runs_all_code_in_a_sandbox_and_continues(
    executor: SandboxExecutor, llm: ScriptedLLM, model: OpenAIModel
) -> None:
    llm.script(
        code("import os; here = os.getcwd(); print(here); 'kept'"),
        code("final_answer(here)"),
        code("final_answer(here + '/again')"),
    )
    agent = CodeAgent(tools=[], model=model, executor=executor, verbosity_level=LogLevel.OFF)
    assert agent.run("Where are you?") == "/home/user"
    assert "/home/user\\nkept\\nLast output" in str(llm.requests[1]["messages"])
    assert agent.run("And again?", reset=False) == "/home/user/again"


def test_the_executor_takes_variables_and_tools(
    executor: SandboxExecutor, llm: ScriptedLLM, model: OpenAIModel
) -> None:
    @tool
    def double(number: int) -> int:
        """Doubles a number.

        Args:
            number: The number.
        """
        return 2 * number

    llm.script(code("final_answer(double(number=given))"))
    agent = CodeAgent(tools=[double], model=model, executor=executor, verbosity_level=LogLevel.OFF)
    assert agent.run("Double it.", additional_args={"given": 21}) == 42


def test_a_table_may_be_the_answer(
    executor: SandboxExecutor, llm: ScriptedLLM, model: OpenAIModel
) -> None:
    llm.script(code("import pandas as pd\nfinal_answer(pd.DataFrame({'a': [1, 2]}))"))
    agent = CodeAgent(tools=[], model=model, executor=executor, verbosity_level=LogLevel.OFF)
    assert agent.run("A table, please.") == {"columns": ["a"], "rows": [[1], [2]], "row_count": 2}


FORGETS_TO_CLOSE = """
import sys
from e2b_agent_mcp import E2BPythonInterpreterTool
from e2b_agent_mcp.settings import E2BSettings, Secret, Settings
e2b = E2BSettings(api_key=Secret(sys.argv[1]), api_url=sys.argv[2], sandbox_url=sys.argv[2])
print(E2BPythonInterpreterTool(settings=Settings(e2b=e2b))(code="6 * 7"))
"""


def test_a_program_that_forgets_to_close_still_ends_with_its_sandbox(
    engine: EngineAddress, e2b: E2B
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGETS_TO_CLOSE, engine.api_key, engine.api_url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")
    owners = [info.metadata.get("owner", "") for info in e2b.Sandbox.list().next_items()]
    assert not [owner for owner in owners if owner.startswith("program-")]


def test_the_guides_arguments_are_taken() -> None:
    made = E2BPythonInterpreterTool(
        api_key="e2b_key", template_id="base", timeout=300, max_runtime=600
    )
    assert isinstance(made, Tool)
    assert "e2b_key" not in repr(vars(made))
