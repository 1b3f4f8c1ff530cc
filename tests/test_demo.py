"""The demo in a real sandbox, and what it writes."""

import io
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from e2b_agent_mcp.commands.task import opened
from e2b_agent_mcp.demo import PARTS, run_demo
from e2b_agent_mcp.demo.agent_parts import AgentDemo, agent_parts
from e2b_agent_mcp.demo.report import Plot, Prose, Section, Table, html, markdown, texts
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.settings import E2BSettings, EngineSettings, Secret, Settings
from scripted_llm import KEY, Reply, ScriptedLLM, code

SECTION = Section(
    title="A <part>",
    code="print('<b>')",
    seconds=1.25,
    blocks=(
        Prose("Words & more", "x < y"),
        Table(("name", "value"), (("a|b", 1.5), ("c", 20.0))),
        Plot("one.png", b"\x89PNG"),
    ),
)


PLOT = "import matplotlib.pyplot as plt\nplt.figure(figsize=(6, 4))\nplt.plot([1, 4])\nplt.show()"
FETCH = (
    "import requests\nprint(requests.get('http://127.0.0.1:8123/reviews').text.count('review'>'))"
)
PAGE = "open('dashboard.html', 'w').write('<html>')\nfinal_answer('See **dashboard.html**.')"


@pytest.mark.usefixtures("agent_libraries")
async def test_with_a_model_an_agent_does_the_other_tasks(
    tmp_path: Path, engine: EngineAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2b_agent_mcp.demo.PARTS", ())  # the next test's
    console = Console(file=io.StringIO(), width=200)
    out = tmp_path / "out"
    with ScriptedLLM() as llm:
        llm.script(
            *(code(PLOT, "I plot the trend."), code("final_answer('Sales grew.')")),
            Reply(status=400, error="no, thank you"),
            *(code(FETCH), code("final_answer({'tone': 0.2})")),
            code(PAGE),
        )
        url, key = engine.api_url, Secret(engine.api_key)
        settings = Settings(
            e2b=E2BSettings(api_key=key, api_url=url, sandbox_url=engine.sandbox_url),
            engine=EngineSettings(state_dir=tmp_path / "state"),
            agent=llm.settings(),
        )
        async with opened(settings) as (manager, tasks):
            await run_demo(manager, out, console, AgentDemo(tasks, manager, settings))
        asked = [str(request["messages"][1]) for request in llm.requests]
        assert "12" in str(llm.requests[4]["messages"][-1])  # the reviews, from the sandbox's page
    for number, words in enumerate(("sales", "breast_cancer", "VADER", "plotly")):
        assert words in asked[(0, 2, 3, 5)[number]]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("at most $1 each", "I plot the trend.", "Sales grew.", "no, thank you"):
        assert words in shown
    page = (out / "report.html").read_text()
    for part in agent_parts(0):
        assert part.title in page
    assert (out / "plots" / "sales" / "plot-1.png").exists()
    assert "plots/sales/plot-1.png" in (out / "report.md").read_text()
    assert (out / "files" / "dashboard.html").read_text() == "<html>"
    assert KEY not in page + shown


def demo(
    output: Path, engine: EngineAddress, settings: dict[str, str]
) -> "subprocess.CompletedProcess[str]":
    e2b = {
        "E2B_API_KEY": engine.api_key,
        "E2B_API_URL": engine.api_url,
        "E2B_SANDBOX_URL": engine.sandbox_url,
    }
    return subprocess.run(
        [sys.executable, "-m", "e2b_agent_mcp", "demo", "--output", output],
        env={**os.environ, **e2b, **settings},
        capture_output=True,
        text=True,
    )


@pytest.mark.timeout(240)
def test_the_demo_writes_a_report_with_every_part_and_plot(
    tmp_path: Path, engine: EngineAddress
) -> None:
    done = demo(tmp_path, engine, {"OPENAI_API_KEY": ""})
    assert (done.returncode, done.stderr) == (0, "")
    assert "With a language model (OPENAI_API_KEY" in " ".join(done.stdout.split())
    page, text = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    for part in PARTS:
        assert part.title in done.stdout
        assert part.title in page
        assert part.title in text
    plots = sorted((tmp_path / "plots").iterdir())
    assert page.count("data:image/png;base64,") == len(plots) == 5
    for plot in plots:
        width, height = png_size(plot.read_bytes())
        assert width > 400
        assert height > 150
        assert f"![{plot.name}](plots/{plot.name})" in text


def test_the_page_needs_no_other_file_and_escapes_what_it_shows() -> None:
    page = html([SECTION], {"sandbox": "<id>"})
    assert "A &lt;part&gt;" in page
    assert "&lt;id&gt;" in page
    assert "print(&#x27;&lt;b&gt;&#x27;)" in page
    assert '<img alt="one.png" src="data:image/png;base64,iVBORw==">' in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)


def test_markdown_tables_survive_a_bar_in_a_cell() -> None:
    assert r"| a\|b | 1.5 |" in markdown([SECTION], {})


def test_the_numbers_of_a_column_have_the_same_decimals() -> None:
    table = Table(("n", "mixed"), ((1.5, "x"), (20.25, 3.0), (1000.0, 4.5)))
    assert texts(table) == [("1.50", "x"), ("20.25", "3.0"), ("1,000.00", "4.5")]


def png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", data[16:24])
    return width, height
