"""An agent's task as a tool result. Who gets room first: the answer, steps, files, images.

A task that is at work is described by its steps so far; images come when it is over, as a client
that waits asks several times.
"""

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from mcp.types import CallToolResult, ContentBlock, ImageContent, TextContent

from e2b_agent_mcp.rendering.execution import ENVELOPE, LISTED_FILES
from e2b_agent_mcp.rendering.images import fit_image
from e2b_agent_mcp.rendering.plain import file_link, kept_entry
from e2b_agent_mcp.rendering.results import ErrorInfo, File, StepResult, TaskResult
from e2b_agent_mcp.rendering.text import cut, encodable, json_size, plain, readable, shares
from e2b_agent_mcp.settings import OutputSettings

if TYPE_CHECKING:
    from e2b_agent_mcp.agent import Step
    from e2b_agent_mcp.tasks import TaskRecord

SHOWN_STEPS = 10  # that the text tells of, the last ones
SHOWN_WORDS = 300  # characters of a thought or an output in the text

_ENDS = {
    "completed": "is completed",
    "failed": "failed",
    "cancelled": "was cancelled; what it did so far is kept",
    "budget_exceeded": "reached its budget; run_agent_task with this task_id goes on",
    "interrupted": "was interrupted by the end of its server; "
    "run_agent_task with this task_id goes on",
}


def task_result(
    record: "TaskRecord", *, limits: OutputSettings, reminder: str = ""
) -> CallToolResult:
    """The result of `run_agent_task`, `get_agent_task` and `cancel_agent_task`.

    Decodes and scales images: not for the event loop.
    """
    structured = _structured(record, limits, reminder)
    text = _text(record, structured)
    links = [file_link(entry) for entry in structured["files"][:LISTED_FILES]]
    taken = json_size(structured) + json_size(text) + 3 * json_size(structured["files"])
    left = limits.result_limit - ENVELOPE - taken
    images, missing = _images(record, left, limits)
    if missing:
        structured["truncated"] = True
        text += f"\n{missing} of the task's images {'is' if missing == 1 else 'are'} not shown"
    return CallToolResult(
        content=[TextContent(text=text), *images, *links],
        structured_content=structured,
        is_error=record.status == "failed",
    )


