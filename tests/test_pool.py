"""Decisions about sandboxes: plain data in, plain data out."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from e2b_agent_mcp.errors import InvalidArgumentError
from e2b_agent_mcp.pool import (
    DUPLICATE_GRACE,
    FORGET_AFTER,
    RACE,
    Candidate,
    Maker,
    Pool,
    SessionKey,
    Shortage,
    Slot,
    Terms,
    by_session,
    check_key,
    choose,
    made_by,
    new_metadata,
    of_session,
    owned_by,
    superfluous,
)
from e2b_agent_mcp.pool.slots import FULL_FOR
from e2b_agent_mcp.pool.terms import UNCHECKED_RUN
from e2b_agent_mcp.settings import SandboxSettings

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
        metadata={"owner": "ann", "session": session, "generation": generation},
        paused=paused,
        started_at=started_at,
        end_at=started_at + timedelta(seconds=600),
    )


def warm(sandbox_id: str, *, claimed: float) -> Candidate:
    item = candidate(sandbox_id)
    claim = {"claimed": (START + timedelta(seconds=claimed)).isoformat()}
    return replace(item, metadata={**item.metadata, **claim})


LATER = RACE + 1


def test_a_sandbox_is_found_by_the_metadata_it_was_created_with() -> None:
    written = new_metadata(KEY, maker=Maker("i1", "local:ann@home"), generation=3, today=START)
    assert written == {
        "e2b_agent_mcp": "1",
        "owner": "ann",
        "session": "analysis",
        "server": "local:ann@home",
        "instance": "i1",
        "generation": "3",
        "created": "2026-01-01T00:00:00+00:00",
    }
    for mine in (of_session(KEY), owned_by("ann"), made_by("local:ann@home")):
        assert mine.items() <= written.items()
    for other in (owned_by("bob"), made_by("local:bob@home")):
        assert not other.items() <= written.items()


def test_the_age_of_a_sandbox_counts_from_its_creation_not_from_its_last_resume() -> None:
    resumed = candidate("a", started=500)
    today = START + timedelta(seconds=1000)
    assert resumed.age(today) == 500
    created = {**resumed.metadata, "created": START.isoformat()}
    assert replace(resumed, metadata=created).age(today) == 1000
    assert replace(resumed, metadata={"created": "when?"}).age(today) == 500


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
            [candidate("b", generation="2", started=9), candidate("a", generation="1")],
            "a",
            id="the older of a race, though one server knew of an earlier sandbox",
        ),
        pytest.param(
            [candidate("old", generation="1"), candidate("new", generation="2", started=LATER)],
            "new",
            id="a replacement",
        ),
        pytest.param(
            [warm("a", claimed=LATER), candidate("b", generation="2", started=LATER + 9)],
            "a",
            id="a race with a warm one that was made long before",
        ),
        pytest.param(
            [candidate("odd", generation="x"), candidate("new", generation="1", started=LATER)],
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
            [
                candidate("old", paused=True),
                candidate("new", generation="2", paused=True, started=LATER),
            ],
            DUPLICATE_GRACE + 1,
            ["old"],
            id="replaced",
        ),
        pytest.param(
            [candidate("old", paused=True), candidate("new", generation="2", started=LATER)],
            DUPLICATE_GRACE,
            [],
            id="replaced just now",
        ),
    ],
)
def test_only_paused_sandboxes_that_nobody_will_want_are_superfluous(
    found: list[Candidate], after: float, ended: list[str]
) -> None:
    today = START + timedelta(seconds=600 + after)  # all were paused at their 600 s
    assert [c.sandbox_id for c in superfluous(found, today, retention=3600)] == ended


def test_a_paused_sandbox_beyond_its_age_is_superfluous() -> None:
    found = [candidate("a", paused=True), candidate("b", session="two")]
    today = START + timedelta(seconds=1000)
    assert superfluous(found, today, retention=3600, max_age=1000) == []
    (ended,) = superfluous(found, today, retention=3600, max_age=999)
    assert ended.sandbox_id == "a"


def test_two_owners_may_name_their_sessions_alike() -> None:
    bobs = replace(
        candidate("b", paused=True, generation="2"),
        metadata={"owner": "bob", "session": "analysis", "generation": "2"},
    )
    found = [candidate("a", paused=True), bobs]
    today = START + timedelta(seconds=600 + DUPLICATE_GRACE + 1)
    assert superfluous(found, today, retention=3600) == []


@pytest.mark.parametrize("name", ["", "x" * 201, "two\nlines", "nul\0"])
def test_a_name_that_cannot_be_shown_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        check_key(SessionKey("ann", name))


@pytest.mark.parametrize("name", ["default", "проект 1", "a/b", "x" * 200])
def test_a_name_may_be_any_text_that_can_be_shown(name: str) -> None:
    check_key(SessionKey("ann", name))


def pool_of(**settings: Any) -> Pool:
    return Pool(SandboxSettings(**settings))


def held(
    pool: Pool, name: str, *, until: float = 100, owner: str = "ann", used_at: float = 0
) -> Slot:
    slot = pool.slot(SessionKey(owner, name))
    slot.hold(f"sandbox-{name}", generation=1, now=used_at, end_at=until)
    return slot


@pytest.mark.parametrize(
    ("settings", "shortage"),
    [
        pytest.param({"max": 3}, None, id="room"),
        pytest.param({"max": 2}, "total", id="the total"),
        pytest.param({"max": 9, "max_per_owner": 1}, "owner", id="the owner's own"),
        pytest.param({"max": 2, "max_per_owner": 1}, "owner", id="the owner's first"),
        pytest.param({"max": 9, "max_per_owner": 2}, None, id="room of the owner's own"),
    ],
)
def test_running_sandboxes_and_those_being_started_count(
    settings: dict[str, int], shortage: str | None
) -> None:
    pool = pool_of(**settings)
    held(pool, "one")
    pool.slot(SessionKey("bob", "two")).starting = True
    assert pool.shortage(SessionKey("ann", "three"), now=0) == shortage


@pytest.mark.parametrize(
    ("settings", "owner", "shortage"),
    [
        pytest.param({"max": 2}, "bob", "total", id="the total"),
        pytest.param({"max": 9, "max_per_owner": 2}, "ann", "owner", id="the owner's own"),
        pytest.param({"max": 9, "max_per_owner": 2}, "bob", None, id="not another owner's"),
    ],
)
def test_warm_sandboxes_count(settings: dict[str, int], owner: str, shortage: str | None) -> None:
    pool = pool_of(**settings)
    held(pool, "one")
    pool.warm["ann"] += 1
    assert pool.shortage(SessionKey(owner, "new"), now=0) == shortage
    pool.warm["ann"] -= 1
    assert pool.shortage(SessionKey(owner, "new"), now=0) is None


def test_a_full_account_has_room_once_a_warm_sandbox_is_given_up() -> None:
    pool = pool_of(max=9)
    key = SessionKey("ann", "new")
    held(pool, "one")
    pool.warm["bob"] += 1
    pool.learn_full(key, now=0)
    assert pool.shortage(key, now=0) == "account"
    pool.warm["bob"] -= 1
    assert pool.shortage(key, now=0) is None


def test_a_sandbox_that_ended_or_paused_does_not_count() -> None:
    pool = pool_of(max=1)
    slot = held(pool, "one", until=100)
    assert pool.shortage(SessionKey("ann", "two"), now=99) == "total"
    assert pool.shortage(SessionKey("ann", "two"), now=100) is None
    slot.extend(200)
    slot.pause(now=100)
    assert pool.shortage(SessionKey("ann", "two"), now=100) is None
    assert pool.must_extend(slot, now=100)


def test_a_session_that_replaces_its_sandbox_does_not_count_twice() -> None:
    pool = pool_of(max=1)
    held(pool, "one")
    assert pool.shortage(SessionKey("ann", "one"), now=0) is None


def test_what_e2b_lists_as_running_counts_also_when_it_is_not_ours() -> None:
    pool = pool_of(max=2)
    slot = held(pool, "one", until=600)
    listed = [
        candidate("sandbox-one", session="one"),
        candidate("b", session="two"),
        candidate("c", session="two", started=9),
        candidate("d", session="three", paused=True),
    ]
    pool.observe("ann", listed, asked_at=5, now=5, today=START)
    assert pool.shortage(SessionKey("ann", "new"), now=5) == "total"
    assert slot.end_at == 600
    # E2B ends it by itself, so it need not be listed again.
    assert pool.shortage(SessionKey("ann", "new"), now=605 + 9) is None


def test_what_e2b_no_longer_lists_as_running_makes_room() -> None:
    pool = pool_of(max=1)
    slot = held(pool, "one", until=600, used_at=1)
    pool.observe("ann", [], asked_at=1, now=2, today=START)
    assert pool.shortage(SessionKey("ann", "new"), now=2) == "total"  # made while E2B was asked
    pool.observe("bob", [], asked_at=3, now=3, today=START)
    assert pool.shortage(SessionKey("ann", "new"), now=3) == "total"
    pool.observe("ann", [], asked_at=3, now=3, today=START)
    assert pool.shortage(SessionKey("ann", "new"), now=3) is None
    assert slot.doubted


def test_a_full_account_is_asked_again_later() -> None:
    pool = pool_of(max=9)
    key = SessionKey("ann", "new")
    held(pool, "one")
    pool.learn_full(key, now=0)
    assert pool.shortage(key, now=FULL_FOR - 1) == "account"
    pool.slot(SessionKey("ann", "one")).pause(now=0)
    assert pool.shortage(key, now=FULL_FOR - 1) is None
    held(pool, "one")
    assert pool.shortage(key, now=FULL_FOR) is None


def test_the_session_longest_unused_makes_room() -> None:
    pool = pool_of()
    key = SessionKey("ann", "new")
    held(pool, "old", used_at=1)
    held(pool, "older", used_at=0, owner="bob")
    held(pool, "newest", used_at=3)
    assert pool.idlest("total", key, 9, busy=()) == SessionKey("bob", "older")
    assert pool.idlest("owner", key, 9, busy=()) == SessionKey("ann", "old")
    busy = [SessionKey("ann", "old"), SessionKey("ann", "newest")]
    assert pool.idlest("owner", key, 9, busy=busy) is None
    assert pool.idlest("total", key, 100, busy=()) is None  # all have ended


def test_what_another_process_left_makes_room_once_nobody_can_be_using_it() -> None:
    pool = pool_of()  # a life of 600 s, extended at 200 s at the latest, or at 60 s before a lease
    key, two = SessionKey("ann", "new"), SessionKey("ann", "two")
    listed = [
        candidate("a", session="one", started=10),
        candidate("b", session="two"),
        candidate("c", session="three", paused=True),
        candidate("sandbox-held", session="held"),
    ]
    held(pool, "held", until=9999, used_at=50)
    pool.observe("ann", listed, asked_at=0, now=0, today=START)
    busy = [SessionKey("ann", "held")]
    assert pool.idlest("total", key, 275, busy=busy) is None
    assert pool.left(two, 275) == ""
    assert pool.idlest("total", key, 275, busy=()) == SessionKey("ann", "held")
    assert pool.idlest("total", key, 276, busy=()) == two
    assert pool.left(two, 276) == "b"
    assert pool.idlest("owner", SessionKey("bob", "new"), 276, busy=()) is None
    assert pool.idlest("total", two, 276, busy=busy) is None
    pool.distrust(two)
    assert pool.idlest("total", key, 286, busy=busy) == SessionKey("ann", "one")
    pool.observe_one(SessionKey("ann", "one"), None, now=286, today=START)
    assert pool.idlest("total", key, 286, busy=busy) is None
    extended = candidate("b", session="two", started=286)
    pool.observe_one(two, extended, now=286, today=START + timedelta(seconds=286))
    assert pool.left(two, 561) == ""
    assert pool.left(two, 562) == "b"


@pytest.mark.parametrize(
    ("ran", "known"),
    [(600, True), (3600, False), (3700, True), (86_395, False), (1200, False)],
)
def test_an_end_that_a_plan_may_have_set_does_not_tell_of_an_extension(
    ran: float, known: bool
) -> None:
    terms = Terms(600, longest=1200)
    assert terms.extended_at(100, 100 + ran) == (ran - 500 if known else math.inf)


@pytest.mark.parametrize(
    ("shortage", "option"),
    [
        ("owner", "E2B_AGENT_MCP_SANDBOXES_MAX_PER_OWNER"),
        ("total", "E2B_AGENT_MCP_SANDBOXES_MAX"),
        ("account", "E2B plan"),
    ],
)
def test_a_refusal_names_the_option(shortage: Shortage, option: str) -> None:
    assert option in pool_of().refusal(shortage).hint
    assert "SANDBOXES_AT_LIMIT=pause" in pool_of(at_limit="refuse").refusal(shortage).hint


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
    slot.hold("a", generation=3, now=0, end_at=1)
    slot.hold("b", generation=2, now=0, end_at=1)
    assert slot.generation == 3


def test_a_sandbox_is_extended_after_a_tenth_of_its_life() -> None:
    pool = pool_of()
    slot = held(pool, "one", until=pool.end_at(0))
    assert not pool.must_extend(slot, now=60)
    assert pool.must_extend(slot, now=61)
    slot.doubted = True
    assert pool.must_extend(slot, now=0)
    slot.extend(pool.end_at(0))
    assert not pool.must_extend(slot, now=0)
    assert pool.heartbeat == 200


# What E2B's plan allows


def terms(wanted: float, *, longest: float = math.inf) -> Terms:
    return Terms(wanted, longest=longest)


@pytest.mark.parametrize(
    ("wanted", "refusals", "life"),
    [
        pytest.param(7200, [3600], 3600, id="by its number"),
        pytest.param(90_000, [None], 86_400, id="without a number: the next plan"),
        pytest.param(90_000, [None, None], 3600, id="and the next"),
        pytest.param(599.5, [], 600, id="whole seconds"),
    ],
)
def test_the_longest_life_is_learnt_from_refusals(
    wanted: float, refusals: list[float | None], life: int
) -> None:
    learning = terms(wanted)
    for longest in refusals:
        assert learning.learn(longest)
    assert learning.life == life


@pytest.mark.parametrize("longest", [600, 700, 0])
def test_a_refusal_that_teaches_nothing_is_not_asked_again(longest: float) -> None:
    assert not terms(600).learn(longest)
    assert not terms(200).learn(None)


def test_an_extension_that_fell_short_tells_the_longest_run() -> None:
    learning = terms(600)
    learning.observe(ran=2800, left=595)
    assert learning.longest == math.inf
    learning.observe(ran=3100, left=500)
    assert learning.longest == 3600


def test_a_run_is_renewed_while_a_whole_life_is_left_of_it() -> None:
    pool = Pool(SandboxSettings(idle_after=600), terms(600, longest=3600))
    slot = pool.slot(KEY)
    slot.hold("a", generation=1, now=0, end_at=10_000)
    assert not pool.must_renew(slot, now=3000)
    assert pool.must_renew(slot, now=3001)
    slot.hold("a", generation=1, now=3001, end_at=10_000, ran=0)
    assert not pool.must_renew(slot, now=3600)
    slot.pause(3600)
    assert not pool.must_renew(slot, now=9000)


def test_a_life_as_long_as_the_longest_run_is_renewed_at_its_half() -> None:
    pool = Pool(SandboxSettings(idle_after=7200), terms(7200, longest=3600))
    slot = pool.slot(KEY)
    slot.hold("a", generation=1, now=0, end_at=10_000)
    assert not pool.must_renew(slot, now=1800)
    assert pool.must_renew(slot, now=1801)


def test_extensions_are_checked_only_once_a_plan_could_cut_them() -> None:
    pool = pool_of()
    slot = held(pool, "one")
    assert not pool.must_check(slot, now=UNCHECKED_RUN)
    assert pool.must_check(slot, now=UNCHECKED_RUN + 1)
    pool.terms.longest = 3600
    assert not pool.must_check(slot, now=UNCHECKED_RUN + 1)


def test_age_has_a_limit_only_when_one_is_set() -> None:
    assert not pool_of().is_too_old(10**9)
    assert not pool_of(max_age=60).is_too_old(60)
    assert pool_of(max_age=60).is_too_old(61)


def test_a_session_is_forgotten_a_day_after_its_end() -> None:
    pool = pool_of()
    held(pool, "one", until=100)
    assert pool.forgettable(now=100 + FORGET_AFTER) == []
    assert pool.forgettable(now=101 + FORGET_AFTER) == [SessionKey("ann", "one")]
