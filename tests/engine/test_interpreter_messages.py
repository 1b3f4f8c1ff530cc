"""Messages of a kernel become events: the rules that need no kernel."""

import json
from collections.abc import Callable

import pytest

from e2b_agent_mcp.engine.guest.interpreter.messages import (
    DELIMITER,
    MAX_MESSAGE,
    Event,
    Message,
    Transcript,
    result,
    write_line,
)


def say(kind: str, **content: object) -> Message:
    return Message(kind=kind, parent="1", date="now", content=content)


def events(*messages: Message) -> list[Event]:
    transcript = Transcript()
    heard = [event for message in messages for event in transcript.read(message)]
    return [*heard, *transcript.finish()]


HEAD = [DELIMITER, b"", b'{"msg_type":"stream"}', b"{}", b"{}"]
ZERO = {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": ["a", "b"]}
ERROR = {
    "type": "error",
    "name": "ZeroDivisionError",
    "value": "division by zero",
    "traceback": "a\nb",
}


@pytest.mark.parametrize("replied_first", [False, True])
def test_an_error_that_is_published_and_replied_is_told_once(replied_first: bool) -> None:
    messages = [say("error", **ZERO), say("execute_reply", status="error", **ZERO)]
    assert events(*reversed(messages) if replied_first else messages) == [ERROR]


def test_an_error_that_is_only_replied_is_told() -> None:
    assert events(say("execute_reply", status="error", **ZERO)) == [ERROR]


def test_code_that_was_not_run_is_an_error() -> None:
    (event,) = events(say("execute_reply", status="aborted"))
    assert event["name"] == "Aborted"


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([], id="nothing"),
        pytest.param([b"no delimiter", b"{}"], id="no delimiter"),
        pytest.param([DELIMITER, b"sig", b"{}", b"{}", b"{}"], id="too short"),
        pytest.param([DELIMITER, b"sig", b"\xff{", b"{}", b"{}", b"{}"], id="not JSON"),
        pytest.param([DELIMITER, b"sig", b"[]", b"{}", b"{}", b"{}"], id="not an object"),
        pytest.param([DELIMITER, b"sig", b"{}", b"{}", b"{}", b"{}"], id="no type"),
        pytest.param([DELIMITER, b"sig", b"[" * 99999, b"{}", b"{}", b"{}"], id="deep"),
    ],
)
def test_what_is_no_message_is_skipped(frames: list[bytes]) -> None:
    assert Message.read(frames) is None


@pytest.mark.parametrize("data", [None, [], "text", {"text/plain": 1}, {1: 2}])
def test_a_bundle_of_anything_is_a_result(data: object) -> None:
    assert result(data, is_main=True)["type"] == "result"


@pytest.mark.parametrize(
    "text",
    ["", "plain\n", 'a "quoted" \\ path\n', "tab\tor \x1b[31m\r\n", "\u20ac \U0001f600\n", "\x7f"],
)
def test_a_line_says_what_was_printed(text: str) -> None:
    assert json.loads(write_line({"type": "stdout", "text": text.encode()}))["text"] == text


def test_text_beside_a_message_counts_for_its_size() -> None:
    for size, left_out in ((4, ""), (MAX_MESSAGE, "of 64 MiB was left out: the limit is 64 MiB")):
        message = Message.read([*HEAD, b"{}", bytes(size)])
        assert message is not None
        assert message.octets == bytes(size)
        assert message.left_out == left_out


def read(kind: str, content: bytes) -> Message:
    message = Message.read(
        [DELIMITER, b"", b'{"msg_type":"%b"}' % kind.encode(), b"{}", b"{}", content]
    )
    assert message is not None
    return message


def test_an_error_that_is_left_out_is_told_once_as_an_error() -> None:
    huge = b"x" * (MAX_MESSAGE + 1)
    (event,) = events(read("error", huge), read("execute_reply", huge))
    assert event["type"] == "error"
    assert event["value"] == "[An error of 64 MiB was left out: the limit is 64 MiB.]"


@pytest.mark.parametrize("depth", [*range(900, 1000), 100_000])
def test_a_result_of_any_depth_is_written_or_named(depth: int) -> None:
    """Kernels' messages are read and lines are written at different depths of the stack."""
    nested = b'{"data":{"application/json":%b%b}}' % (b"[" * depth, b"]" * depth)
    (event,) = events(read("display_data", nested))
    line = json.loads(deeper(20, write_line, event))
    assert line["type"] == "result" or "it is nested too deeply" in line["text"]


def deeper(frames: int, call: Callable[[Event], bytes], event: Event) -> bytes:
    return deeper(frames - 1, call, event) if frames else call(event)


def test_a_line_has_no_separator_but_its_end() -> None:
    line = write_line({"type": "stdout", "text": "a\u2028b\x85c\nd".encode()}).decode()
    assert line.splitlines() == [line.rstrip("\n")]
    assert json.loads(line)["text"] == "a\u2028b\x85c\nd"
