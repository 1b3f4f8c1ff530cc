"""Messages of a kernel become events: the rules that need no kernel."""

import json

import pytest

from e2b_agent_mcp.engine.guest.interpreter.messages import (
    DELIMITER,
    Event,
    Message,
    Transcript,
    result,
    write_line,
)


def say(kind: str, **content: object) -> Message:
    return Message(kind=kind, parent="1", date="now", content=content, size=0)


def events(*messages: Message) -> list[Event]:
    transcript = Transcript()
    heard = [event for message in messages for event in transcript.read(message)]
    return [*heard, *transcript.finish()]


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
    message = Message.read([DELIMITER, b"", b'{"msg_type":"stream"}', b"{}", b"{}", b"{}", b"text"])
    assert message is not None
    assert message.octets == b"text"
    assert message.size == len(b"{}text")


def test_a_line_has_no_separator_but_its_end() -> None:
    line = write_line({"type": "stdout", "text": "a\u2028b\x85c\nd".encode()}).decode()
    assert line.splitlines() == [line.rstrip("\n")]
    assert json.loads(line)["text"] == "a\u2028b\x85c\nd"
