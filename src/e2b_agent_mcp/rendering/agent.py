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
from e2b_agent_mcp.rendering.results import File, StepResult, TaskResult
from e2b_agent_mcp.rendering.text import cut, encodable, json_size, plain, readable, shares
from e2b_agent_mcp.settings import OutputSettings

if TYPE_CHECKING:
    from e2b_agent_mcp.agent import Step
    from e2b_agent_mcp.tasks import TaskRecord

SHOWN_STEPS = 10  # that the text tells of, the last ones
SHOWN_WORDS = 300  # characters of a thought or an output in the text
LEFT_OUT = "the rest is left out"

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
        text += f"\n{missing} of the task's images left out, the result is full"
    return CallToolResult(
        content=[TextContent(text=text), *images, *links],
        structured_content=structured,
        is_error=record.status == "failed",
    )


def _structured(record: "TaskRecord", limits: OutputSettings, reminder: str) -> TaskResult:
    answer, answer_text = plain(record.answer), readable(record.answer_text)
    most = min(limits.text_limit, limits.result_limit // 4)
    fits = json_size(answer) <= most
    steps, whole = _steps(record.steps, most // 2)
    files = [kept_entry(record.key.name, encodable(f.path), f.size) for f in record.files]
    return {
        "task_id": record.task_id,
        "status": record.status,
        "answer": answer if fits else None,
        "answer_text": cut(answer_text, most // 2, rest=LEFT_OUT),
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
        "error": None
        if record.error is None
        else {
            "code": record.error.code,
            "message": cut(readable(record.error.message), most // 8, rest=LEFT_OUT),
            "hint": record.error.hint,
        },
        "truncated": not (fits and whole and len(answer_text) <= most // 2),
    }


def _steps(steps: Sequence["Step"], most: int) -> tuple[list[StepResult], bool]:
    """All steps, their texts cut to `most` bytes together; False when something was cut."""
    texts = [readable(text) for s in steps for text in (s.thought, s.code, s.output, s.error)]
    characters, shown = most, texts
    while json_size(shown) > most and characters > 100:
        granted = shares([len(text) for text in texts], characters)
        pairs = zip(texts, granted, strict=True)
        shown = [cut(text, limit, rest=LEFT_OUT) for text, limit in pairs]
        characters = characters * 9 // 10
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


def _text(record: "TaskRecord", structured: TaskResult) -> str:
    """What a model reads: the answer, or how far the task is."""
    parts: list[str] = []
    if record.status == "working":
        parts.append(
            f"The task is still at work, after {len(record.steps)} steps. "
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
    spent = (
        f"{len(record.steps)} steps, {usage.input_tokens + usage.output_tokens:,} tokens{cost}, "
        f"{usage.duration:.3g} s"
    )
    end = f" {_ENDS[record.status]}." if record.status in _ENDS else ""
    state = "" if record.sandbox_state == "reused" else f", sandbox {record.sandbox_state}"
    note = f" {structured['note']}" if structured["note"] else ""
    return f"[Task {record.task_id}{end} {spent}. Session {record.key.name!r}{state}.{note}]"


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
