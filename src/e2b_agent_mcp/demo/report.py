"""The demo's report as a self-contained HTML page and as Markdown. Pure: text in, text out."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from typing_extensions import TypeIs

TITLE = "e2b-agent-mcp demo"


@dataclass(frozen=True)
class Prose:
    """A heading and a paragraph, either of which may be empty."""

    title: str
    text: str


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Plot:
    name: str
    png: bytes


Block = Prose | Table | Plot


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part: the code that ran and what it displayed, in order."""

    title: str
    code: str
    blocks: tuple[Block, ...]
    seconds: float


def numeric(table: Table) -> tuple[bool, ...]:
    """For each column, whether it holds numbers only and reads best aligned to the right."""
    return tuple(all(map(_is_number, column)) for column in zip(*table.rows, strict=True))


def texts(table: Table) -> list[tuple[str, ...]]:
    """The rows as text; the numbers of a column get the same number of decimals."""
    columns = zip(*table.rows, strict=True)
    return list(zip(*(map(_formatter(column), column) for column in columns), strict=True))


def _formatter(column: Sequence[object]) -> Callable[[object], str]:
    if not any(isinstance(value, float) for value in column):
        return str
    fractions = [f"{value:.6g}".partition(".")[2] for value in column if _is_number(value)]
    decimals = max(map(len, fractions))
    return lambda value: f"{value:,.{decimals}f}" if _is_number(value) else str(value)


def _is_number(value: object) -> TypeIs[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def markdown(sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """Refers to the plots by `plots/NAME`."""
    lines = [f"# {TITLE}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        lines += [line for block in section.blocks for line in _markdown(block)]
    return "\n".join(lines)


def _markdown(block: Block) -> list[str]:
    match block:
        case Prose(title, text):
            return [f"### {title}", "", *([text, ""] if text else [])]
        case Plot(name):
            return [f"![{name}](plots/{name})", ""]
        case Table(columns):
            rows = [columns, tuple("---" for _ in columns), *texts(block)]
            return [*(f"| {' | '.join(map(_in_cell, row))} |" for row in rows), ""]


def _in_cell(text: str) -> str:
    return text.replace("|", r"\|")


def html(sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """One file that needs nothing else: styles and plots are inside."""
    style = files(__package__).joinpath("report.css").read_text("utf-8")
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{style}</style></head><body><main>"
        f"<header><h1>{TITLE}</h1><p>Analyses that ran in one isolated Python sandbox.</p>"
        f"<dl>{listed}</dl></header>{''.join(map(_section, sections))}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    blocks = "".join(map(_html, section.blocks))
    return (
        f"<section><h2>{escape(section.title)} <small>{section.seconds:.1f} s</small></h2>{blocks}"
        "<details><summary>The code that ran</summary>"
        f"<pre><code>{escape(section.code)}</code></pre></details></section>"
    )


def _html(block: Block) -> str:
    match block:
        case Prose(title, text):
            return f"<h3>{escape(title)}</h3>" + (f"<p>{escape(text)}</p>" if text else "")
        case Plot(name, png):
            data = base64.b64encode(png).decode()
            return f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        case Table(columns):
            kinds = [' class="number"' if right else "" for right in numeric(block)]
            head = _row("th", kinds, columns)
            body = "".join(_row("td", kinds, row) for row in texts(block))
            grid = f"<thead>{head}</thead><tbody>{body}</tbody>"
            return f'<div class="table"><table>{grid}</table></div>'


def _row(tag: str, kinds: Sequence[str], values: Sequence[str]) -> str:
    cells = (
        f"<{tag}{kind}>{escape(value)}</{tag}>" for kind, value in zip(kinds, values, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"
