"""Runs of code and commands. Who gets room first: text, files, images, displayed data."""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from mcp.types import (
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    TextContent,
    TextResourceContents,
)

from e2b_agent_mcp.lifecycle import CommandRun, FileInfo, Run
from e2b_agent_mcp.pool import SandboxState
from e2b_agent_mcp.rendering.images import fit_image
from e2b_agent_mcp.rendering.plain import file_entry, file_link, kept_entry, sandbox_uri
from e2b_agent_mcp.rendering.results import CommandResult, Display, File, InSession, PythonResult
from e2b_agent_mcp.rendering.text import Section, fit, json_size, plain, readable, shares
from e2b_agent_mcp.settings import OutputSettings

if TYPE_CHECKING:
    from e2b_code_interpreter.models import Execution, Result

LISTED_FILES = 20  # of the new files, the ones that get a line and a link; all are in `files`
MOST_DISPLAYS = 100
ENVELOPE = 25_000  # bytes left for field names, notes and the message around a result
DISPLAY_ENVELOPE = 1_500  # bytes left for the same of one displayed value
COPIES = 3  # a text may stand in the content, in `stdout` or `text`, and in `results`

# IPython's words for values that have no text.
_NO_TEXT = ("<IPython.core.display.", "<Figure size ")


class Kept(NamedTuple):
    """What a result has no room for; `path` is where the result says that it is."""

    path: str
    content: bytes


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


@dataclass
class _Room:
    """What is left of a result's bytes, what had to be kept out of it, and the words about that."""

    left: int
    folder: str | None
    kept: list[Kept] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def keep(self, name: str, content: bytes, words: str) -> None:
        if self.folder is None:
            self.words.append(f"{words}, could not be saved")
            return
        path = f"{self.folder}/{name}"
        self.kept.append(Kept(path, content))
        self.words.append(f"{words}: {path}")


def python_result(
    run: Run, place: Place, *, files: Sequence[FileInfo], folder: str | None, limits: OutputSettings
) -> Rendered:
    """The result of `run_python`; `folder` is a new folder of the sandbox for what is too large.

    Decodes and scales images: up to a second of work, so not for the event loop.
    """
    sections = list(_python_sections(run.execution))
    shown_results = len(_shown_results(run.execution))
    texts, room = _fit_text(sections, folder, limits, displays=shown_results)
    entries = _fit_files(place.session, files, room)
    shown = [_show(result, number, limits, room) for number, result in _numbered(run.execution)]
    by_title = {section.title: text for section, text in zip(sections, texts, strict=True)}
    displays = _displays(run.execution, by_title, room)
    structured: PythonResult = {
        **place.fields(run.note),
        "status": run.status,
        "text": by_title.get("result"),
        "stdout": by_title.get("stdout", ""),
        "stderr": by_title.get("stderr", ""),
        "error": _error(run.execution, by_title.get("error", "")),
        "results": displays,
        "files": entries,
        "duration": round(run.duration, 3),
        "truncated": texts != [section.text for section in sections] or bool(room.words),
    }
    text = _text(sections, texts, entries, [*_ended(run), *room.words, place.line(run.note)])
    blocks = [block for blocks in shown for block in blocks]
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
    texts, room = _fit_text(sections, folder, limits)
    entries = _fit_files(place.session, files, room)
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
    room: _Room,
) -> Rendered:
    """Links the new files, and what was kept, which is a new file too once it is written."""
    session = structured["session"]
    kept = [kept_entry(session, item.path, len(item.content)) for item in room.kept]
    links = [file_link(entry) for entry in [*structured["files"][:LISTED_FILES], *kept]]
    structured["files"] += kept
    content = [TextContent(text=text), *blocks, *links]
    return Rendered(CallToolResult(content=content, structured_content=structured), room.kept)


# --- text ---------------------------------------------------------------------------------------


