"""What a sandbox may reach: the policy as a pure decision, and the proxy that carries it out."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from e2b_agent_mcp.engine import ensure_ready, stop
from e2b_agent_mcp.engine.egress import (
    Allowed,
    Denied,
    EgressProxy,
    HostNetwork,
    NetworkPolicy,
    is_rule,
    read_upstream,
    share_of_connections,
)
from e2b_agent_mcp.engine.egress.policy import is_public
from e2b_agent_mcp.engine.egress.proxy import CONNECTIONS, RESOLUTIONS, is_own
from e2b_agent_mcp.engine.egress.request import LARGEST_HEAD, BadRequest, parse_head
from e2b_agent_mcp.engine.guest import relay

from .test_discovery import client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from anyio.abc import SocketStream
    from e2b import SandboxNetworkOpts

    from e2b_agent_mcp.engine import EngineOptions

PUBLIC = "93.184.215.14"

# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("127.0.0.1", id="loopback"),
        pytest.param("127.1.2.3", id="all of 127/8"),
        pytest.param("0.0.0.0", id="this host"),
        pytest.param("10.1.2.3", id="private A"),
        pytest.param("172.16.0.1", id="private B"),
        pytest.param("192.168.1.1", id="private C"),
        pytest.param("169.254.169.254", id="cloud metadata"),
        pytest.param("168.63.129.16", id="cloud metadata at a public address"),
        pytest.param("100.64.0.1", id="carrier NAT"),
        pytest.param("100.100.100.200", id="cloud metadata in carrier NAT"),
        pytest.param("192.0.2.1", id="documentation"),
        pytest.param("192.0.0.8", id="protocols"),
        pytest.param("192.88.99.1", id="6to4 relay"),
        pytest.param("198.18.0.1", id="benchmarks"),
        pytest.param("224.0.0.1", id="multicast"),
        pytest.param("240.0.0.1", id="reserved"),
        pytest.param("255.255.255.255", id="broadcast"),
        pytest.param("::1", id="v6 loopback"),
        pytest.param("::", id="v6 unspecified"),
        pytest.param("fe80::1", id="v6 link"),
        pytest.param("fec0::1", id="v6 site"),
        pytest.param("fd00:ec2::254", id="v6 cloud metadata"),
        pytest.param("ff0e::1", id="v6 global multicast"),
        pytest.param("2001:db8::1", id="v6 documentation"),
        pytest.param("3fff::1", id="v6 documentation, new"),
        pytest.param("5f00::1", id="v6 segment routing"),
        pytest.param("::ffff:127.0.0.1", id="mapped loopback"),
        pytest.param("::ffff:10.0.0.1", id="mapped private"),
        pytest.param("::127.0.0.1", id="v4-compatible"),
        pytest.param("2002:7f00:1::", id="6to4 of loopback"),
        pytest.param("2002:a9fe:a9fe::", id="6to4 of metadata"),
        pytest.param("64:ff9b::7f00:1", id="NAT64 of loopback"),
        pytest.param("64:ff9b::a9fe:a9fe", id="NAT64 of metadata"),
        pytest.param("64:ff9b:1::1", id="local NAT64"),
        pytest.param("2001:0:7f00:1::", id="Teredo"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    decision = NetworkPolicy().decide("example.com", 443, [ip_address(address)])

    assert isinstance(decision, Denied)


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:4700::1111", "64:ff9b::101:101"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_public(ip_address(address))


# ---------------------------------------------------------------- rules

POLICIES = [
    pytest.param(NetworkPolicy(), "example.com", PUBLIC, True, id="public"),
    pytest.param(NetworkPolicy(False), "example.com", PUBLIC, False, id="none"),
    pytest.param(NetworkPolicy(False, ("example.com",)), "EXAMPLE.com.", PUBLIC, True, id="name"),
    pytest.param(NetworkPolicy(False, ("example.com",)), "x.example.com", PUBLIC, False, id="sub"),
    pytest.param(
        NetworkPolicy(False, ("*.example.com",)), "a.b.example.com", PUBLIC, True, id="*."
    ),
    pytest.param(NetworkPolicy(False, ("*.example.com",)), "example.com", PUBLIC, False, id="apex"),
    pytest.param(NetworkPolicy(False, ("*.ample.com",)), "example.com", PUBLIC, False, id="suffix"),
    pytest.param(NetworkPolicy(False, (PUBLIC,)), "example.com", PUBLIC, True, id="address"),
    pytest.param(NetworkPolicy(False, ("93.0.0.0/8",)), "example.com", PUBLIC, True, id="network"),
    pytest.param(
        NetworkPolicy(False, ("93.0.0.0/8",)), "example.com", "1.1.1.1", False, id="other"
    ),
    pytest.param(NetworkPolicy(True, (), (PUBLIC,)), "example.com", PUBLIC, False, id="denied"),
    pytest.param(
        NetworkPolicy(True, (), (PUBLIC,)), "example.com", f"::ffff:{PUBLIC}", False, id="mapped"
    ),
    pytest.param(
        NetworkPolicy(True, (), ("*.com",)), "example.com", PUBLIC, False, id="denied name"
    ),
    pytest.param(
        NetworkPolicy(True, ("example.com",), ("0.0.0.0/0",)),
        "example.com",
        PUBLIC,
        True,
        id="allow wins over deny",
    ),
    pytest.param(
        NetworkPolicy(True, (), ("0.0.0.0/0",)),
        "example.com",
        "2606:4700::1",
        False,
        id="all v6 too",
    ),
    pytest.param(NetworkPolicy(True, ("10.0.0.5",)), "db", "10.0.0.5", True, id="private, named"),
    pytest.param(
        NetworkPolicy(True, ("10.0.0.0/8",)), "db", "10.0.0.5", True, id="private network"
    ),
    pytest.param(NetworkPolicy(True, ("db",)), "db", "10.0.0.5", False, id="private, by name only"),
    pytest.param(NetworkPolicy(True, ("0.0.0.0/0",)), "db", "10.0.0.5", False, id="all is public"),
    pytest.param(NetworkPolicy(True, ("127.0.0.1",)), "h", "127.0.0.1", False, id="never loopback"),
    pytest.param(
        NetworkPolicy(True, ("169.254.169.254",)), "m", "169.254.169.254", False, id="never link"
    ),
]


@pytest.mark.parametrize(("policy", "host", "address", "allowed"), POLICIES)
def test_rules_decide_by_name_and_address(
    policy: NetworkPolicy, host: str, address: str, allowed: bool
) -> None:
    decision = policy.decide(host, 443, [ip_address(address)])

    assert isinstance(decision, Allowed) is allowed


def test_only_the_addresses_that_pass_are_connected_to() -> None:
    """A name that resolves to a public and to a private address does not open the private one."""
    mixed = [ip_address("127.0.0.1"), ip_address(PUBLIC), ip_address("10.0.0.1")]

    assert NetworkPolicy().decide("example.com", 443, mixed) == Allowed((ip_address(PUBLIC),))


def test_this_machines_public_address_is_closed() -> None:
    here = ip_address(PUBLIC)

    assert isinstance(NetworkPolicy().decide("me.example", 443, [here], own=[here]), Denied)


def test_the_mail_port_is_closed_even_for_allowed_hosts() -> None:
    policy = NetworkPolicy(True, ("example.com",))

    assert isinstance(policy.decide("example.com", 25, [ip_address(PUBLIC)]), Denied)


def test_the_package_index_may_be_a_private_address_on_its_own_port() -> None:
    private = [ip_address("10.0.0.1")]
    endpoints = {("index.corp", 443)}

    assert isinstance(
        NetworkPolicy().decide("index.corp", 443, private, endpoints=endpoints), Allowed
    )
    assert isinstance(
        NetworkPolicy().decide("index.corp", 22, private, endpoints=endpoints), Denied
    )
    assert isinstance(
        NetworkPolicy(False).decide("index.corp", 443, private, endpoints=endpoints), Denied
    )


LISTED = NetworkPolicy(False, ("example.com", "10.0.0.0/8"))  # an owner's allowlist
CEILINGS = [
    pytest.param(LISTED, NetworkPolicy(), "example.com", PUBLIC, True, id="listed"),
    pytest.param(LISTED, NetworkPolicy(), "example.org", PUBLIC, False, id="not listed"),
    pytest.param(LISTED, NetworkPolicy(), "db", "10.0.0.5", True, id="a private network, listed"),
    pytest.param(LISTED, NetworkPolicy(), "db", "192.168.0.5", False, id="another"),
    pytest.param(
        LISTED, NetworkPolicy(False), "example.com", PUBLIC, False, id="the sandbox wants none"
    ),
    pytest.param(
        LISTED, NetworkPolicy(True, ("x.org",)), "x.org", PUBLIC, False, id="a sandbox wants more"
    ),
    pytest.param(
        NetworkPolicy(False), NetworkPolicy(True, ("x.org",)), "x.org", PUBLIC, False, id="none"
    ),
    pytest.param(
        NetworkPolicy(False), NetworkPolicy(True, ("10.0.0.5",)), "d", "10.0.0.5", False, id="LAN"
    ),
]


@pytest.mark.parametrize(("ceiling", "policy", "host", "address", "allowed"), CEILINGS)
def test_no_sandbox_reaches_more_than_its_owner_permits(
    ceiling: NetworkPolicy, policy: NetworkPolicy, host: str, address: str, allowed: bool
) -> None:
    decision = policy.decide(host, 443, [ip_address(address)], ceiling=ceiling)

    assert isinstance(decision, Allowed) is allowed


@pytest.mark.parametrize("ceiling", [LISTED, NetworkPolicy(False)])
def test_the_package_index_is_open_whatever_the_owner_permits(ceiling: NetworkPolicy) -> None:
    private = [ip_address("10.0.0.1")]
    endpoints = {("index.corp", 443)}
    options = {"endpoints": endpoints, "ceiling": ceiling}

    assert isinstance(
        NetworkPolicy().decide("index.corp", 443, private, **options),  # type: ignore[arg-type]
        Allowed,
    )


@pytest.mark.parametrize(
    "text", ["example.com", "*.example.com", "*", "a_b", "10.0.0.0/8", "::1", "[::1]", "x.y."]
)
def test_what_a_rule_is(text: str) -> None:
    assert is_rule(text)


@pytest.mark.parametrize("text", ["", "!!", "a b", "a/b", "10.0.0.0/99", "*.*", "a" * 300, "-a"])
def test_what_no_rule_is(text: str) -> None:
    assert not is_rule(text)


def test_a_refusal_names_the_setting() -> None:
    denied = NetworkPolicy(False).decide("example.com", 443, [ip_address(PUBLIC)])

    assert denied == Denied(
        "this sandbox has no internet access",
        "Create it with allow_internet_access, or name the host in network.allow_out.",
    )


# ---------------------------------------------------------------- request heads


def test_an_absolute_request_is_rewritten_for_its_server() -> None:
    head = (
        b"POST http://example.com:8080?q=1 HTTP/1.1\r\nHost: evil.example\r\nX-A: b\r\n"
        b"Proxy-Authorization: secret\r\nProxy-Connection: keep-alive\r\nContent-Length: 2"
    )

    request = parse_head(head)

    assert (request.host, request.port) == ("example.com", 8080)
    assert request.forward == (
        b"POST /?q=1 HTTP/1.1\r\nHost: example.com:8080\r\nX-A: b\r\nContent-Length: 2\r\n"
        b"Connection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x16\x03\x01", id="TLS"),
        pytest.param(b"GET / HTTP/1.1", id="not a proxy request"),
        pytest.param(b"GET http://example.com/ HTTP/2", id="version"),
        pytest.param(b"GET https://example.com/ HTTP/1.1", id="https without a tunnel"),
        pytest.param(b"CONNECT example.com HTTP/1.1", id="no port"),
        pytest.param(b"CONNECT example.com:99999 HTTP/1.1", id="no such port"),
        pytest.param(b"CONNECT :443 HTTP/1.1", id="no host"),
        pytest.param(b"CONNECT a@b:443 HTTP/1.1", id="user"),
        pytest.param(b"CONNECT [fe80::1%25eth0]:443 HTTP/1.1", id="zone"),
        pytest.param(b"CONNECT exa\xffmple:443 HTTP/1.1", id="not ASCII"),
        pytest.param(b"GET http://a b/ HTTP/1.1", id="space"),
        pytest.param(b"GET http://example.com/\nA:b HTTP/1.1", id="LF in the path"),
        pytest.param(b"GET http://exa\nmple.com/ HTTP/1.1", id="LF in the name"),
        pytest.param(b"GET http://example.com/\rA:b HTTP/1.1", id="CR in the path"),
        pytest.param(b"GET http://example.com/\x00 HTTP/1.1", id="NUL"),
        pytest.param(b"GET http://example.com#other.org/ HTTP/1.1", id="fragment"),
        pytest.param(b"CONNECT exa\tmple.com:443 HTTP/1.1", id="tab in a tunnel's name"),
        pytest.param(b"GET http://example.com/ HTTP/1.1\r\nno colon", id="header"),
        pytest.param(b"GET http://example.com/ HTTP/1.1\r\nA: b\r\n folded", id="folded header"),
        pytest.param(b"GET http://example.com/ HTTP/1.1\r\nA: b\rX: y", id="bare CR"),
        pytest.param(b"GET http://example.com/ HTTP/1.1\r\nA: b\nX: y", id="bare LF"),
    ],
)
def test_a_malformed_head_is_refused(head: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_head(head)


# ---------------------------------------------------------------- the proxy


@asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """Sends back what it gets, and ends when its client does."""

    async def echo(stream: SocketStream) -> None:
        async with stream:
            async for data in stream:
                await stream.send(data)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, echo)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def proxy_to(port: int, folder: Path) -> AsyncIterator[EgressProxy]:
    """One whose only reachable private endpoint is the test's server."""
    with anyio.fail_after(10):
        endpoints = {("127.0.0.1", port)}
        network = HostNetwork(endpoints=endpoints)
        async with EgressProxy(folder / "p.sock", NetworkPolicy(), network) as proxy:
            yield proxy


