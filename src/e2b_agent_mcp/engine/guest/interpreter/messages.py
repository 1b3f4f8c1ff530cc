"""What a kernel says, as the lines that an E2B client reads. Pure: no sockets, no clock.

A kernel is a hostile program as soon as it ran one cell: a message that does not look like
one is skipped, and one above `MAX_MESSAGE` or nested too deeply is named instead of read: an
error stays an error.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

DELIMITER = b"<IDS|MSG>"
MAX_MESSAGE = 64 << 20  # bytes of one result or one error

TOO_DEEP = "was left out: it is nested too deeply"
STREAMS = ("stdout", "stderr")
PLAIN = bytes(range(0x20, 0x7F)) + b"\n"
ESCAPED = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"))

FIELDS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}

WORDLESS = "Execution failed"
_SYNTAX_ERROR = re.compile(r"SyntaxError: (.*?)\s*(?:Stack backtrace|\Z)", re.DOTALL)
_PLACE = re.compile(r"file://\S*/_stdin\.ts:")  # what Deno calls code that has no file

# One line of `/execute`; the text of `stdout` and `stderr` in UTF-8. `Any`: a result carries
# whatever JSON the user's value has.
Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Message:
    kind: str
    parent: str
    date: str
    content: Mapping[str, Any]
    left_out: str = ""  # why there is no content
    octets: bytes = b""  # what lies beside the content: of our own kernel's streams, the text

    @classmethod
    def read(cls, frames: Sequence[bytes]) -> "Message | None":
        """Frames: routing…, delimiter, signature, header, parent, metadata, content, …"""
        try:
            at = frames.index(DELIMITER)
            header, parent, _, content, *octets = frames[at + 2 : at + 7]
            body, left_out = _read_content(content, len(content) + sum(map(len, octets)))
            fields = _parse(header)
            return cls(
                kind=str(fields["msg_type"]),
                parent=str(_parse(parent).get("msg_id", "")),
                date=str(fields.get("date", "")),
                content=body,
                left_out=left_out,
                octets=octets[0] if octets else b"",
            )
        except (ValueError, KeyError, AttributeError, RecursionError):
            return None


def _read_content(frame: bytes, size: int) -> tuple[dict[str, Any], str]:
    if size > MAX_MESSAGE:
        return {}, f"of {size >> 20} MiB was left out: the limit is {MAX_MESSAGE >> 20} MiB"
    try:
        return _parse(frame), ""
    except RecursionError:
        return {}, TOO_DEEP


def _parse(frame: bytes) -> dict[str, Any]:
    # Text with lone surrogates leaves a kernel as invalid UTF-8.
    value = json.loads(frame.decode("utf-8", errors="replace"))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def write_line(event: Event) -> bytes:
    """In ASCII: a client splits lines as Python does, at U+2028 too."""
    if event["type"] not in STREAMS:
        try:
            return _write(event) + b"\n"
        except RecursionError:  # to write takes more of the stack than to read
            return write_line(stderr(_result_note(TOO_DEEP)))
    head, _, tail = _write({**event, "text": ""}).partition(b'""')
    return b"".join((head, _write_text(event["text"]), tail, b"\n"))


def _write(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _write_text(text: bytes) -> bytes:
    """Plain text becomes JSON by some replacements, in a third of the time."""
    if text.translate(None, PLAIN):
        return _write(text.decode("utf-8", "replace"))
    for character, escaped in ESCAPED:
        text = text.replace(character, escaped)
    return b'"%b"' % text


def error(name: str, value: str, traceback: str = "") -> Event:
    return {"type": "error", "name": name, "value": value, "traceback": traceback or value}


def syntax_error(said: str) -> Event | None:
    """What a program that read the code found wrong with it; None: nothing."""
    found = _SYNTAX_ERROR.search(said)
    if found is None:
        return None
    text = _PLACE.sub("", found[1])
    return error("SyntaxError", text.partition("\n")[0], f"SyntaxError: {text}")


def stderr(text: str) -> Event:
    return {"type": "stderr", "text": text.encode(), "timestamp": ""}


END: Event = {"type": "end_of_execution"}
KEEPALIVE: Event = {"type": "keepalive"}


def _result_note(left_out: str) -> str:
    return f"[A result {left_out}. Write it to a file instead.]\n"


@dataclass(kw_only=True)
class Transcript:
    """The events of one execution, in order, from the messages of its kernel.

    A failing cell says so twice, published and replied: the error is told once.
    """

    replied: bool = False
    idle: bool = False
    started: anyio.Event = field(default_factory=anyio.Event)
    _failed: bool = False
    _reply: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.replied and self.idle

    def read(self, message: Message) -> Iterator[Event]:
        content = message.content
        if message.left_out:
            yield from self._left_out(message)
        elif message.kind == "stream":
            name = "stderr" if content.get("name") == "stderr" else "stdout"
            text = message.octets or str(content.get("text")).encode("utf-8", "replace")
            yield {"type": name, "text": text, "timestamp": message.date}
        elif message.kind in ("display_data", "execute_result"):
            yield result(content.get("data"), is_main=message.kind == "execute_result")
        elif message.kind == "error":
            yield from self._error(content)
        elif message.kind == "execute_input":
            self.started.set()
            yield {
                "type": "number_of_executions",
                "execution_count": content.get("execution_count"),
            }
        elif message.kind == "execute_reply":
            self.replied = True
            self._reply = content
        elif message.kind == "status":
            self.idle = self.idle or content.get("execution_state") == "idle"

    @property
    def wordless(self) -> bool:
        """Whether code was refused without a reason, as Deno's kernel refuses wrong syntax."""
        reply = self._reply
        refused = reply.get("status") == "error" and reply.get("evalue") == WORDLESS
        return refused and not self._failed and not reply.get("traceback")

    def finish(self) -> Iterator[Event]:
        """An error that was replied and not published: a refused or aborted request."""
        status = self._reply.get("status", "ok")
        if status == "error":
            yield from self._error(self._reply)
        elif status != "ok":
            yield from self._error({"ename": "Aborted", "evalue": "the code did not run"})

    def _left_out(self, message: Message) -> Iterator[Event]:
        if message.kind in ("error", "execute_reply"):
            said = {"ename": "Error", "evalue": f"[An error {message.left_out}.]"}
            yield from self._error(said)
            self.replied = self.replied or message.kind == "execute_reply"
        else:
            yield stderr(_result_note(message.left_out))

    def _error(self, content: Mapping[str, Any]) -> Iterator[Event]:
        if self._failed:
            return
        self._failed = True
        lines = content.get("traceback")
        yield error(
            str(content.get("ename", "Error")),
            str(content.get("evalue", "")),
            "\n".join(map(str, lines)) if isinstance(lines, list) else "",
        )


# `Any`: what a hostile kernel put where a MIME bundle belongs.
def result(data: Any, *, is_main: bool) -> Event:
    bundle = data if isinstance(data, dict) else {}
    event: Event = {"type": "result", "is_main_result": is_main}
    event |= {FIELDS[mime]: value for mime, value in bundle.items() if mime in FIELDS}
    if isinstance(text := event.get("text"), str):
        event["text"] = _without_quotes(text)
    if extra := {mime: value for mime, value in bundle.items() if mime not in FIELDS}:
        event["extra"] = extra
    return event


def _without_quotes(text: str) -> str:
    """A string's repr loses its quotes, as in E2B; nothing else of it is undone."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text
