"""Code of an agent in a leased sandbox, and what the agent is told of it.

Contract: every run of code ends as an `Observation`, bounded in size and fit to be shown to a
model, whatever the code did. A sandbox that ends under the code is replaced so many times as its
user allows; then `SandboxLostError` is raised, because an agent may go on killing it for ever.

What comes out of a sandbox is untrusted: it is never unpickled, and no image is decoded here.
"""

import base64
import binascii
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from e2b_agent_mcp.agent.events import Image
from e2b_agent_mcp.agent.text import cut, readable
from e2b_agent_mcp.agent.variables import without_added
from e2b_agent_mcp.errors import SandboxLostError
from e2b_agent_mcp.lifecycle import Lease, Run

if TYPE_CHECKING:
    from e2b_code_interpreter import Execution, Result

MIME = "application/vnd.e2b-agent-mcp+json"
PREPARE_TIMEOUT = 30.0  # seconds
LONGEST_OUTPUT = 8_000  # characters of one observation
LONGEST_ERROR = 4_000  # characters of a traceback
LONGEST_ANSWER = 400_000  # characters of an answer in JSON
LARGEST_IMAGE = 5_000_000  # bytes
MOST_IMAGES = 10  # of one run of code
MOST_IMAGE_BYTES = 20_000_000  # of one workspace: they stay in memory as long as a task
MOST_FACTS = 80  # entries of one kind
LONGEST_FACT = 160  # characters

REPLACED = (
    "The sandbox ended while this code ran (it was killed, ran out of memory, or failed) and was "
    "replaced by a new one: all variables, files and installed packages are gone. Start again from "
    "the beginning, and do less at once."
)


class Answer(NamedTuple):
    """What the code gave to `final_answer`: JSON, and as text."""

    value: object
    text: str


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One run of code. `output` is all that it printed and displayed, `error` why it failed;
    `variables` are those that it set, if it was run by `showing_variables`."""

    output: str = ""
    variables: tuple[str, ...] = ()
    error: str = ""
    result: str | None = None  # text of its last expression
    answer: Answer | None = None
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is there before the agent begins."""

    python: str = ""
    folder: str = ""
    packages: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class Workspace:
    """A lease as an agent uses it; one run of code at a time."""

    def __init__(
        self,
        lease: Lease,
        *,
        on_output: Callable[[str], Awaitable[None]],
        replacements: float = 1,
        image_bytes: float = MOST_IMAGE_BYTES,
    ) -> None:
        self.seconds = 0.0  # during which code ran
        self._lease = lease
        self._on_output = on_output
        self._prepared = False
        self._replacements = replacements
        self._image_bytes = image_bytes  # that may still come

    async def prepare(self) -> Facts:
        """Makes `final_answer` known to the interpreter, and looks around."""
        return _facts(await self._prepare())

    async def run(self, code: str, *, timeout: float) -> Observation:
        try:
            if not self._prepared:
                await self._prepare()
            return await self._run(code, timeout)
        except SandboxLostError:
            if not self._replacements:
                raise
            self._replacements -= 1
            await self._lease.replace()
            self._prepared = False
            return Observation(error=REPLACED)

    async def install(self, packages: list[str], *, timeout: float) -> None:
        await self._lease.install(packages, timeout=timeout)

    async def _prepare(self) -> "Execution":
        run = await self._lease.run_code(_prelude(), timeout=PREPARE_TIMEOUT)
        self._prepared = True
        return run.execution

    async def _run(self, code: str, timeout: float) -> Observation:
        started = time.monotonic()
        try:
            run = await self._lease.run_code(
                code, timeout=timeout, on_stdout=self._on_output, on_stderr=self._on_output
            )
        finally:
            self.seconds += time.monotonic() - started
        for text in filter(None, map(_shown_text, run.execution.results)):
            await self._on_output(f"{text}\n")
        # A note tells of an interpreter that was interrupted or started afresh.
        self._prepared = not run.note
        seen = observe(run, timeout=timeout, image_bytes=self._image_bytes)
        self._image_bytes -= sum(len(image.data) for image in seen.images)
        return seen


def observe(run: Run, *, timeout: float, image_bytes: float = MOST_IMAGE_BYTES) -> Observation:
    """What a run of code looks like to the agent."""
    payloads = list(_payloads(run.execution.results))
    images, left_out = _images(run.execution.results, image_bytes)
    answer = next((found for item in payloads if (found := _answer(item)) is not None), None)
    return Observation(
        output=_output(run.execution, len(images), left_out),
        variables=_variables(payloads),
        error="" if answer is not None else _error(run, timeout),
        result=_main_text(run.execution.results),
        answer=answer,
        images=images,
    )


