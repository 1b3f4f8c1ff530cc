"""Whatever bytes a sandbox sends: the host's parsers answer within bounds or refuse, and nothing
else. The inputs are made by mutating what is right, and at random.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import h11
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e2b_agent_mcp.engine.connection import MAX_ANSWER, GuestGone, connect, exchange
from e2b_agent_mcp.engine.egress.request import BadRequest, parse_head
from e2b_agent_mcp.engine.isolation.footprint import Footprint, _count
from e2b_agent_mcp.engine.router import _gather
from rounds import rounds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from anyio.abc import SocketStream

ROUNDS = rounds(few=60, many=5000)
often = settings(
    max_examples=ROUNDS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

ANSWER_PARTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 103 Early\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n",
        b"HTTP/1.0 204 \r\n",
        b"HTTP/9.9 999 x\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Connection: close\r\n",
        b"X: " + b"y" * 70_000 + b"\r\n",
        b" folded\r\n",
        b"\r\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"ffffffffffffffff\r\n",
        b"0\r\n\r\n",
        b"\x00",
        b"z" * 100_000,
    ]
)
PIECE = b"1\r\nx\r\n"
ANSWERS = st.lists(ANSWER_PARTS | st.binary(max_size=40), max_size=12).map(b"".join)


@given(answer=ANSWERS)
@often
def test_an_answer_of_a_guest_is_bounded_or_refused(tmp_path: Path, answer: bytes) -> None:
    async def main() -> None:
        path = tmp_path / os.urandom(4).hex()
        async with serving(path, answer):
            with anyio.fail_after(20):
                try:
                    status, body = await exchange(path, "GET", "/health")
                except GuestGone:
                    return
        assert 200 <= status <= 999
        assert len(body) <= MAX_ANSWER

    anyio.run(main)


async def test_an_answer_in_tiny_pieces_leaves_others_their_turn(tmp_path: Path) -> None:
    """All sandboxes are served by one loop; reading 256 kB of these takes a second."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    path, head = tmp_path / "s", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(path, head + PIECE * 20_000), anyio.create_task_group() as tasks:
        tasks.start_soon(other)
        with anyio.fail_after(60), suppress(GuestGone):
            async with connect(path) as guest:
                await guest.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
                await guest.send(h11.EndOfMessage())
                assert isinstance(await guest.next_event(), h11.Response)
                before = turns
                while isinstance(event := await guest.next_event(), h11.Data):
                    _gather(guest, event)
        assert turns - before > 200
        tasks.cancel_scope.cancel()


async def test_heads_before_the_answer_come_to_an_end(tmp_path: Path) -> None:
    path, answer = tmp_path / "s", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with serving(path, b"HTTP/1.1 103 Early\r\n\r\n" * 1000 + answer):
        with anyio.fail_after(20), pytest.raises(GuestGone):
            await exchange(path, "GET", "/health")


@asynccontextmanager
async def serving(path: Path, answer: bytes) -> AsyncIterator[None]:
    async def speak(client: SocketStream) -> None:
        async with client:
            try:
                await client.receive()
                await client.send(answer)
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                return

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as t:
        t.start_soon(listener.serve, speak)
        yield
        t.cancel_scope.cancel()


WORDS = ["CONNECT ", "GET ", "http://", "https://", "a.example", ":80", ":99999", "@", "[::1]"]
REQUEST_PARTS = st.sampled_from(
    [
        *WORDS,
        "/",
        "?",
        " HTTP/1.1",
        " HTTP/2",
        "\r\n",
        "\n",
        "Host: b\r\n",
        "X:\x00",
        "\r\n\r\n",
        " ",
        "\t",
        "#",
        "%",
    ]
)


@given(head=st.lists(REQUEST_PARTS | st.text(max_size=5), max_size=12).map("".join))
@settings(max_examples=2 * ROUNDS, deadline=None)
def test_a_request_for_the_network_is_understood_or_refused(head: str) -> None:
    try:
        request = parse_head(head.encode())
    except BadRequest:
        return
    assert 0 < request.port < 65536
    assert request.host
    assert not set(request.host) & set("\r\n\t @/?#%")
    if request.forward is not None:
        assert request.forward.count(b"\r\n\r\n") == 1
        assert request.forward.endswith(b"\r\n\r\n")
        assert b"\nProxy-" not in request.forward.title()
        assert b"\n" not in request.forward.replace(b"\r\n", b"")


@given(said=st.lists(st.binary(max_size=60) | st.just(b"8 1 77\n"), max_size=20))
@settings(max_examples=ROUNDS, deadline=None)
def test_what_a_counter_prints_is_counted_or_refused(said: list[bytes]) -> None:
    async def main() -> None:
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb") as out:
            out.write(b"".join(said))
        try:
            found = await _count(reader, Footprint(1 << 40, 1 << 20))
        except ValueError:
            return
        finally:
            os.close(reader)
        assert found.files >= 0

    anyio.run(main)