def _python_sections(execution: "Execution") -> Iterator[Section]:
    yield from _streams(execution)
    for number, result in _numbered(execution):
        if text := _shown_text(result):
            title = "result" if result.is_main_result else f"display {number}"
            yield Section(title, text, f"{title.replace(' ', '-')}.txt")
    if (error := execution.error) is not None:
        text = readable(error.traceback) or f"{error.name}: {error.value}"
        yield Section("error", text, "error.txt")


def _streams(execution: "Execution") -> Iterator[Section]:
    logs = execution.logs
    for title, chunks in (("stdout", logs.stdout), ("stderr", logs.stderr)):
        if text := readable("".join(chunks)):
            yield Section(title, text, f"{title}.txt")


def _shown_text(result: "Result") -> str:
    """What the model reads of a displayed value that is no image: its words, else its markup."""
    if result.markdown or result.latex:
        return readable(result.markdown or result.latex or "")
    text = readable(result.text or "")
    if not text.startswith(_NO_TEXT):
        return text
    return "" if _image(result) else readable(result.html or "")


def _numbered(execution: "Execution") -> Iterator[tuple[int, "Result"]]:
    return enumerate(_shown_results(execution), start=1)


def _shown_results(execution: "Execution") -> list["Result"]:
    """The first ones, and the last, which is the main one if there is one."""
    results = execution.results
    return (
        results if len(results) <= MOST_DISPLAYS else [*results[: MOST_DISPLAYS - 1], results[-1]]
    )


def _fit_text(
    sections: Sequence[Section], folder: str | None, limits: OutputSettings, *, displays: int = 0
) -> tuple[list[str], _Room]:
    overhead = ENVELOPE + DISPLAY_ENVELOPE * displays
    available = max(limits.result_limit - overhead, 0)
    texts = fit(
        sections, characters=limits.text_limit, size=available // (2 * COPIES), folder=folder
    )
    room = _Room(available - COPIES * json_size(texts), folder)
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


def _error(execution: "Execution", traceback: str) -> Any:
    error = execution.error
    if error is None:
        return None
    return {
        "name": readable(error.name)[:200],
        "value": readable(error.value)[:2000],
        "traceback": traceback,
    }


# --- files, images ------------------------------------------------------------------------------


def _fit_files(session: str, files: Sequence[FileInfo], room: _Room) -> list[File]:
    """As many as a quarter of the room holds; each stands in `files`, in a line and in a link."""
    entries: list[File] = []
    available = room.left // 4
    for info in files:
        entry = file_entry(session, info)
        available -= 3 * json_size(entry)
        if available < 0:
            room.words.append(f"{len(files) - len(entries)} more new files are not listed")
            break
        entries.append(entry)
    room.left -= 3 * json_size(entries)
    return entries


def _show(result: "Result", number: int, limits: OutputSettings, room: _Room) -> list[ContentBlock]:
    """The blocks of one displayed value; what cannot be shown is kept."""
    if result.pdf:
        room.keep(f"result-{number}.pdf", _decoded(result.pdf), f"PDF {number}")
    if found := _image(result):
        return _show_image(*found, number, limits, room)
    if result.svg:
        return _show_svg(result.svg, number, room)
    return []


def _image(result: "Result") -> tuple[str, str] | None:
    if result.png:
        return result.png, "image/png"
    return (result.jpeg, "image/jpeg") if result.jpeg else None


def _show_image(
    data: str, mime_type: str, number: int, limits: OutputSettings, room: _Room
) -> list[ContentBlock]:
    raw = _decoded(data)
    name = f"image-{number}.{mime_type.removeprefix('image/')}"
    picture = fit_image(raw, mime_type, side=limits.image_size) if raw else None
    if picture is None:
        room.keep(name, raw, f"image {number} cannot be shown")
        return []
    encoded = base64.b64encode(picture.data).decode()
    if number > limits.images or len(encoded) > room.left:
        room.keep(name, raw, f"image {number} left out, the result is full")
        return []
    room.left -= len(encoded) + 100
    if picture.change:
        room.keep(name, raw, f"image {number} {picture.change}; original")
    return [ImageContent(data=encoded, mime_type=picture.mime_type)]