async def ask(folder: Path, request: bytes) -> bytes:
    """Everything the proxy answers until it closes."""
    answer = b""
    async with await anyio.connect_unix(folder / "p.sock") as client:
        await client.send(request)
        async for data in client:
            answer += data
    return answer


async def tunnel(folder: Path, port: int) -> SocketStream:
    client = await anyio.connect_unix(folder / "p.sock")
    await client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
    assert (await client.receive()).startswith(b"HTTP/1.1 200 ")
    return client


async def test_a_tunnel_moves_bytes_both_ways_and_ends_with_its_client(tmp_path: Path) -> None:
    received = 0
    async with (
        echo_server() as port,
        proxy_to(port, tmp_path),
        await tunnel(tmp_path, port) as client,
    ):
        await client.send(b"x" * 1_000_000)
        await client.send_eof()
        async for data in client:
            received += len(data)

    assert received == 1_000_000


async def test_a_plain_request_reaches_its_server_with_its_body(tmp_path: Path) -> None:
    received = b""
    async with (
        echo_server() as port,
        proxy_to(port, tmp_path),
        await anyio.connect_unix(tmp_path / "p.sock") as client,
    ):
        await client.send(b"PUT http://127.0.0.1:%d/f HTTP/1.1\r\nA: b\r\n\r\nbo" % port)
        await client.send(b"dy")
        await client.send_eof()
        async for data in client:
            received += data

    assert received.startswith(b"PUT /f HTTP/1.1\r\n")
    assert received.endswith(b"\r\n\r\nbody")


