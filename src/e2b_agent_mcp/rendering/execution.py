"""Runs of code and commands. Who gets room first: text, files, images, displayed data."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mcp.types import CallToolResult, ContentBlock, TextContent

from e2b_agent_mcp.lifecycle import CommandRun, FileInfo, Run
from e2b_agent_mcp.pool import SandboxState
from e2b_agent_mcp.rendering import displays
from e2b_agent_mcp.rendering.plain import file_entry, file_link, kept_entry
from e2b_agent_mcp.rendering.results import CodeError, CommandResult, File, InSession, PythonResult
from e2b_agent_mcp.rendering.room import Kept, Room
from e2b_agent_mcp.rendering.text import Section, fit, json_size, readable
from e2b_agent_mcp.settings import OutputSettings

if TYPE_CHECKING:
    from e2b_code_interpreter.models import Execution

LISTED_FILES = 20  # of the new files, the ones that get a line and a link; all are in `files`
ENVELOPE = 25_000  # bytes left for field names, notes and the message around a result
DISPLAY_ENVELOPE = 1_500  # bytes left for the same of one displayed value
COPIES = 3  # a text may stand in the content, in `stdout` or `text`, and in `results`


class Rendered(NamedTuple):
    result: CallToolResult
    kept: list[Kept]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something ran; `notes` are what the model must know of it, such as what was lost."""

    session: str
    sandbox_id: str
    state: SandboxState
    notes: tuple[str, ...] = ()

    def fields(self, *more: str) -> InSession:
        return {
            "session": self.session,
            "sandbox_id": self.sandbox_id,
            "sandbox_state": self.state,
            "note": self._note(*more),
        }

    def line(self, *more: str) -> str:
        state = "" if self.state == "reused" else f", sandbox {self.state}"
        return f"[{f'Session {self.session!r}{state}. {self._note(*more)}'.strip()}]"

    def _note(self, *more: str) -> str:
        return " ".join(filter(None, (*self.notes, *more)))


def python_result(
    run: Run, place: Place, *, files: Sequence[FileInfo], folder: str | None, limits: OutputSettings
) -> Rendered:
    """The result of `run_python`; `folder` is a new folder of the sandbox for what is too large.

    Decodes and scales images: up to a second of work, so not for the event loop.
    """
    sections = list(_python_sections(run.execution))
    texts, room = _fit_text(
        sections, place, folder, limits, shown=len(displays.shown(run.execution))
    )
    entries = _fit_files(files, room)
    blocks = [
        block
        for number, result in displays.numbered(run.execution)
        for block in displays.blocks(result, number, limits, room)
    ]
    by_title = {section.title: text for section, text in zip(sections, texts, strict=True)}
    results = displays.displays(run.execution, by_title, room)
    structured: PythonResult = {
        **place.fields(run.note),
        "status": run.status,
        "text": by_title.get("result"),
        "stdout": by_title.get("stdout", ""),
        "stderr": by_title.get("stderr", ""),
        "error": _error(run.execution, by_title.get("error", "")),
        "results": results,
        "files": entries,
        "duration": round(run.duration, 3),
        "truncated": texts != [section.text for section in sections] or bool(room.words),
    }
    text = _text(sections, texts, entries, [*_ended(run), *room.words, place.line(run.note)])
    return _rendered(text, blocks, structured, room)


def command_result(
    run: CommandRun,
    place: Place,
    *,
    files: Sequence[FileInfo],
    folder: str | None,
    limits: OutputSettings,
) -> Rendered:
    """The result of `run_command`."""
    sections = [
        Section(title, text, f"{title}.txt")
        for title, text in (("stdout", readable(run.stdout)), ("stderr", readable(run.stderr)))
    ]
    texts, room = _fit_text(sections, place, folder, limits)
    entries = _fit_files(files, room)
    structured: CommandResult = {
        **place.fields(run.note),
        "status": run.status,
        "exit_code": run.exit_code,
        "stdout": texts[0],
        "stderr": texts[1],
        "files": entries,
        "duration": round(run.duration, 3),
        "truncated": texts != [section.text for section in sections] or bool(room.words),
    }
    ended = [*_ended(run), *([] if run.exit_code is None else [f"exit code {run.exit_code}"])]
    text = _text(sections, texts, entries, [*ended, *room.words, place.line(run.note)])
    return _rendered(text, [], structured, room)


