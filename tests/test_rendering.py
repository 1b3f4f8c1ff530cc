"""Runs as tool results: what a model reads, what a program gets, and that neither grows too big."""

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from typing import Any, Literal

import pytest
from e2b_code_interpreter import Execution, ExecutionError, Logs, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.types import CallToolResult, EmbeddedResource, ImageContent, ResourceLink, TextContent
from PIL import Image

from e2b_agent_mcp.lifecycle import CommandRun, FileInfo, Run, SessionInfo
from e2b_agent_mcp.rendering import Place, Rendered, command_result, failure, python_result
from e2b_agent_mcp.rendering.sessions import session_entry, session_line
from e2b_agent_mcp.rendering.text import cut, plain, readable, shares
from e2b_agent_mcp.settings import OutputSettings

PLACE = Place(session="s", sandbox_id="i1", state="reused")
IN_SESSION = {"session": "s", "sandbox_id": "i1", "sandbox_state": "reused", "note": ""}
FOLDER = "/home/user/.output/1"


def execution(
    *results: Result, stdout: str = "", stderr: str = "", error: ExecutionError | None = None
) -> Execution:
    logs = Logs(stdout=[stdout] * bool(stdout), stderr=[stderr] * bool(stderr))
    return Execution(results=list(results), logs=logs, error=error)


def render(
    of: Execution,
    *,
    place: Place = PLACE,
    files: Sequence[FileInfo] = (),
    folder: str | None = FOLDER,
    limits: OutputSettings | None = None,
    note: str = "",
) -> Rendered:
    run = Run(status="error" if of.error else "ok", execution=of, duration=0.25, note=note)
    return python_result(run, place, files=files, folder=folder, limits=limits or OutputSettings())


def text_of(result: CallToolResult) -> str:
    block = result.content[0]
    assert isinstance(block, TextContent)
    return block.text


def image(width: int, height: int, *, noisy: bool = False, form: str = "PNG") -> str:
    picture = (
        Image.effect_noise((width, height), 90).convert("RGB")
        if noisy
        else Image.new("RGB", (width, height), "navy")
    )
    buffer = BytesIO()
    picture.save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


def sent_images(rendered: Rendered) -> list[Image.Image]:
    return [
        Image.open(BytesIO(base64.b64decode(block.data)))
        for block in rendered.result.content
        if isinstance(block, ImageContent)
    ]


def test_a_run_has_a_text_for_the_model_and_data_for_programs() -> None:
    of = execution(Result(text="42", is_main_result=True), stdout="hello\n", stderr="careful\n")
    rendered = render(of)
    assert text_of(rendered.result) == (
        "stdout:\nhello\n\nstderr:\ncareful\n\nresult:\n42\n\n[Session 's'.]"
    )
    assert rendered.result.structured_content == {
        **IN_SESSION,
        "status": "ok",
        "text": "42",
        "stdout": "hello\n",
        "stderr": "careful\n",
        "error": None,
        "results": [{"mime_types": ["text/plain"], "text": "42", "is_main_result": True}],
        "files": [],
        "duration": 0.25,
        "truncated": False,
    }
    assert rendered.kept == []


def test_an_exception_of_the_code_is_a_result_with_a_plain_traceback() -> None:
    error = ExecutionError("ValueError", "bad", "\x1b[31mValueError\x1b[0m: bad")
    result = render(execution(error=error)).result
    assert not result.is_error
    assert result.structured_content["status"] == "error"
    assert result.structured_content["error"] == {
        "name": "ValueError",
        "value": "bad",
        "traceback": "ValueError: bad",
    }
    assert text_of(result) == "error:\nValueError: bad\n\n[Session 's'.]"


def test_what_was_lost_and_interrupted_is_said_in_the_text_and_in_note() -> None:
    place = Place(session="s", sandbox_id="i2", state="recreated", notes=("All is gone.",))
    result = render(execution(), place=place, note="Interrupted after 1 s.").result
    words = "All is gone. Interrupted after 1 s."
    assert text_of(result) == f"(no output)\n\n[Session 's', sandbox recreated. {words}]"
    assert result.structured_content["note"] == words


