"""What E2B's SDK raises, and what becomes of it."""

import json

import e2b
import httpx
import pytest
from connectrpc.code import Code
from connectrpc.errors import ConnectError

from e2b_agent_mcp.errors import (
    AuthenticationError,
    E2BAgentError,
    InvalidArgumentError,
    LifeRefusedError,
    NotFoundError,
    RateLimitError,
    SandboxError,
    SandboxLimitError,
    SandboxLostError,
    SandboxTimeoutError,
    SandboxUnavailableError,
    SettingsError,
    sandbox_errors,
)


def tree(cls: type[E2BAgentError]) -> list[type[E2BAgentError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in tree(child))]


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in tree(E2BAgentError)]
    assert len(codes) == len(set(codes))


def test_an_error_reads_as_what_happened_and_what_to_do() -> None:
    assert str(SettingsError("No.", hint="Do this.")) == "No. Do this."
    assert str(SettingsError("No.")) == "No."


REFUSED = httpx.Request("GET", "http://e2b")


@pytest.mark.parametrize(
    ("raised", "expected", "words"),
    [
        pytest.param(
            e2b.AuthenticationException("401"), AuthenticationError, "E2B_API_KEY", id="bad key"
        ),
        pytest.param(e2b.RateLimitException("429"), RateLimitError, "requests", id="429"),
        pytest.param(
            e2b.RateLimitException("429: the maximum number of concurrent sandboxes (20)"),
            SandboxLimitError,
            "maximum number of concurrent sandboxes (20)",
            id="429 for the number of sandboxes",
        ),
        pytest.param(e2b.ServiceBusyException("503"), SandboxUnavailableError, "busy", id="503"),
        pytest.param(
            e2b.SandboxNotFoundException("x"), SandboxLostError, "ended", id="sandbox is gone"
        ),
        pytest.param(
            e2b.SandboxNotRunningException("x"), SandboxLostError, "ended", id="not running"
        ),
        pytest.param(
            e2b.TimeoutException('{"message":"The sandbox was not found"}: This error…'),
            SandboxLostError,
            "ended",
            id="interpreter's 502 of a sandbox that is gone",
        ),
        pytest.param(
            e2b.TimeoutException("The sandbox was killed while the request was in progress."),
            SandboxLostError,
            "ended",
            id="killed under the request",
        ),
        pytest.param(
            e2b.TimeoutException('{"message":"The sandbox is running but port is not open"}'),
            SandboxError,
            "code-interpreter-v1",
            id="template without interpreter",
        ),
        pytest.param(
            e2b.TimeoutException("Request timed out"), SandboxTimeoutError, "in time", id="timeout"
        ),
        pytest.param(
            e2b.FileNotFoundException("path 'x' does not exist"),
            NotFoundError,
            "path 'x' does not exist",
            id="no such file",
        ),
        pytest.param(
            e2b.InvalidArgumentException("cwd 'x' does not exist"),
            InvalidArgumentError,
            "cwd 'x' does not exist",
            id="bad argument",
        ),
        pytest.param(e2b.NotEnoughSpaceException("507"), SandboxError, "disk", id="disk full"),
        pytest.param(
            e2b.SandboxException("500: Failed to place sandbox", status_code=500),
            SandboxUnavailableError,
            "Failed to place sandbox",
            id="500",
        ),
        pytest.param(
            e2b.SandboxException("400: Timeout cannot be greater than 1 hours", status_code=400),
            LifeRefusedError,
            "E2B_AGENT_MCP_SANDBOXES_IDLE_AFTER",
            id="over the plan's limit",
        ),
        pytest.param(
            e2b.SandboxException("405: b'method not allowed'", status_code=405),
            SandboxError,
            "older",
            id="server older than the SDK",
        ),
        pytest.param(
            e2b.SandboxException("404: template 'x' not found", status_code=404),
            SandboxError,
            "template 'x' not found",
            id="unknown template",
        ),
        pytest.param(
            httpx.ConnectError("refused", request=REFUSED),
            SandboxUnavailableError,
            "could not be reached",
            id="nobody listens",
        ),
        pytest.param(
            httpx.ReadTimeout("slow", request=REFUSED), SandboxTimeoutError, "in time", id="slow"
        ),
        pytest.param(TimeoutError(), SandboxTimeoutError, "in time", id="our deadline"),
        pytest.param(
            json.JSONDecodeError("no", "<html>", 0),
            SandboxUnavailableError,
            "not JSON",
            id="a gateway's HTML",
        ),
        pytest.param(
            e2b.TimeoutException("Bad Gateway: This error is likely due to sandbox timeout. You…"),
            SandboxUnavailableError,
            "did not reach the sandbox",
            id="a gateway's 502 before the interpreter",
        ),
        pytest.param(
            e2b.SandboxUnreachableException("Bad Gateway: The sandbox could not be reached…"),
            SandboxUnavailableError,
            "did not reach the sandbox",
            id="a gateway's 502 before envd",
        ),
        pytest.param(
            e2b.SandboxException("503 Service Unavailable: <html>"),
            SandboxUnavailableError,
            "503",
            id="a gateway's 503 before the sandbox",
        ),
        pytest.param(
            e2b.SandboxException("429 Too Many Requests"),
            RateLimitError,
            "requests",
            id="429 there",
        ),
        pytest.param(
            e2b.SandboxException("500 Internal Server Error"),
            SandboxError,
            "end the session",
            id="500 of the interpreter",
        ),
        pytest.param(
            e2b.SandboxException("Code.INTERNAL: envd sent a response that could not be decoded"),
            SandboxUnavailableError,
            "not E2B's",
            id="a gateway's answer to an RPC",
        ),
        pytest.param(
            ConnectError(Code.UNAVAILABLE, "connection reset"),
            SandboxUnavailableError,
            "could not be reached",
            id="an RPC that was cut off",
        ),
        pytest.param(
            Exception("Body of the request is None"),
            SandboxUnavailableError,
            "incomplete",
            id="empty answer",
        ),
    ],
)
def test_an_sdk_error_becomes_one_to_act_on(
    raised: Exception, expected: type[E2BAgentError], words: str
) -> None:
    with pytest.raises(E2BAgentError) as caught, sandbox_errors("testing"):
        raise raised
    assert type(caught.value) is expected
    assert words in str(caught.value)
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [KeyError("x"), ValueError("x"), RuntimeError("x")])
def test_a_defect_is_not_dressed_up(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught, sandbox_errors("testing"):
        raise raised
    assert caught.value is raised


def test_our_own_error_passes_unchanged() -> None:
    ours = NotFoundError("x")
    with pytest.raises(NotFoundError) as caught, sandbox_errors("testing"):
        raise ours
    assert caught.value is ours


@pytest.mark.parametrize(
    ("raised", "reached"),
    [
        pytest.param(
            e2b.TimeoutException('{"message":"The sandbox was not found"}'), False, id="no address"
        ),
        pytest.param(
            e2b.SandboxNotRunningException("The sandbox was not found: It"), False, id="by RPC"
        ),
        pytest.param(httpx.ConnectError("refused"), False, id="no connection"),
        pytest.param(
            e2b.TimeoutException("The sandbox was killed while the request was in progress."),
            True,
            id="killed under the request",
        ),
        pytest.param(httpx.ReadError("reset"), True, id="connection lost"),
        pytest.param(httpx.ReadTimeout("late"), True, id="no answer"),
    ],
)
def test_only_what_certainly_came_to_no_sandbox_may_be_sent_again(
    raised: Exception, reached: bool
) -> None:
    with pytest.raises(SandboxError) as translated, sandbox_errors("running code"):
        raise raised
    assert translated.value.reached is reached
