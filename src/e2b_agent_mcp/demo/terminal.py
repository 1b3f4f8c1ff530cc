"""The demo's sections in a terminal."""

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from e2b_agent_mcp.demo.report import Plot, Prose, Section, Table, numeric, texts


def print_section(section: Section, console: Console) -> None:
    console.rule(f"[bold]{section.title}[/]  [dim]{section.seconds:.1f} s", align="left")
    for block in section.blocks:
        match block:
            case Prose(title, text):
                console.print(f"\n[bold cyan]{title}[/]")
                if text:
                    console.print(text, markup=False, highlight=False)
            case Table():
                console.print(_grid(block))
            case Plot(name):
                console.print(f"[dim]plot[/] [green]plots/{name}[/]", highlight=False)
    console.print()


def _grid(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, right in zip(table.columns, numeric(table), strict=True):
        grid.add_column(column, justify="right" if right else "left")
    for row in texts(table):
        grid.add_row(*row)
    return grid
