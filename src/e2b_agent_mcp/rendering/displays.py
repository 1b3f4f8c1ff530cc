"""Displayed values: what the model reads and sees of them, and their data for programs."""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mcp.types import ContentBlock, EmbeddedResource, ImageContent, TextResourceContents

from e2b_agent_mcp.rendering.images import fit_image
from e2b_agent_mcp.rendering.plain import sandbox_uri
from e2b_agent_mcp.rendering.results import Display
from e2b_agent_mcp.rendering.room import Room
from e2b_agent_mcp.rendering.text import Section, json_size, plain, readable, shares
from e2b_agent_mcp.settings import OutputSettings

if TYPE_CHECKING:
    from e2b_code_interpreter.models import Execution, Result

MOST_DISPLAYS = 100

# IPython's words for values that have no text.
_NO_TEXT = ("<IPython.core.display.", "<Figure size ")


def shown(execution: "Execution") -> list["Result"]:
    """The first ones, and the last, which is the main one if there is one."""
    results = execution.results
    if len(results) <= MOST_DISPLAYS:
        return results
    return [*results[: MOST_DISPLAYS - 1], results[-1]]


def numbered(execution: "Execution") -> Iterator[tuple[int, "Result"]]:
    return enumerate(shown(execution), start=1)


def sections(execution: "Execution") -> Iterator[Section]:
    for number, result in numbered(execution):
        if text := _shown_text(result):
            title = _title(result, number)
            yield Section(title, text, f"{title.replace(' ', '-')}.txt")


def _title(result: "Result", number: int) -> str:
    return "result" if result.is_main_result else f"display {number}"


def _shown_text(result: "Result") -> str:
    """What the model reads of a displayed value that is no image: its words, else its markup."""
    if result.markdown or result.latex:
        return readable(result.markdown or result.latex or "")
    text = readable(result.text or "")
    if not text.startswith(_NO_TEXT):
        return text
    return "" if _image(result) else readable(result.html or "")


def blocks(result: "Result", number: int, limits: OutputSettings, room: Room) -> list[ContentBlock]:
    """The blocks of one displayed value; what cannot be shown is kept."""
    if result.pdf:
        room.keep(f"result-{number}.pdf", _decoded(result.pdf), f"PDF {number}")
    if found := _image(result):
        return _show_image(*found, limits, room)
    if result.svg:
        return _show_svg(readable(result.svg), number, room)
    return []


def _image(result: "Result") -> tuple[str, str] | None:
    if result.png:
        return result.png, "image/png"
    return (result.jpeg, "image/jpeg") if result.jpeg else None


def _show_image(
    data: str, mime_type: str, limits: OutputSettings, room: Room
) -> list[ContentBlock]:
    raw = _decoded(data)
    room.images += 1
    title = f"image {room.images}"
    name = f"image-{room.images}.{mime_type.removeprefix('image/')}"
    if room.images > limits.images:
        room.keep(name, raw, f"{title} left out, {limits.images} are sent")
        return []
    picture = fit_image(raw, mime_type, side=limits.image_size)
    if picture is None:
        room.keep(name, raw, f"{title} cannot be shown")
        return []
    encoded = base64.b64encode(picture.data).decode()
    if len(encoded) > room.left:
        room.keep(name, raw, f"{title} left out, the result is full")
        return []
    room.left -= len(encoded) + 100
    if picture.change:
        room.keep(name, raw, f"{title} {picture.change}; original")
    return [ImageContent(data=encoded, mime_type=picture.mime_type)]


def _show_svg(svg: str, number: int, room: Room) -> list[ContentBlock]:
    size = json_size(svg)
    name = f"result-{number}.svg"
    if size > room.left // 2 or room.folder is None:
        room.keep(name, svg.encode(), f"SVG {number} is too large to show")
        return []
    room.left -= size + 300
    room.keep(name, svg.encode(), "")
    uri = sandbox_uri(room.session, f"{room.folder}/{name}")
    contents = TextResourceContents(uri=uri, mime_type="image/svg+xml", text=svg)
    return [EmbeddedResource(resource=contents)]


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data)
    except (binascii.Error, ValueError):
        return b""


def displays(execution: "Execution", texts: Mapping[str, str], room: Room) -> list[Display]:
    """All displayed values; the room that is left is shared by their tables, charts and markup."""
    results = shown(execution)
    if missing := len(execution.results) - len(results):
        room.words.append(f"{missing:,} more displayed values left out")
    wanted = [_data(result) for result in results]
    sizes = [json_size(value) for values in wanted for value in values.values()]
    granted = iter(shares(sizes, max(room.left // 2, 0)))
    sized = iter(sizes)
    described: list[Display] = []
    for number, (result, values) in enumerate(zip(results, wanted, strict=True), 1):
        title = _title(result, number)
        display: dict[str, Any] = {
            "mime_types": _mime_types(result),
            "text": texts.get(title) or readable(result.text or "")[:200] or None,
            "is_main_result": result.is_main_result,
        }
        for name, value in values.items():
            fitted = _fit_value(name, value, next(sized), next(granted), number, room)
            if fitted is not None:
                display[name] = fitted
        described.append(display)  # type: ignore[arg-type]  # built by name
    return described


def _data(result: "Result") -> dict[str, object]:
    chart = result.chart.to_dict() if result.chart else None
    values = {"data": result.data, "chart": chart, "json": result.json}
    found = {name: plain(value) for name, value in values.items() if value is not None}
    return found | ({"html": readable(result.html)} if result.html else {})


def _fit_value(
    name: str, value: object, size: int, limit: int, number: int, room: Room
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
    table: dict[str, object], size: int, limit: int, number: int, room: Room
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
