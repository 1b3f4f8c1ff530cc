"""What README.md says is true: its code runs, its tables are complete, its links lead somewhere."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client

from e2b_agent_mcp import Settings, create_server
from e2b_agent_mcp.cli import build_parser
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.install import CLIENTS
from e2b_agent_mcp.settings import Option, Secret, options
from scripted_llm import KEY, ScriptedLLM

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def mentioned_commands() -> list[str]:
    """Everything in the README that starts with our command, in backquotes or after a prompt."""
    quoted = re.findall(r"`e2b-agent-mcp((?: [^`\n]*)?)`", README)
    typed = re.findall(r"^\$ e2b-agent-mcp(.*)$", README, re.MULTILINE)
    return sorted({line.strip() for line in quoted + typed})


def settings_row(option: Option) -> str:
    default = option.default
    if default in (None, (), "") or isinstance(default, Secret):
        shown = "-"
    else:
        shown = f"`{default:g}`" if isinstance(default, float) else f"`{default}`"
    return f"| `{option.name}` | `{option.env}` | {shown} | {option.help} |"


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.partition("\n")[0])
def test_python_code_runs(code: str, engine: EngineAddress) -> None:
    with ScriptedLLM() as llm:
        if "OpenAIModel" in code:
            llm.script("<code>\nfinal_answer(len('4' * 42))\n</code>")
        run_python_code(code, engine, llm)
        assert not llm.unused


def run_python_code(code: str, engine: EngineAddress, llm: ScriptedLLM) -> None:
    e2b = {
        "E2B_API_KEY": engine.api_key,
        "E2B_API_URL": engine.api_url,
        "E2B_SANDBOX_URL": engine.sandbox_url,
    }
    done = subprocess.run(
        [sys.executable, "-"],
        input=code,
        env={**os.environ, **e2b, "OPENAI_BASE_URL": llm.url, "OPENAI_API_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=90,
    )
    # E2B's HTTP client may abort a process that ends in the moment of its last answer.
    assert done.returncode in {0, -signal.SIGABRT}
    assert done.stderr == ""
    assert done.stdout.split()[-1] in {"45", "42"}


@pytest.mark.parametrize("text", blocks("json"), ids=lambda text: " ".join(text.split())[:40])
def test_json_is_valid_client_configuration(text: str) -> None:
    document = json.loads(text)
    (servers,) = document.values()
    assert servers["e2b-agent-mcp"].keys() & {"command", "url"}


def test_the_first_configuration_is_the_example_file() -> None:
    assert json.loads(blocks("json")[0]) == json.loads((ROOT / "mcp.json.example").read_text())


@pytest.mark.parametrize("line", mentioned_commands())
def test_commands_exist(line: str) -> None:
    build_parser().parse_args(shlex.split(line.replace("CLIENT", next(iter(CLIENTS)))))


def test_settings_table_is_complete() -> None:
    for option in options():
        assert settings_row(option) in README


def test_clients_table_is_complete() -> None:
    for name in CLIENTS:
        assert f"`e2b-agent-mcp install {name}`" in README


@pytest.mark.anyio
async def test_tools_table_is_complete() -> None:
    async with Client(create_server(Settings())) as client:
        tools = (await client.list_tools()).tools
    section = README.partition("## Tools")[2].partition("## ")[0]
    assert {tool.name for tool in tools} == set(re.findall(r"^\| `(\w+)` \| ", section, re.M))


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