def _show_svg(svg: str, number: int, room: _Room) -> list[ContentBlock]:
    svg = readable(svg)
    size = json_size(svg)
    if size > room.left // 2:
        room.keep(f"image-{number}.svg", svg.encode(), f"image {number} (SVG) is too large to show")
        return []
    room.left -= size + 200
    uri = sandbox_uri("result", f"image-{number}.svg")
    contents = TextResourceContents(uri=uri, mime_type="image/svg+xml", text=svg)
    return [EmbeddedResource(resource=contents)]


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data)
    except (binascii.Error, ValueError):
        return b""


# --- displayed values as data -------------------------------------------------------------------


def _displays(execution: "Execution", texts: Mapping[str, str], room: _Room) -> list[Display]:
    """All displayed values; the room that is left is shared by their tables, charts and markup."""
    results = _shown_results(execution)
    if missing := len(execution.results) - len(results):
        room.words.append(f"{missing:,} more displayed values left out")
    wanted = [_data(result) for result in results]
    sizes = [json_size(value) for values in wanted for value in values.values()]
    granted = iter(shares(sizes, max(room.left // 2, 0)))
    sized = iter(sizes)
    displays: list[Display] = []
    for number, (result, values) in enumerate(zip(results, wanted, strict=True), 1):
        title = "result" if result.is_main_result else f"display {number}"
        display: dict[str, Any] = {
            "mime_types": _mime_types(result),
            "text": texts.get(title) or readable(result.text or "")[:200] or None,
            "is_main_result": result.is_main_result,
        }
        for name, value in values.items():
            fitted = _fit_value(name, value, next(sized), next(granted), number, room)
            if fitted is not None:
                display[name] = fitted
        displays.append(display)  # type: ignore[arg-type]  # built by name
    return displays


def _data(result: "Result") -> dict[str, object]:
    chart = result.chart.to_dict() if result.chart else None
    values = {"data": result.data, "chart": chart, "json": result.json}
    found = {name: plain(value) for name, value in values.items() if value is not None}
    return found | ({"html": readable(result.html)} if result.html else {})


def _fit_value(
    name: str, value: object, size: int, limit: int, number: int, room: _Room
) -> object | None:
    if size <= limit:
        return value
    if name == "html":
        room.keep(f"result-{number}.html", str(value).encode(), f"HTML of display {number}")
        return None
    if name == "data" and isinstance(value, dict):
        return _first_rows(value, size, limit, number, room)
    room.words.append(f"{name} of display {number} left out ({size:,} bytes)")
    return None


def _first_rows(
    table: dict[str, object], size: int, limit: int, number: int, room: _Room
) -> dict[str, object] | None:
    """The table's first rows, as many as `limit` bytes hold."""
    rows = max((len(column) for column in table.values() if isinstance(column, list)), default=0)
    count = rows * limit // size
    while count:
        part = {
            name: column[:count] if isinstance(column, list) else column
            for name, column in table.items()
        }
        if json_size(part) <= limit:
            words = f"table {number}: `data` has the first {count:,} of {rows:,} rows"
            room.words.append(f"{words}; write it to a file to get them all")
            return part
        count //= 2
    room.words.append(f"table {number}: `data` left out ({size:,} bytes)")
    return None


_MIME_TYPES = {
    "text": "text/plain",
    "html": "text/html",
    "markdown": "text/markdown",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "pdf": "application/pdf",
    "latex": "text/latex",
    "json": "application/json",
    "javascript": "application/javascript",
    "data": "e2b/data",
    "chart": "e2b/chart",
}


def _mime_types(result: "Result") -> list[str]:
    return [_MIME_TYPES.get(name, readable(name)[:60]) for name in list(result.formats())[:20]]