def test_a_run_over_its_time_says_after_how_long() -> None:
    run = Run(status="timeout", execution=execution(stdout="so far\n"), duration=60.04)
    rendered = python_result(run, PLACE, files=[], folder=FOLDER, limits=OutputSettings())
    assert text_of(rendered.result) == (
        "stdout:\nso far\n\nstopped by its time limit after 60 s\n[Session 's'.]"
    )


def test_long_output_keeps_head_and_tail_and_the_whole_goes_to_a_file_of_the_sandbox() -> None:
    stdout = "".join(f"line {number}\n" for number in range(50_000))
    rendered = render(execution(stdout=stdout))
    text, structured = text_of(rendered.result), rendered.result.structured_content
    assert "line 0\n" in text
    assert "line 49999" in text
    size = len(stdout)
    assert (
        f"[{size - 80_000:,} of {size:,} characters cut here; all of it: {FOLDER}/stdout.txt]"
        in text
    )
    assert structured["truncated"]
    assert len(structured["stdout"]) < 80_200
    assert rendered.kept == [(f"{FOLDER}/stdout.txt", stdout.encode())]
    assert structured["files"] == [
        {
            "path": f"{FOLDER}/stdout.txt",
            "size": size,
            "mime_type": "text/plain",
            "uri": "sandbox://s/home/user/.output/1/stdout.txt",
        }
    ]


def test_without_a_folder_the_text_says_that_the_rest_is_not_kept() -> None:
    rendered = render(execution(stdout="x" * 100_000), folder=None)
    assert "the rest could not be saved" in text_of(rendered.result)
    assert rendered.kept == []


def test_a_small_text_stays_whole_beside_a_large_one() -> None:
    of = execution(Result(text="the result", is_main_result=True), stdout="x" * 500_000)
    structured = render(of).result.structured_content
    assert structured["text"] == "the result"
    assert len(structured["stdout"]) > 79_000


def test_every_image_becomes_an_image_block() -> None:
    of = execution(
        Result(png=image(20, 10), text="<Figure size 20x10 with 1 Axes>"),
        Result(jpeg=image(30, 10, form="JPEG"), text="<PIL.Image>"),
    )
    rendered = render(of)
    assert [sent.size for sent in sent_images(rendered)] == [(20, 10), (30, 10)]
    assert "Figure size" not in text_of(rendered.result)
    assert not rendered.result.structured_content["truncated"]


def test_a_large_image_is_scaled_and_its_original_kept() -> None:
    original = image(4000, 1000)
    rendered = render(execution(Result(png=original)))
    assert [sent.size for sent in sent_images(rendered)] == [(1568, 392)]
    path = f"{FOLDER}/image-1.png"
    assert f"image 1 scaled from 4000x1000; original: {path}" in text_of(rendered.result)
    assert rendered.kept == [(path, base64.b64decode(original))]


def test_a_heavy_png_is_sent_as_jpeg() -> None:
    rendered = render(execution(Result(png=image(900, 900, noisy=True))))
    assert [sent.format for sent in sent_images(rendered)] == ["JPEG"]


def test_a_transparent_image_becomes_jpeg_on_white() -> None:
    picture = Image.effect_noise((900, 900), 90).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 450, 900))
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=0)
    rendered = render(execution(Result(png=base64.b64encode(buffer.getvalue()).decode())))
    (sent,) = sent_images(rendered)
    assert (sent.format, sent.getpixel((10, 10))) == ("JPEG", (255, 255, 255))


def test_images_beyond_the_limit_are_kept_in_files() -> None:
    tables = [Result(text="table", data={"a": [1]}) for _ in range(5)]
    of = execution(*tables, *[Result(png=image(5, 5)) for _ in range(12)])
    rendered = render(of)
    assert len(sent_images(rendered)) == 10
    assert [kept.path for kept in rendered.kept] == [f"{FOLDER}/image-{n}.png" for n in (11, 12)]
    assert "image 11 left out, 10 are sent: /home/user/.output/1/image-11.png" in text_of(
        rendered.result
    )


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("!!", id="no base64"),
        pytest.param(base64.b64encode(b"GIF89a").decode(), id="another format"),
        pytest.param(image(20, 20)[:60], id="cut off"),
        pytest.param(image(30_000, 9_000), id="a bomb"),
    ],
)
def test_what_cannot_be_decoded_is_kept_and_not_sent(data: str) -> None:
    rendered = render(execution(Result(png=data)))
    assert sent_images(rendered) == []
    assert "image 1 cannot be shown" in text_of(rendered.result)