def _rendered(
    text: str,
    blocks: Sequence[ContentBlock],
    structured: PythonResult | CommandResult,
    room: Room,
) -> Rendered:
    """Links the new files, and what was kept, which is a new file too once it is written."""
    kept = [kept_entry(room.session, item.path, len(item.content)) for item in room.kept]
    links = [file_link(entry) for entry in [*structured["files"][:LISTED_FILES], *kept]]
    structured["files"] += kept
    content = [TextContent(text=text), *blocks, *links]
    return Rendered(CallToolResult(content=content, structured_content=structured), room.kept)


# --- text ---------------------------------------------------------------------------------------


def _python_sections(execution: "Execution") -> Iterator[Section]:
    yield from _streams(execution)
    yield from displays.sections(execution)
    if (error := execution.error) is not None:
        text = readable(error.traceback) or f"{error.name}: {error.value}"
        yield Section("error", text, "error.txt")


def _streams(execution: "Execution") -> Iterator[Section]:
    logs = execution.logs
    for title, chunks in (("stdout", logs.stdout), ("stderr", logs.stderr)):
        if text := readable("".join(chunks)):
            yield Section(title, text, f"{title}.txt")


def _fit_text(
    sections: Sequence[Section],
    place: Place,
    folder: str | None,
    limits: OutputSettings,
    *,
    shown: int = 0,
) -> tuple[list[str], Room]:
    overhead = ENVELOPE + DISPLAY_ENVELOPE * shown
    available = max(limits.result_limit - overhead, 0)
    texts = fit(
        sections, characters=limits.text_limit, size=available // (2 * COPIES), folder=folder
    )
    room = Room(place.session, available - COPIES * json_size(texts), folder)
    for section, text in zip(sections, texts, strict=True):
        if text != section.text and folder is not None:
            room.kept.append(Kept(f"{folder}/{section.file}", section.text.encode()))
    return texts, room


def _text(
    sections: Sequence[Section], texts: Sequence[str], entries: Sequence[File], words: Sequence[str]
) -> str:
    parts = [
        f"{section.title}:\n{text.rstrip()}"
        for section, text in zip(sections, texts, strict=True)
        if text.strip()
    ]
    if entries:
        lines = [f"{file['path']} ({file['size']:,} bytes)" for file in entries[:LISTED_FILES]]
        more = len(entries) - len(lines)
        parts.append(
            "\n".join(["new or changed files:", *lines, *([f"and {more} more"] * bool(more))])
        )
    return "\n\n".join([*(parts or ["(no output)"]), "\n".join(words)])


def _ended(run: Run | CommandRun) -> list[str]:
    return [f"stopped by its time limit after {run.duration:.3g} s"] * (run.status == "timeout")


def _error(execution: "Execution", traceback: str) -> CodeError | None:
    error = execution.error
    if error is None:
        return None
    return {
        "name": readable(error.name)[:200],
        "value": readable(error.value)[:2000],
        "traceback": traceback,
    }


# --- files --------------------------------------------------------------------------------------


def _fit_files(files: Sequence[FileInfo], room: Room) -> list[File]:
    """As many as a quarter of the room holds; each stands in `files`, in a line and in a link."""
    entries: list[File] = []
    available = room.left // 4
    for info in files:
        entry = file_entry(room.session, info)
        available -= 3 * json_size(entry)
        if available < 0:
            room.words.append(f"{len(files) - len(entries)} more new files are not listed")
            break
        entries.append(entry)
    room.left -= 3 * json_size(entries)
    return entries
