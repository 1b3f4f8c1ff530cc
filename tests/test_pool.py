"""Decisions about sandboxes: plain data in, plain data out."""

from datetime import UTC, datetime, timedelta

import pytest

from e2b_agent_mcp.errors import InvalidArgumentError, SandboxLimitError
from e2b_agent_mcp.pool import (
    DUPLICATE_GRACE,
    FORGET_AFTER,
    Candidate,
    Pool,
    SessionKey,
    Slot,
    by_session,
    check_key,
    choose,
    new_metadata,
    of_session,
    owned_by,
    superfluous,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
KEY = SessionKey("ann", "analysis")


def candidate(
    sandbox_id: str,
    *,
    session: str = "analysis",
    generation: str = "1",
    started: float = 0,
    paused: bool = False,
) -> Candidate:
    started_at = START + timedelta(seconds=started)
    return Candidate(
        sandbox_id=sandbox_id,
        metadata={"session": session, "generation": generation},
        paused=paused,
        started_at=started_at,
        end_at=started_at + timedelta(seconds=600),
    )


def test_a_sandbox_is_found_by_the_metadata_it_was_created_with() -> None:
    written = new_metadata(KEY, instance="i1", generation=3)
    assert written == {
        "e2b_agent_mcp": "1",
        "owner": "ann",
        "session": "analysis",
        "instance": "i1",
        "generation": "3",
    }
    assert of_session(KEY).items() <= written.items()
    assert owned_by("ann").items() <= written.items()
    assert not owned_by("bob").items() <= written.items()


@pytest.mark.parametrize(
    ("candidates", "winner"),
    [
        pytest.param([], None, id="none"),
        pytest.param([candidate("a")], "a", id="one"),
        pytest.param(
            [candidate("b", started=1), candidate("a", started=0)], "a", id="the older of a race"
        ),
        pytest.param([candidate("b"), candidate("a")], "a", id="same moment: by id"),
        pytest.param(
            [candidate("old", generation="1"), candidate("new", generation="2", started=9)],
            "new",
            id="a replacement",
        ),
        pytest.param(
            [candidate("odd", generation="x"), candidate("new", generation="1")],
            "new",
            id="an unreadable generation is the oldest",
        ),
    ],
)
def test_every_process_chooses_the_same_sandbox(
    candidates: list[Candidate], winner: str | None
) -> None:
    for order in (candidates, candidates[::-1]):
        chosen = choose(order)
        assert (chosen and chosen.sandbox_id) == winner


def test_a_session_is_listed_once_however_many_sandboxes_it_has() -> None:
    found = [candidate("b", session="two"), candidate("a", session="one"), candidate("c")]
    listed = list(by_session([*found, candidate("d", session="two", started=5)]))
    assert [item.sandbox_id for item in listed] == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("found", "after", "ended"),
    [
        pytest.param([candidate("a")], 10**9, [], id="a running one ends by itself"),
        pytest.param([candidate("a", paused=True)], 3600, [], id="within its retention"),
        pytest.param([candidate("a", paused=True)], 3601, ["a"], id="past its retention"),
        pytest.param(
            [candidate("old", paused=True), candidate("new", generation="2", paused=True)],
            DUPLICATE_GRACE + 1,
            ["old"],
            id="replaced",
        ),
        pytest.param(
            [candidate("old", paused=True), candidate("new", generation="2")],
            DUPLICATE_GRACE,
            [],
            id="replaced just now",
        ),
    ],
)
def test_only_paused_sandboxes_that_nobody_will_want_are_superfluous(
    found: list[Candidate], after: float, ended: list[str]
) -> None:
    now = START + timedelta(seconds=600 + after)  # all were paused at their 600 s
    assert [c.sandbox_id for c in superfluous(found, now, retention=3600)] == ended


@pytest.mark.parametrize("name", ["", "x" * 201, "two\nlines", "nul\0"])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        check_key(SessionKey("ann", name))


@pytest.mark.parametrize("name", ["default", "проект 1", "a/b", "x" * 200])
def test_a_name_may_be_any_text_that_can_be_shown(name: str) -> None:
    check_key(SessionKey("ann", name))


def held(pool: Pool, name: str, *, until: float) -> Slot:
    slot = pool.slot(SessionKey("ann", name))
    slot.hold(f"sandbox-{name}", generation=1, end_at=until)
    return slot


def test_the_limit_counts_live_sandboxes_and_those_being_created() -> None:
    pool = Pool(limit=2, life=600)
    held(pool, "one", until=100)
    pool.reserve(SessionKey("ann", "two"), now=0)
    with pytest.raises(SandboxLimitError) as refused:
        pool.reserve(SessionKey("ann", "three"), now=0)
    assert "sandboxes.max" in refused.value.message
    assert "E2B_AGENT_MCP_SANDBOXES_MAX" in refused.value.hint


def test_an_expired_sandbox_does_not_count() -> None:
    pool = Pool(limit=1, life=600)
    held(pool, "one", until=100)
    pool.reserve(SessionKey("ann", "two"), now=100)


def test_a_session_that_replaces_its_sandbox_does_not_count_twice() -> None:
    pool = Pool(limit=1, life=600)
    held(pool, "one", until=100)
    pool.reserve(SessionKey("ann", "one"), now=0)


def test_a_lost_sandbox_is_told_to_the_next_lease() -> None:
    slot = Slot(sandbox_id="a", generation=1, end_at=9, created=True)
    slot.lose("a", "gone")
    assert (slot.sandbox_id, slot.lost, slot.created) == ("", "gone", False)


def test_a_sandbox_that_was_ended_on_purpose_is_not_lost() -> None:
    slot = Slot(sandbox_id="a", generation=1, end_at=9)
    slot.drop()
    slot.lose("a", "gone")
    assert slot.lost == ""


def test_the_generation_never_goes_back() -> None:
    slot = Slot()
    slot.hold("a", generation=3, end_at=1)
    slot.hold("b", generation=2, end_at=1)
    assert slot.generation == 3


def test_a_sandbox_is_extended_after_a_tenth_of_its_life() -> None:
    pool = Pool(limit=1, life=600)
    slot = held(pool, "one", until=pool.end_at(0))
    assert not pool.must_extend(slot, now=60)
    assert pool.must_extend(slot, now=61)
    slot.doubted = True
    assert pool.must_extend(slot, now=0)
    slot.extend(pool.end_at(0))
    assert not pool.must_extend(slot, now=0)
    assert pool.heartbeat == 200


def test_a_session_is_forgotten_a_day_after_its_end() -> None:
    pool = Pool(limit=1, life=600)
    held(pool, "one", until=100)
    assert pool.forgettable(now=100 + FORGET_AFTER) == []
    assert pool.forgettable(now=101 + FORGET_AFTER) == [SessionKey("ann", "one")]