def test_an_svg_is_an_embedded_resource() -> None:
    rendered = render(execution(Result(svg="<svg/>", text="<IPython.core.display.SVG object>")))
    (block,) = (b for b in rendered.result.content if isinstance(b, EmbeddedResource))
    assert block.resource.mime_type == "image/svg+xml"
    assert block.resource.uri == f"sandbox://s{FOLDER}/result-1.svg"
    assert rendered.kept == [(f"{FOLDER}/result-1.svg", b"<svg/>")]


def test_a_table_comes_as_text_as_data_and_as_html() -> None:
    table = Result(text="   a\n0  1", html="<table></table>", data={"a": [1]}, is_main_result=True)
    result = render(execution(table)).result
    assert "result:\n   a\n0  1" in text_of(result)
    assert result.structured_content["results"] == [
        {
            "mime_types": ["text/plain", "text/html", "e2b/data"],
            "text": "   a\n0  1",
            "is_main_result": True,
            "data": {"a": [1]},
            "html": "<table></table>",
        }
    ]


def test_a_large_table_comes_with_its_first_rows() -> None:
    table = Result(text="...", data={"a": list(range(500_000))}, is_main_result=True)
    result = render(execution(table)).result
    rows = result.structured_content["results"][0]["data"]["a"]
    assert rows == list(range(len(rows)))
    assert 10_000 < len(rows) < 500_000
    assert f"`data` has the first {len(rows):,} of 500,000 rows" in text_of(result)


def test_large_html_is_kept_in_a_file() -> None:
    html = "<p>" + "x" * 1_000_000
    rendered = render(execution(Result(text="Figure()", html=html)))
    assert rendered.kept == [(f"{FOLDER}/result-1.html", html.encode())]
    assert "html" not in rendered.result.structured_content["results"][0]


def test_html_without_a_text_is_shown_as_markup() -> None:
    of = execution(Result(text="<IPython.core.display.HTML object>", html="<b>hi</b>"))
    assert "display 1:\n<b>hi</b>" in text_of(render(of).result)


def test_new_files_are_listed_and_linked() -> None:
    info = FileInfo(
        path="/home/user/a b#1.csv",
        kind="file",
        size=1234,
        mime_type="text/csv",
        modified_at=datetime.now(UTC),
    )
    result = render(execution(), files=[info]).result
    uri = "sandbox://s/home/user/a%20b%231.csv"
    assert "new or changed files:\n/home/user/a b#1.csv (1,234 bytes)" in text_of(result)
    assert result.content[1] == ResourceLink(
        uri=uri, name="a b#1.csv", mime_type="text/csv", size=1234
    )
    assert result.structured_content["files"] == [
        {"path": "/home/user/a b#1.csv", "size": 1234, "mime_type": "text/csv", "uri": uri}
    ]


def test_a_command_says_its_exit_code() -> None:
    run = CommandRun(status="error", exit_code=2, stdout="out\n", stderr="", duration=1.0)
    result = command_result(run, PLACE, files=[], folder=FOLDER, limits=OutputSettings()).result
    assert text_of(result) == "stdout:\nout\n\nexit code 2\n[Session 's'.]"
    assert result.structured_content == {
        **IN_SESSION,
        "status": "error",
        "exit_code": 2,
        "stdout": "out\n",
        "stderr": "",
        "files": [],
        "duration": 1.0,
        "truncated": False,
    }