async def test_a_refusal_says_why_in_its_status_line_and_its_body(tmp_path: Path) -> None:
    async with proxy_to(1, tmp_path):
        answer = await ask(tmp_path, b"CONNECT 10.0.0.1:443 HTTP/1.1\r\n\r\n")

    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith(
        "HTTP/1.1 403 10.0.0.1 is at 10.0.0.1, which is not a public address\r\n"
    )
    assert body == (
        "10.0.0.1 is at 10.0.0.1, which is not a public address. "
        "A private address can be allowed by naming it in network.allow_out.\n"
    )


# fmt: off
SPELLINGS = (
    "127.0.0.1", "127.1", "127.0.0.1.", "0x7f.1", "0x7f000001", "0177.0.0.1", "2130706433", "0",
    "0.0.0.0", "localhost", "localhost.", "LOCALHOST.", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]",
    "[::127.0.0.1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]",
    "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]", "[64:ff9b:1::7f00:1]", "[fe80::1%25lo]",
    "\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "127\u30020\u30020\u30021",
    "\uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54", "user@127.0.0.1", "169.254.169.254",
    "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]",
)
# fmt: on


@pytest.mark.parametrize("allowed", [(), ("*",)], ids=["public", "all allowed"])
async def test_no_spelling_of_loopback_or_metadata_reaches_the_host(
    allowed: tuple[str, ...], tmp_path: Path
) -> None:
    async with echo_server() as port, proxy_to(1, tmp_path) as proxy:
        proxy.policy = NetworkPolicy(allow_out=allowed)
        for host in SPELLINGS:
            for way in (f"CONNECT {host}:{port}", f"GET http://{host}:{port}/"):
                answer = await ask(tmp_path, f"{way} HTTP/1.1\r\n\r\n".encode())
                assert answer[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 403 ", b"HTTP/1.1 502 "), way


PUBLIC = "198.41.0.4"


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        pytest.param([[PUBLIC], ["127.0.0.1"]], b"504", id="public, then the host"),
        pytest.param([[PUBLIC, "127.0.0.1"], ["127.0.0.1"]], b"504", id="both at once"),
        pytest.param([["127.0.0.1"], [PUBLIC]], b"403", id="the host, then public"),
        pytest.param([["::ffff:127.0.0.1"], [PUBLIC]], b"403", id="the host, mapped"),
    ],
)
async def test_a_name_whose_address_changes_leads_only_where_it_was_checked(
    answers: list[list[str]], status: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the resolver is the sandbox's friend, and answers each time as it likes."""
    monkeypatch.setattr("e2b_agent_mcp.engine.egress.proxy.CONNECT_TIMEOUT", 0.5)
    waiting, resolve = list(answers), socket.getaddrinfo
    reached = anyio.Event()

    def friend(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "rebind.example":
            return resolve(host, *args, **kwargs)
        now = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return [found for address in now for found in resolve(address, *args, **kwargs)]

    async def serve(stream: SocketStream) -> None:
        reached.set()
        await stream.aclose()

    monkeypatch.setattr(socket, "getaddrinfo", friend)
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
        proxy_to(1, tmp_path),
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        request = f"CONNECT rebind.example:{port} HTTP/1.1\r\n\r\n"
        answer = await ask(tmp_path, request.encode())
        tasks.cancel_scope.cancel()

    assert answer.startswith(b"HTTP/1.1 " + status)
    assert not reached.is_set()


async def test_a_redirect_is_the_clients_to_follow(tmp_path: Path) -> None:
    async def redirect(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, redirect)
        async with proxy_to(port, tmp_path):
            first = await ask(tmp_path, b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n\r\n" % port)
            second = await ask(tmp_path, b"GET http://127.0.0.1:1/ HTTP/1.1\r\n\r\n")
        tasks.cancel_scope.cancel()

    assert first.startswith(b"HTTP/1.1 302 ")
    assert second.startswith(b"HTTP/1.1 403 ")


async def test_heads_that_come_a_byte_at_a_time_end_and_leave_others_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2b_agent_mcp.engine.egress.proxy.HEAD_TIMEOUT", 1.0)
    ended = 0

    async def drip() -> None:
        nonlocal ended
        async with await anyio.connect_unix(tmp_path / "hostile.sock") as client:
            with suppress(anyio.BrokenResourceError):
                while True:
                    await client.send(b"a")
                    await anyio.sleep(0.01)
        ended += 1

    (tmp_path / "other").mkdir()
    hostile = EgressProxy(tmp_path / "hostile.sock", NetworkPolicy())
    async with echo_server() as port, hostile, proxy_to(port, tmp_path / "other"):
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(CONNECTIONS):
                    tasks.start_soon(drip)
                for _ in range(20):
                    with anyio.fail_after(2):
                        async with await tunnel(tmp_path / "other", port) as client:
                            await client.send(b"turn")
                            assert await client.receive() == b"turn"

    assert ended == CONNECTIONS


@pytest.mark.parametrize(
    ("sandboxes", "descriptors", "connections"),
    [(20, 1024, 12), (20, 4096, 51), (20, 524_288, 128), (1000, 1024, 8)],
)
def test_all_sandboxes_together_leave_the_engine_descriptors(
    sandboxes: int, descriptors: int, connections: int
) -> None:
    assert share_of_connections(sandboxes, descriptors) == connections


async def test_a_head_without_an_end_is_refused_at_its_limit(tmp_path: Path) -> None:
    async with proxy_to(1, tmp_path):
        answer = await ask(tmp_path, b"GET http://x/" + b"a" * (LARGEST_HEAD + 1))

    assert answer.startswith(b"HTTP/1.1 400 the head of the request is too large")


async def test_a_closed_port_is_a_gateway_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    async with proxy_to(port, tmp_path):
        answer = await ask(tmp_path, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)

    assert answer.startswith(b"HTTP/1.1 504 ")


async def test_a_replaced_policy_holds_at_once_and_ends_open_tunnels(tmp_path: Path) -> None:
    async with echo_server() as port, proxy_to(port, tmp_path) as proxy:
        async with await tunnel(tmp_path, port) as client:
            proxy.policy = NetworkPolicy(internet=False)
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await client.receive()
        answer = await ask(tmp_path, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)

    assert answer.startswith(b"HTTP/1.1 403 this sandbox has no internet access")


async def test_one_connection_too_many_is_refused_and_the_others_live(tmp_path: Path) -> None:
    async with echo_server() as port, proxy_to(port, tmp_path):
        idle = [await anyio.connect_unix(tmp_path / "p.sock") for _ in range(CONNECTIONS - 1)]
        client = await tunnel(tmp_path, port)
        async with await anyio.connect_unix(tmp_path / "p.sock") as extra:
            refused = await extra.receive()
        await client.send(b"still here")
        assert await client.receive() == b"still here"
        for stream in (client, *idle):
            await stream.aclose()

    assert refused.startswith(b"HTTP/1.1 503 ")


async def test_names_that_take_long_to_resolve_delay_no_other_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox can ask for names whose server, its owner's, never answers."""
    answered, resolve = threading.Event(), socket.getaddrinfo
    common = min(32, (os.cpu_count() or 1) + 4)  # threads of asyncio, which all would share
    asked = threading.Semaphore(0)

    def slow(host: str, *args: Any, **kwargs: Any) -> Any:
        if host == "slow.example":
            asked.release()
            answered.wait(30)
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with AsyncExitStack() as stack:
        stack.callback(answered.set)
        for number in range(1 + common // RESOLUTIONS):
            hostile = tmp_path / f"{number}.sock"
            await stack.enter_async_context(EgressProxy(hostile, NetworkPolicy()))
            for _ in range(8):
                client = await stack.enter_async_context(await anyio.connect_unix(hostile))
                await client.send(b"CONNECT slow.example:443 HTTP/1.1\r\n\r\n")
        for _ in range(common):
            assert await anyio.to_thread.run_sync(asked.acquire, True, 10)
        await stack.enter_async_context(EgressProxy(tmp_path / "p.sock", NetworkPolicy()))
        with anyio.fail_after(10):
            answer = await ask(tmp_path, b"CONNECT localhost:443 HTTP/1.1\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 403 ")


async def test_the_proxy_ends_with_open_connections_and_leaves_no_socket(tmp_path: Path) -> None:
    async with echo_server() as port:
        async with proxy_to(port, tmp_path):
            client = await tunnel(tmp_path, port)
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await client.receive()
        await client.aclose()

    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- a proxy of the host's


@asynccontextmanager
async def hosts_proxy(answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> AsyncIterator[list[bytes]]:
    """Gives the answer to what it is asked, and sends back what comes then."""
    heads: list[bytes] = []

    async def serve(stream: SocketStream) -> None:
        async with stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive(1)
            heads.append(head)
            await stream.send(answer)
            async for data in stream:
                await stream.send(data)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        heads.append(b"http://us%%40r:p@127.0.0.1:%d" % port)
        yield heads
        tasks.cancel_scope.cancel()


async def ask_behind(
    heads: list[bytes], folder: Path, request: bytes, *, no_proxy: str = ""
) -> bytes:
    url = heads.pop().decode()
    upstream = read_upstream({"https_proxy": url, "HTTP_PROXY": url, "no_proxy": no_proxy})
    network = HostNetwork(upstream=upstream)
    with anyio.fail_after(20):
        async with (
            EgressProxy(folder / "p.sock", NetworkPolicy(), network),
            await anyio.connect_unix(folder / "p.sock") as client,
        ):
            await client.send(request)
            await client.send_eof()
            return b"".join([data async for data in client])


OWN_LOGIN = b"Proxy-Authorization: Basic dXNAcjpw\r\n"


async def test_a_tunnel_leads_through_the_proxy_of_the_host(tmp_path: Path) -> None:
    request = b"CONNECT 93.184.215.14:443 HTTP/1.1\r\nProxy-Authorization: mine\r\n\r\nhello"
    async with hosts_proxy() as heads:
        answer = await ask_behind(heads, tmp_path, request)
    place = b"93.184.215.14:443"
    assert heads == [b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (place, place, OWN_LOGIN)]
    assert answer == b"HTTP/1.1 200 Connection established\r\n\r\nhello"


async def test_a_plain_request_is_passed_on_by_the_proxy_of_the_host(tmp_path: Path) -> None:
    request = b"GET http://93.184.215.14/path?q HTTP/1.1\r\nA: b\r\n\r\n"
    async with hosts_proxy(b"HTTP/1.1 204 No Content\r\n\r\n") as heads:
        answer = await ask_behind(heads, tmp_path, request)
    assert heads[0].startswith(b"GET http://93.184.215.14:80/path?q HTTP/1.1\r\n" + OWN_LOGIN)
    assert answer == b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        pytest.param("10.0.0.1:443", 403, id="a private address"),
        pytest.param("localhost:443", 403, id="the host itself"),
        pytest.param("no-such-name:443", 403, id="no public name"),
        pytest.param("no-such-name.internal:443", 403, id="an internal name"),
        pytest.param("no-such-name.example:443", 200, id="only the proxy can resolve it"),
        pytest.param("no-such-name.example:25", 403, id="mail"),
    ],
)
async def test_what_the_proxy_of_the_host_is_asked_for(
    tmp_path: Path, target: str, status: int
) -> None:
    request = f"CONNECT {target} HTTP/1.1\r\n\r\n".encode()
    async with hosts_proxy() as heads:
        answer = await ask_behind(heads, tmp_path, request)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert len(heads) == (status == 200)


async def test_a_refusal_by_the_proxy_of_the_host_is_told(tmp_path: Path) -> None:
    async with hosts_proxy(b"HTTP/1.1 407 Log in\r\n\r\n") as heads:
        request = b"CONNECT 93.184.215.14:443 HTTP/1.1\r\n\r\n"
        answer = await ask_behind(heads, tmp_path, request)
    assert answer.startswith(b"HTTP/1.1 502 the proxy of this host does not lead to 93.184.215.14")
    assert b"HTTP/1.1 407 Log in" in answer


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", True),
        (".example.com", "example.com", True),
        ("*.example.com", "www.example.com", True),
        ("example.com:443", "example.com", True),
        ("example.com:80", "example.com", False),
        ("example.com", "badexample.com", False),
        ("localhost, 10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("*", "example.com", True),
        ("", "example.com", False),
    ],
)
def test_hosts_that_need_no_proxy(no_proxy: str, host: str, direct: bool) -> None:
    upstream = read_upstream({"ALL_PROXY": "proxy:3128", "NO_PROXY": no_proxy})

    assert (upstream.proxy_for(host, 443, tunnel=True) is None) is direct


def test_a_proxy_that_is_not_http_is_not_used() -> None:
    upstream = read_upstream({"https_proxy": "socks5://proxy:1080"})

    assert upstream.proxy_for("example.com", 443, tunnel=True) is None


async def test_the_relay_leads_from_a_loopback_port_to_the_proxy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        relay_port = reserved.getsockname()[1]
    async with (
        echo_server() as port,
        proxy_to(port, tmp_path),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(relay.serve, str(tmp_path / "p.sock"), relay_port)
        await anyio.wait_all_tasks_blocked()
        async with await anyio.connect_tcp("127.0.0.1", relay_port) as client:
            await client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)
            assert (await client.receive()).startswith(b"HTTP/1.1 200 ")
            await client.send(b"ping")
            assert await client.receive() == b"ping"
        tasks.cancel_scope.cancel()


def test_own_addresses_are_known() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert is_own(ip_address("64:ff9b::7f00:1"))  # by NAT64
    assert not is_own(ip_address("192.0.2.1"))


# ---------------------------------------------------------------- a whole engine


async def test_what_the_owner_permits_holds_in_the_sandboxes(fresh_options: EngineOptions) -> None:
    options = replace(fresh_options, network="none", network_allow=("10.0.0.0/8",))
    wanted: SandboxNetworkOpts = {
        "allow_out": [PUBLIC, "example.com"],
        "deny_out": lambda ctx: [ctx.all_traffic],
    }
    e2b = client(await ensure_ready(options))
    try:
        async with await e2b.AsyncSandbox.create(timeout=60, network=wanted) as sandbox:
            said = (await sandbox.commands.run(f"curl -sS http://{PUBLIC}/")).stdout
            assert said.startswith(f"{PUBLIC} is not open to sandboxes of this engine.")
            assert "engine.network_allow" in said
            await sandbox.update_network({"allow_internet_access": False})
            said = (await sandbox.commands.run(f"curl -sS http://{PUBLIC}/")).stdout
            assert said.startswith("this sandbox has no internet access")
    finally:
        await stop(options)
