"""The demo in a real sandbox, and what it writes."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from e2b_agent_mcp.demo import PARTS
from e2b_agent_mcp.demo.report import Plot, Prose, Section, Table, html, markdown, texts
from e2b_agent_mcp.engine import EngineAddress

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


@pytest.mark.timeout(240)
def test_the_demo_writes_a_report_with_every_part_and_plot(
    tmp_path: Path, engine: EngineAddress
) -> None:
    e2b = {
        "E2B_API_KEY": engine.api_key,
        "E2B_API_URL": engine.api_url,
        "E2B_SANDBOX_URL": engine.sandbox_url,
    }
    done = subprocess.run(
        [sys.executable, "-m", "e2b_agent_mcp", "demo", "--output", tmp_path],
        env={**os.environ, **e2b},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
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
