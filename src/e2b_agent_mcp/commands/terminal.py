"""A task in a terminal: thoughts, code, output and plots as they come, then the answer.

What a sandbox or a model sends never reaches the terminal as it is: control characters, with which
text can rewrite the screen or the title, are taken out.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markdown import Markdown
from rich.syntax import Syntax
from rich.text import Text

from e2b_agent_mcp.agent import (
    CodeStarted,
    Image,
    ModelRetry,
    Output,
    StepFinished,
    StepStarted,
    Thinking,
    Usage,
)
from e2b_agent_mcp.rendering import readable
from e2b_agent_mcp.tasks import Doing

if TYPE_CHECKING:
    from rich.status import Status

    from e2b_agent_mcp.tasks import TaskEvent, TaskRecord

SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/svg+xml": ".svg"}


class TaskView:
    """Prints a task's events; plots are saved in `folder`, which is made for the first one."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.plots: list[Path] = []
        self._console = console
        self._folder = folder
        self._status: Status | None = None
        self._open_line = False  # what was printed last has no line's end yet

    async def show(self, event: "TaskEvent") -> None:
        match event:
            case Doing(words):
                self._wait(words)
            case StepStarted(number=number):
                self._close_line()
                self._console.rule(f"[dim]step {number}", align="left", style="dim")
                self._wait("thinking")
            case Thinking(characters=characters):
                self._wait(f"thinking, {characters:,} characters")
            case CodeStarted(thought=thought, code=code):
                self._stop_waiting()
                self._print(thought.strip(), style="italic")
                shown = Syntax(safe(code.strip()), "python", theme="ansi_dark", word_wrap=True)
                self._console.print(shown)
                self._wait("running")
            case Output(text=text):
                self._stop_waiting()
                self._console.print(Text(safe(text)), end="", soft_wrap=True)
                self._open_line = not text.endswith("\n")
            case StepFinished(step=step):
                self.finish()
                self._print(step.error, style="red")
                for image in step.images:
                    self._save(image)
            case ModelRetry(reason=reason, delay=delay, model=model):
                self._wait(f"{reason}; asking {model} in {delay:.0f} s")

    def finish(self) -> None:
        """Ends what is only shown meanwhile."""
        self._stop_waiting()
        self._close_line()

    def _wait(self, words: str) -> None:
        if self._status is None:
            self._status = self._console.status(Text(safe(words), style="dim"))
            self._status.start()
        else:
            self._status.update(Text(safe(words), style="dim"))

    def _stop_waiting(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _close_line(self) -> None:
        if self._open_line:
            self._console.print()
            self._open_line = False

    def _print(self, text: str, *, style: str) -> None:
        if text:
            self._console.print(Text(safe(text), style=style), soft_wrap=True)

    def _save(self, image: Image) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = _unused(self._folder, SUFFIXES.get(image.mime_type, ".bin"))
        path.write_bytes(image.data)
        self.plots.append(path)
        self._console.print(Text.assemble(("plot ", "dim"), (str(path), "green")))


def print_end(record: "TaskRecord", console: Console) -> None:
    """How the task ended, what it made and what it cost; not its answer."""
    if record.error is not None:
        console.print(Text(safe(record.error.message), style="red"), soft_wrap=True)
        if record.error.hint:
            console.print(Text(safe(record.error.hint)), soft_wrap=True)
    for file in record.files:
        console.print(Text.assemble(("file ", "dim"), (safe(file.path), "green")), soft_wrap=True)
    if record.note:
        console.print(Text(safe(record.note), style="yellow"), soft_wrap=True)
    steps = f"{len(record.steps)} step{'s' * (len(record.steps) != 1)}"
    words = f"{record.status}: {steps}, {spent(record.usage)}, {record.task_id}"
    console.print(Text(words, style="dim"), soft_wrap=True)


def print_answer(record: "TaskRecord", console: Console) -> None:
    """As Markdown, which models write; data as it is."""
    if record.answer_text:
        shown = answer_of(record)
        is_data = isinstance(record.answer, (dict, list))
        console.print(Text(shown) if is_data else Markdown(shown))


def answer_of(record: "TaskRecord") -> str:
    """The answer as a terminal may show it: data as indented JSON."""
    if isinstance(record.answer, (dict, list)):
        return safe(json.dumps(record.answer, indent=2, ensure_ascii=False))
    return safe(record.answer_text)


def spent(usage: Usage) -> str:
    cost = "cost unknown" if usage.cost_usd is None else f"${usage.cost_usd:.4f}"
    tokens = f"{usage.input_tokens:,} + {usage.output_tokens:,} tokens"
    return f"{tokens}, {cost}, {usage.duration:.1f} s"


def safe(text: str) -> str:
    return "".join(c for c in readable(text) if c.isprintable() or c in "\n\t")


def _unused(folder: Path, suffix: str) -> Path:
    number = 1
    while (path := folder / f"plot-{number}{suffix}").exists():
        number += 1
    return path