def _structured(record: "TaskRecord", limits: OutputSettings, reminder: str) -> TaskResult:
    room = max(limits.result_limit - ENVELOPE, 0)
    most = min(limits.text_limit, room // 4)
    answer, answer_text = plain(record.answer), readable(record.answer_text)
    fits = json_size(answer) <= most
    shown_text = _cut([answer_text], most // 4)[0]
    steps, whole = _steps(record.steps, most // 2)
    files = _files(record, room // 4)
    return {
        "task_id": record.task_id,
        "status": record.status,
        "answer": answer if fits else None,
        "answer_text": shown_text,
        "session": record.key.name,
        "sandbox_id": record.sandbox_id,
        "sandbox_state": record.sandbox_state,
        "note": " ".join(filter(None, (record.note, reminder))),
        "model": record.model,
        "steps": steps,
        "usage": {
            **asdict(record.usage),  # type: ignore[typeddict-item]  # the same fields
            "sandbox_seconds": round(record.usage.sandbox_seconds, 3),
            "duration": round(record.usage.duration, 3),
        },
        "files": files,
        "error": _error(record, most // 8),
        "truncated": not (
            fits and whole and shown_text == answer_text and len(files) == len(record.files)
        ),
    }


def _error(record: "TaskRecord", size: int) -> ErrorInfo | None:
    if record.error is None:
        return None
    message = _cut([readable(record.error.message)], size)[0]
    return {"code": record.error.code, "message": message, "hint": record.error.hint}


def _files(record: "TaskRecord", size: int) -> list[File]:
    """As many as `size` bytes hold; each stands in `files`, in a line and in a link."""
    entries: list[File] = []
    for file in record.files:
        entry = kept_entry(record.key.name, encodable(file.path), file.size)
        size -= 3 * json_size(entry)
        if size < 0:
            break
        entries.append(entry)
    return entries


def _steps(steps: Sequence["Step"], size: int) -> tuple[list[StepResult], bool]:
    """All steps, their texts within `size` bytes together; False when something was cut."""
    texts = [readable(text) for s in steps for text in (s.thought, s.code, s.output, s.error)]
    shown = _cut(texts, size)
    four = iter(shown)
    results: list[StepResult] = [
        {
            "number": step.number,
            "thought": next(four),
            "code": next(four),
            "output": next(four),
            "error": next(four) or None,
            "duration": round(step.duration, 3),
        }
        for step in steps
    ]
    return results, shown == texts


def _cut(texts: list[str], size: int) -> list[str]:
    """Each text's head and tail, so that together they take `size` bytes of a message."""
    characters, shown = size, texts
    while (total := json_size(shown)) > size and characters > 100:
        granted = shares([len(text) for text in texts], characters)
        shown = [
            cut(text, limit, rest="the rest is left out")
            for text, limit in zip(texts, granted, strict=True)
        ]
        characters = min(characters * size // total, characters * 9 // 10)
    return shown


def _text(record: "TaskRecord", structured: TaskResult) -> str:
    """What a model reads: the answer, or how far the task is."""
    parts: list[str] = []
    if record.status == "working":
        parts.append(
            f"The task is still at work, after {_counted(len(record.steps), 'step')}. "
            f"Call get_agent_task with task_id={record.task_id!r} to wait for it."
        )
    if (error := structured["error"]) is not None:
        parts.append(f"{error['message']}\n{error['hint']}".strip())
    if structured["answer_text"]:
        parts.append(structured["answer_text"])
    if record.status != "completed" and structured["steps"]:
        parts.append("\n".join(map(_step_line, structured["steps"][-SHOWN_STEPS:])))
    if structured["files"]:
        parts.append(_files_text(structured["files"]))
    return "\n\n".join([*parts, _last_line(record, structured)])


def _step_line(step: StepResult) -> str:
    said = (
        " ".join(step["thought"].split())[:SHOWN_WORDS]
        or f"{step['code'].count(chr(10)) + 1} lines"
    )
    came = (step["error"] or step["output"]).strip()[-SHOWN_WORDS:]
    return f"step {step['number']}: {said}" + (f"\n  -> {came}" if came else "")


def _files_text(files: Sequence[File]) -> str:
    lines = [f"{file['path']} ({file['size']:,} bytes)" for file in files[:LISTED_FILES]]
    more = len(files) - len(lines)
    return "\n".join(["new or changed files:", *lines, *([f"and {more} more"] * bool(more))])


def _last_line(record: "TaskRecord", structured: TaskResult) -> str:
    usage = record.usage
    cost = "" if usage.cost_usd is None else f", ${usage.cost_usd:.4f}"
    tokens = usage.input_tokens + usage.output_tokens
    steps = _counted(len(record.steps), "step")
    spent = f"{steps}, {tokens:,} tokens{cost}, {usage.duration:.3g} s"
    end = f" {_ENDS[record.status]}" if record.status in _ENDS else ""
    state = "" if record.sandbox_state == "reused" else f", sandbox {record.sandbox_state}"
    note = f" {structured['note']}" if structured["note"] else ""
    return f"[Task {record.task_id}{end}. {spent}. Session {record.key.name!r}{state}.{note}]"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _images(
    record: "TaskRecord", left: int, limits: OutputSettings
) -> tuple[list[ContentBlock], int]:
    """The last ones that there is room for, in their order, and how many there are besides."""
    if record.status == "working":
        return [], 0
    found = [image for step in record.steps for image in step.images]
    shown: list[ContentBlock] = []
    for image in reversed(found[-limits.images :] if limits.images else []):
        picture = fit_image(image.data, image.mime_type, side=limits.image_size)
        if picture is None:
            continue
        encoded = base64.b64encode(picture.data).decode()
        left -= len(encoded) + 100
        if left < 0:
            break
        shown.append(ImageContent(data=encoded, mime_type=picture.mime_type))
    return shown[::-1], len(found) - len(shown)