@cache
def _prelude() -> str:
    source = (files("e2b_agent_mcp.agent") / "inside" / "prelude.py").read_text("utf-8")
    return (
        f"exec(compile({source + 'tell_facts()'!r}, '<agent>', 'exec'), {{'__name__': '<agent>'}})"
    )


def _output(execution: "Execution", images: int, left_out: int) -> str:
    parts = [readable("".join(execution.logs.stdout)).rstrip()]
    parts += [readable(text) for text in map(_shown_text, execution.results) if text]
    if stderr := readable("".join(execution.logs.stderr)).strip():
        parts.append(f"[stderr]\n{stderr}")
    text = cut("\n".join(part for part in parts if part), LONGEST_OUTPUT)
    if images:
        count, them = ("1 image", "it") if images == 1 else (f"{images} images", "them")
        text += f"\n[{count} captured; the user sees {them}]"
    if left_out:
        text += f"\n[{left_out} more or too large, not kept]"
    return text.strip("\n")


def _error(run: Run, timeout: float) -> str:
    if run.status == "timeout":
        return f"Stopped after {timeout:.0f} s, the limit of one step. {run.note}"
    error = run.execution.error
    traceback = without_added(readable(error.traceback)) if error is not None else ""
    said = cut(traceback, LONGEST_ERROR)
    return "\n".join(part for part in (said, run.note) if part)


def _shown_text(result: "Result") -> str:
    """The text of something displayed; an image or data of ours has none to show."""
    if result.png or result.jpeg or result.svg or _ours(result) is not None:
        return ""
    return result.text or result.markdown or ""


def _main_text(results: "list[Result]") -> str | None:
    return next((_shown_text(item) or None for item in results if item.is_main_result), None)


def _images(results: "list[Result]", room: float) -> tuple[tuple[Image, ...], int]:
    """Each different image once, within `room` bytes together, and how many were left out."""
    found = dict.fromkeys(image for result in results for image in _image(result))
    kept: list[Image] = []
    for image in found:
        size = len(image.data)
        if size <= min(LARGEST_IMAGE, room) and len(kept) < MOST_IMAGES:
            kept.append(image)
            room -= size
    return tuple(kept), len(found) - len(kept)


def _image(result: "Result") -> Iterator[Image]:
    for encoded, mime_type in ((result.png, "image/png"), (result.jpeg, "image/jpeg")):
        if encoded:
            try:
                yield Image(base64.b64decode(encoded), mime_type)
            except (binascii.Error, ValueError, TypeError):
                continue
            return
    if isinstance(result.svg, str):
        yield Image(result.svg.encode("utf-8", "replace"), "image/svg+xml")


def _ours(result: "Result") -> object:
    return (result.extra or {}).get(MIME)


def _payloads(results: "list[Result]") -> Iterator[dict[str, object]]:
    for result in results:
        if isinstance(payload := _ours(result), dict):
            yield payload


def _answer(payload: dict[str, object]) -> Answer | None:
    if payload.get("kind") != "answer":
        return None
    text = cut(readable(str(payload.get("text", ""))), LONGEST_ANSWER)
    value = payload.get("value")
    try:
        fits = len(json.dumps(value, allow_nan=False)) <= LONGEST_ANSWER
    except (ValueError, RecursionError):
        fits = False
    return Answer(_encodable(value) if fits else text, text)


def _encodable(value: object) -> object:
    """Without half surrogate pairs, which no JSON message can carry."""
    said = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    encodable: object = json.loads(said)
    return encodable


def _facts(execution: "Execution") -> Facts:
    for payload in _payloads(execution.results):
        if payload.get("kind") == "facts":
            return Facts(
                python=_fact(payload.get("python")),
                folder=_fact(payload.get("folder")),
                packages=_list(payload.get("packages")),
                variables=_list(payload.get("variables")),
                files=_list(payload.get("files")),
            )
    return Facts()


def _variables(payloads: list[dict[str, object]]) -> tuple[str, ...]:
    shown = (item.get("variables") for item in payloads if item.get("kind") == "variables")
    return _list(next(shown, None))


def _fact(value: object) -> str:
    return readable(str(value or ""))[:LONGEST_FACT].replace("\n", " ")


def _list(value: object) -> tuple[str, ...]:
    return tuple(map(_fact, value[:MOST_FACTS])) if isinstance(value, list) else ()