def test_a_failure_has_a_code_and_a_hint() -> None:
    result = failure("not_found", "No file x.", "Use list_files.")
    assert result.is_error
    assert text_of(result) == "No file x.\nUse list_files."
    assert result.structured_content == {
        "error": {"code": "not_found", "message": "No file x.", "hint": "Use list_files."}
    }


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        pytest.param("\x1b[1;31mred\x1b[0m", "red", id="colours"),
        pytest.param("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link", id="links"),
        pytest.param("10%\r50%\r100%\nend", "100%\nend", id="a progress bar"),
        pytest.param("10%\r50%\r", "50%", id="an unfinished progress bar"),
        pytest.param("a\r\nb\r\n", "a\nb\n", id="line ends of Windows"),
        pytest.param("half \ud83d pair", "half ? pair", id="what UTF-8 cannot hold"),
    ],
)
def test_text_is_made_readable(raw: str, shown: str) -> None:
    assert readable(raw) == shown


def test_values_become_what_json_can_hold() -> None:
    deep: object = "end"
    for _ in range(60):
        deep = [deep]
    value = plain({"a": float("nan"), 1: (b"x",), "half": "\ud800", "deep": deep})
    assert json.dumps(value, allow_nan=False).encode()
    assert isinstance(value, dict)
    assert (value["a"], value["1"], value["half"]) == (None, ["b'x'"], "?")


@pytest.mark.parametrize(
    ("state", "end", "line"),
    [
        ("running", 40, "s: running, ends in 10 s, 0 s of sandbox"),
        ("paused", 20, "s: paused, its next call resumes it, 0 s of sandbox"),
    ],
)
def test_a_session_is_one_line(state: Literal["running", "paused"], end: int, line: str) -> None:
    """Its age counts from its creation, whenever it was resumed."""

    def at(second: int) -> datetime:
        return datetime(2026, 11, 27, 12, 0, second, tzinfo=UTC)

    info = SessionInfo(
        name="s",
        sandbox_id="i",
        state=state,
        created_at=at(0),
        started_at=at(10),
        end_at=at(end),
        vcpus=2,
        memory_mb=512,
    )
    entry = session_entry(info, at(30))
    assert (entry["age"], entry["expires_in"]) == (30, end - 30)
    assert session_line(entry) == line


def test_room_is_shared_small_ones_first() -> None:
    assert shares([10, 1000, 1000], 210) == [10, 100, 100]
    assert shares([10, 20], 100) == [10, 20]
    assert shares([], 100) == []


def test_a_cut_text_keeps_both_ends() -> None:
    assert cut("abcdefghij", 4, rest="r") == "ab\n… [6 of 10 characters cut here; r] …\nij"
    assert cut("abcd", 4, rest="r") == "abcd"


awkward = st.tuples(st.text(st.characters(codec=None), max_size=8), st.sampled_from([1, 9, 90_000]))
shapes = st.fixed_dictionaries(
    {"text": awkward, "html": awkward, "item": awkward, "rows": st.sampled_from([0, 5, 50_000])}
)
IMAGES = [image(8, 8), image(400, 300, noisy=True), "!!"]


def display(shape: dict[str, Any], number: int) -> Result:
    """A displayed value with something of everything; pieces are small so that failures print."""
    (text, times), (html, html_times), (item, item_times) = (
        shape[name] for name in ("text", "html", "item")
    )
    return Result(
        text=text * times,
        html=html * html_times,
        json={item: item * item_times},
        data={item: [float("nan"), item] * shape["rows"]},
        png=IMAGES[number % 3],
        extra={item * item_times: 1},
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    results=st.lists(shapes, max_size=3),
    repeat=st.sampled_from([1, 50]),
    stdout=awkward,
    folder=st.sampled_from([None, FOLDER]),
    limit=st.sampled_from([300_000, 900_000]),
)
def test_no_result_exceeds_the_limit(
    results: list[dict[str, Any]],
    repeat: int,
    stdout: tuple[str, int],
    folder: str | None,
    limit: int,
) -> None:
    printed = stdout[0] * stdout[1]
    displays = [display(shape, number) for number, shape in enumerate(results)] * repeat
    of = execution(*displays, stdout=printed, error=ExecutionError(printed, printed, printed))
    rendered = render(of, folder=folder, limits=OutputSettings(result_limit=limit))
    assert len(rendered.result.model_dump_json(by_alias=True).encode()) <= limit
