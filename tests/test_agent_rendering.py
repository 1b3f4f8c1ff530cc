"""Tasks as tool results: what a model reads, what a program gets, and how much at most."""

import json
from io import BytesIO

import pytest
from mcp.types import CallToolResult, ImageContent, ResourceLink, TextContent
from PIL import Image as Pillow

from e2b_agent_mcp.agent import Failure, Image, Step, Usage
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.rendering import task_result
from e2b_agent_mcp.settings import OutputSettings
from e2b_agent_mcp.tasks import NewFile, TaskRecord

STEP = Step(number=1, thought="I add them up.", code="print(1 + 2)", output="3\n", duration=0.25)
USAGE = Usage(
    llm_calls=1, input_tokens=900, output_tokens=100, cost_usd=0.0021, duration=4, sandbox_seconds=2
)


def a_task(**fields: object) -> TaskRecord:
    given: dict[str, object] = {
        "task_id": "t-1",
        "key": SessionKey("ann", "work"),
        "task": "Add.",
        "model": "openai/x",
        "sandbox_id": "i1",
        "steps": (STEP,),
        "usage": USAGE,
        **fields,
    }
    return TaskRecord(**given)  # type: ignore[arg-type]


def render(task: TaskRecord, **limits: int) -> CallToolResult:
    return task_result(task, limits=OutputSettings(**limits))


def text_of(result: CallToolResult) -> str:
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


def plot(width: int = 10) -> Image:
    buffer = BytesIO()
    Pillow.effect_noise((width, width), 90).save(buffer, "PNG")
    return Image(buffer.getvalue(), "image/png")


def test_a_completed_task_is_its_answer_and_what_it_cost() -> None:
    task = a_task(
        status="completed",
        answer={"sum": 3},
        answer_text='{"sum": 3}',
        sandbox_state="created",
        files=(NewFile(path="/home/user/a b.csv", size=1234, mime_type="text/csv"),),
    )
    result = render(task)
    assert text_of(result) == (
        '{"sum": 3}\n\n'
        "new or changed files:\n/home/user/a b.csv (1,234 bytes)\n\n"
        "[Task t-1 is completed. 1 step, 1,000 tokens, $0.0021, 4 s. "
        "Session 'work', sandbox created.]"
    )
    uri = "sandbox://work/home/user/a%20b.csv"
    assert result.structured_content == {
        "task_id": "t-1",
        "status": "completed",
        "answer": {"sum": 3},
        "answer_text": '{"sum": 3}',
        "session": "work",
        "sandbox_id": "i1",
        "sandbox_state": "created",
        "note": "",
        "model": "openai/x",
        "steps": [
            {
                "number": 1,
                "thought": "I add them up.",
                "code": "print(1 + 2)",
                "output": "3\n",
                "error": None,
                "duration": 0.25,
            }
        ],
        "usage": {
            "llm_calls": 1,
            "input_tokens": 900,
            "output_tokens": 100,
            "cost_usd": 0.0021,
            "sandbox_seconds": 2,
            "duration": 4,
        },
        "files": [
            {"path": "/home/user/a b.csv", "size": 1234, "mime_type": "text/csv", "uri": uri}
        ],
        "error": None,
        "truncated": False,
    }
    assert [block.uri for block in result.content if isinstance(block, ResourceLink)] == [uri]
    assert not result.is_error


def test_a_task_at_work_says_how_to_wait_for_it_and_how_far_it_is() -> None:
    failed = Step(number=2, thought="Again.", code="x", error="Traceback …\nNameError: x")
    result = render(a_task(steps=(STEP, failed)))
    assert text_of(result) == (
        "The task is still at work, after 2 steps. "
        "Call get_agent_task with task_id='t-1' to wait for it.\n\n"
        "step 1: I add them up.\n  -> 3\n"
        "step 2: Again.\n  -> Traceback …\nNameError: x\n\n"
        "[Task t-1. 2 steps, 1,000 tokens, $0.0021, 4 s. Session 'work'.]"
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("cancelled", "was cancelled"),
        ("budget_exceeded", "run_agent_task with this task_id goes on"),
        ("interrupted", "run_agent_task with this task_id goes on"),
    ],
)
def test_a_task_that_ended_early_says_why_and_shows_its_steps(status: str, words: str) -> None:
    result = render(a_task(status=status, answer_text="Half of it."))
    assert not result.is_error
    assert text_of(result).startswith("Half of it.\n\nstep 1: I add them up.")
    assert words in text_of(result)


def test_a_failed_task_is_a_failed_call_with_the_reason_first() -> None:
    error = Failure(code="model_refused", message="The key was refused.", hint="Set another.")
    result = render(a_task(status="failed", error=error))
    assert result.is_error
    assert text_of(result).startswith("The key was refused.\nSet another.\n\nstep 1")
    assert (result.structured_content or {})["error"]["code"] == "model_refused"


def test_an_unknown_cost_is_null_and_not_free() -> None:
    usage = Usage(input_tokens=10, cost_usd=None)
    result = render(a_task(status="completed", answer_text="3", usage=usage))
    assert (result.structured_content or {})["usage"]["cost_usd"] is None
    assert "$" not in text_of(result)


def test_plots_come_at_the_end_in_their_order() -> None:
    first, second = plot(10), plot(20)
    steps = (Step(number=1, images=(first,)), Step(number=2, images=(second,)))
    assert images(render(a_task(steps=steps))) == []
    assert images(render(a_task(steps=steps, status="completed"))) == [first.data, second.data]


def test_the_last_plots_are_shown_when_there_are_too_many() -> None:
    plots = [plot(10 + number) for number in range(4)]
    result = render(
        a_task(status="completed", steps=(Step(number=1, images=tuple(plots)),)), images=3
    )
    assert images(result) == [item.data for item in plots[1:]]
    assert "1 of the task's images is not shown" in text_of(result)
    assert (result.structured_content or {})["truncated"]


def test_what_is_no_image_is_not_sent() -> None:
    broken = Image(b"GIF89a", "image/png")
    result = render(a_task(status="completed", steps=(Step(number=1, images=(broken,)),)))
    assert images(result) == []


def test_no_result_is_larger_than_a_client_accepts() -> None:
    limit = 100_000
    long = "\u6f22\x1b[31m\n" * 10_000
    steps = tuple(
        Step(number=n, thought=long, code=long, output=long, error=long, images=(plot(100),))
        for n in range(1, 30)
    )
    files = tuple(
        NewFile(path=f"/home/user/{n}/{'x' * 200}", size=1, mime_type="a/b") for n in range(50)
    )
    for status in ("working", "completed", "failed"):
        task = a_task(
            status=status,
            answer=[long],
            answer_text=long,
            steps=steps,
            files=files,
            error=Failure(code="x", message=long, hint=""),
        )
        result = render(task, result_limit=limit)
        assert len(result.model_dump_json(by_alias=True)) < limit
        assert (result.structured_content or {})["truncated"]
        assert "\x1b" not in json.dumps(result.structured_content, ensure_ascii=False)


def images(result: CallToolResult) -> list[bytes]:
    import base64

    return [
        base64.b64decode(block.data) for block in result.content if isinstance(block, ImageContent)
    ]
