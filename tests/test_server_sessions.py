"""Which session a call belongs to, by transport, protocol era and token."""

import re

import pytest

from e2b_agent_mcp.errors import InvalidArgumentError, SettingsError
from e2b_agent_mcp.server.sessions import Caller, identify
from e2b_agent_mcp.server.transports import StaticTokens, is_loopback, read_tokens
from e2b_agent_mcp.settings import Secret

LEGACY = "2025-11-25"
MODERN = "2026-07-28"
ONE = {"mcp-session-id": "a" * 32}
TWO = {"mcp-session-id": "b" * 32}


def caller(headers: dict[str, str] | None, version: str, token: str | None = None) -> Caller:
    return identify(
        headers,
        token_name=token,
        protocol_version=version,
        local_owner="local:me",
        default="default",
    )


@pytest.mark.parametrize("version", [LEGACY, MODERN])
def test_stdio_has_one_session(version: str) -> None:
    assert caller(None, version) == Caller("local:me", "default", is_local=True)


def test_each_legacy_http_session_has_its_own() -> None:
    one, two = caller(ONE, LEGACY), caller(TWO, LEGACY)
    assert one == caller(ONE, LEGACY)
    assert one.default != two.default
    assert caller(ONE, LEGACY, "ann").owner == "ann"


def test_a_session_is_not_named_by_the_id_that_opens_the_mcp_session() -> None:
    assert "a" * 8 not in caller(ONE, LEGACY).key(None).name


def test_a_modern_http_client_with_a_token_has_its_owners_default() -> None:
    assert caller({}, MODERN, "ann") == Caller("ann", "default")


def test_a_modern_http_client_cannot_claim_a_legacy_session() -> None:
    assert caller(ONE, MODERN) == caller({}, MODERN)


def test_a_modern_http_client_without_a_token_gets_a_name_that_cannot_be_guessed() -> None:
    anonymous = caller({}, MODERN)
    names = {anonymous.key(None).name for _ in range(100)}
    assert len(names) == 100
    assert all(re.fullmatch(r"s-[0-9a-f]{32}", name) for name in names)
    assert "Pass session=" in anonymous.reminder(names.pop())


def test_made_names_are_listed_only_to_their_own_caller() -> None:
    one, two = caller(ONE, LEGACY), caller(TWO, LEGACY)
    made = one.key(None).name
    assert one.may_see(made)
    assert not two.may_see(made)
    assert not caller({}, MODERN).may_see(made)
    assert two.may_see("chosen")
    assert caller({}, MODERN, "ann").may_see(made)


def test_a_tool_for_an_existing_session_needs_one() -> None:
    with pytest.raises(InvalidArgumentError, match="session: "):
        caller({}, MODERN).existing_key(None)


@pytest.mark.parametrize("name", ["", "a/b", "a b", "é", "x" * 65, "a\n"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="session: "):
        caller(None, MODERN).key(name)


async def test_a_token_is_known_by_its_name() -> None:
    tokens = StaticTokens(read_tokens([Secret("ann=one=1"), Secret("bob=zwei")]))
    ann = await tokens.verify_token("one=1")
    assert ann is not None
    assert ann.client_id == "ann"
    assert await tokens.verify_token("one") is None
    assert await tokens.verify_token("") is None
    assert await tokens.verify_token("\ud800é") is None


@pytest.mark.parametrize(
    "tokens", [["no-name"], ["=x"], ["a="], ["a b=x"], ["anonymous=x"], ["a=x", "a=y"]]
)
def test_tokens_need_names_that_are_free(tokens: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"http\.tokens"):
        read_tokens([Secret(token) for token in tokens])


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.1", False),
        ("localhost.example.com", False),
    ],
)
def test_loopback_is_known(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
