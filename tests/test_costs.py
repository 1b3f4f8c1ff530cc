"""Prices, months and budgets; and the ledger, which has to be right whenever it is asked."""

import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2b_agent_mcp.costs import (
    Interval,
    Ledger,
    Spent,
    Verdict,
    dollars,
    judge,
    month_of,
    named_month,
    price,
)
from e2b_agent_mcp.costs.ledger import FILE
from e2b_agent_mcp.errors import InvalidArgumentError, MonthlyBudgetError
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import CostSettings
from rounds import rounds

KEY = SessionKey("ann", "analysis")
OTHER = SessionKey("bob", "report")
START = datetime(2026, 11, 10, tzinfo=UTC).timestamp()
NOVEMBER = month_of(START)


def interval(start: float, end: float, **changes: object) -> Interval:
    values = {
        "key": KEY,
        "creation": "c-1",
        "sandbox_id": "i1",
        "started_at": START + start,
        "ends_at": START + end,
        "usd_per_second": 0.5,
    }
    return Interval(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(lambda: tmp_path)


def seconds(ledger: Ledger, at: float, key: SessionKey = KEY) -> float:
    accounts = dict(ledger.accounts(NOVEMBER, START + at))
    return round(accounts.get(key, Spent()).sandbox_seconds, 3)


# Prices, months, budgets


@pytest.mark.parametrize(
    ("costs", "billed", "hour"),
    [
        pytest.param(CostSettings(), True, 0.1089, id="E2B's default sandbox"),
        pytest.param(CostSettings(), False, 0.0, id="this machine"),
        pytest.param(CostSettings(vcpu_second=0.001), False, 7.2, id="a price of one's own"),
        pytest.param(CostSettings(vcpu_second=0.0), True, 0.0081, id="memory alone"),
    ],
)
def test_a_price_is_that_of_vcpus_and_memory(
    costs: CostSettings, billed: bool, hour: float
) -> None:
    per_second = price(costs, vcpus=2, memory_mb=512, billed=billed)
    assert round(per_second * 3600, 4) == hour


@pytest.mark.parametrize(
    ("moment", "month"),
    [
        pytest.param("2026-11-30T23:59:59+00:00", "2026-11", id="its last second"),
        pytest.param("2026-12-01T00:00:00+00:00", "2026-12", id="its first"),
        pytest.param("2026-12-31T23:30:00-01:00", "2027-01", id="in UTC"),
    ],
)
def test_months_are_those_of_the_calendar_in_utc(moment: str, month: str) -> None:
    at = datetime.fromisoformat(moment).timestamp()
    found = month_of(at)
    assert found.name == month
    assert found.start <= at < found.end
    assert named_month(month) == found


def test_what_is_not_a_month_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^Not a month: 'soon'\."):
        named_month("soon")


def verdict(costs: CostSettings, owner: float, everyone: float) -> Verdict:
    spent = [Spent(sandbox_usd=usd / 2, model_usd=usd / 2) for usd in (owner, everyone)]
    return judge(costs, NOVEMBER, owner=spent[0], everyone=spent[1])


def test_within_its_budgets_work_goes_on() -> None:
    costs = CostSettings(owner_budget=5, owner_warning=4, budget=50, warning=40)
    assert verdict(costs, 3.99, 39.99) == Verdict()
    assert verdict(CostSettings(), 1e6, 1e6) == Verdict()


@pytest.mark.parametrize(
    ("costs", "name", "whose"),
    [
        pytest.param(CostSettings(owner_budget=5), "owner_budget", "your", id="owner"),
        pytest.param(CostSettings(budget=5), "budget", "the server's", id="total"),
        pytest.param(CostSettings(budget=0), "budget", "the server's", id="nothing"),
    ],
)
def test_a_spent_budget_refuses_new_work_and_says_what_to_do(
    costs: CostSettings, name: str, whose: str
) -> None:
    with pytest.raises(MonthlyBudgetError) as caught:
        verdict(costs, 5, 5).check()
    limit = getattr(costs, name)
    of = "$5.00" if limit else "$0.00"
    assert caught.value.message == (
        f"No new work: {whose} budget for 2026-11 is spent ($5.00 of {of}, the limit of "
        f"costs.{name}). Nothing was lost: sandboxes that run go on until they end or pause by "
        "themselves, and their files can still be read."
    )
    assert caught.value.hint == (
        f"Raise E2B_AGENT_MCP_COSTS_{name.upper()}, or wait until 2026-12-01 (UTC)."
    )


def test_a_warning_names_the_budget_that_it_comes_before() -> None:
    costs = CostSettings(owner_budget=5, owner_warning=4, warning=100)
    assert verdict(costs, 4.5, 90).warning == (
        "Your sandboxes and models have cost $4.50 in 2026-11, which costs.owner_warning warns of. "
        "At $5.00 no new work starts."
    )
    assert verdict(costs, 0.001, 100).warning == (
        "The server's sandboxes and models have cost $100.00 in 2026-11, which costs.warning "
        "warns of."
    )


@pytest.mark.parametrize(
    ("amount", "shown"),
    [(0, "$0.00"), (12.345, "$12.35"), (0.0021, "$0.0021"), (0.00002, "$0.00002"), (1e-9, "$0.00")],
)
def test_small_amounts_show_their_digits(amount: float, shown: str) -> None:
    assert dollars(amount) == shown


# The ledger


def test_a_running_sandbox_is_spent_up_to_now_without_a_word_from_its_server(
    ledger: Ledger,
) -> None:
    ledger.ran(interval(0, 600))
    assert [seconds(ledger, at) for at in (-5, 0, 1.5, 600, 9999)] == [0, 0, 1.5, 600, 600]
    assert dict(ledger.accounts(NOVEMBER, START + 10))[KEY].sandbox_usd == pytest.approx(5.0)


def test_an_interval_belongs_to_the_months_in_which_it_was_spent(ledger: Ledger) -> None:
    december = month_of(NOVEMBER.end)
    end = NOVEMBER.end - START
    ledger.ran(interval(end - 100, end + 50))
    now = NOVEMBER.end + 30
    assert ledger.accounts(NOVEMBER, now)[0].spent.sandbox_seconds == pytest.approx(100)
    assert ledger.accounts(december, now)[0].spent.sandbox_seconds == pytest.approx(30)


def test_a_pause_is_not_spent_and_a_resumption_is(ledger: Ledger) -> None:
    ledger.ran(interval(0, 600))
    ledger.ended("i1", START + 100)
    ledger.resumed("i1", START + 1000, START + 1600)
    assert seconds(ledger, 1050) == 150
    ledger.ended("i1", START + 1200)
    ledger.ended("i1", START + 1300)  # its kill: it was paused already
    assert seconds(ledger, 9999) == 300


def test_a_creation_counts_from_before_it_is_asked_for_until_it_is_known_to_have_failed(
    ledger: Ledger,
) -> None:
    ledger.expect(interval(0, 600, sandbox_id=""))
    assert seconds(ledger, 60) == 60
    ledger.failed(KEY, "c-1", certainly=True)
    assert seconds(ledger, 60) == 0


def test_a_creation_becomes_its_sandbox(ledger: Ledger) -> None:
    ledger.expect(interval(0, 600, sandbox_id=""))
    ledger.ran(interval(3, 603))
    ledger.seen(interval(2, 603), START + 10)  # as E2B tells it
    assert seconds(ledger, 9999) == 600


def test_an_answer_that_was_lost_is_settled_by_a_listing(ledger: Ledger) -> None:
    ledger.expect(interval(0, 600, sandbox_id=""))
    ledger.failed(KEY, "c-1", certainly=False)
    assert seconds(ledger, 60) == 60
    ledger.listed(SessionKey("ann", ""), ["c-1"], START - 100)
    assert seconds(ledger, 60) == 60
    ledger.listed(SessionKey("ann", "other"), [], START - 100)
    assert seconds(ledger, 60) == 60
    ledger.listed(KEY, [], START - 100)
    assert seconds(ledger, 60) == 0


def test_a_creation_under_way_in_another_process_is_left_alone(ledger: Ledger) -> None:
    ledger.expect(interval(0, 600, sandbox_id=""))
    ledger.listed(KEY, [], START - 1)
    assert seconds(ledger, 60) == 60
    ledger.listed(KEY, [], START + 1)  # asked so late that it would have been there
    assert seconds(ledger, 60) == 0


def test_a_sandbox_that_nobody_could_write_down_counts_from_e2bs_own_start(
    ledger: Ledger,
) -> None:
    ledger.seen(interval(-300, 300), START)
    assert seconds(ledger, 0) == 300


def test_a_sandbox_that_was_resumed_elsewhere_counts_from_now_on(ledger: Ledger) -> None:
    ledger.ran(interval(0, 100))
    ledger.seen(interval(0, 1100), START + 1000)
    assert seconds(ledger, 1010) == 110


def test_a_sandbox_that_e2b_has_no_longer_is_spent_until_it_was_looked_for(ledger: Ledger) -> None:
    ledger.ran(interval(0, 600))
    ledger.gone("i1", START - 1, START + 20)  # asked before it began: it was resumed since
    ledger.gone("i2", START + 10, START + 20)
    assert seconds(ledger, 9999) == 600
    ledger.gone("i1", START + 10, START + 20)
    ledger.gone("i1", START + 30, START + 40)
    assert seconds(ledger, 9999) == 20


def test_a_listing_of_an_owner_shows_what_has_ended(ledger: Ledger) -> None:
    ledger.ran(interval(0, 600))
    ledger.expect(interval(0, 600, sandbox_id=""))  # made by another process meanwhile
    ledger.rest_gone("bob", [], START + 10, START + 20)
    ledger.rest_gone("ann", ["i0", "i1"], START + 10, START + 20)
    ledger.rest_gone("ann", [], START - 1, START + 20)
    assert seconds(ledger, 9999) == 1200
    ledger.rest_gone("ann", ["i0"], START + 10, START + 20)
    assert seconds(ledger, 9999) == 620


def test_a_claimed_sandbox_is_paid_by_whoever_had_it_at_the_time(ledger: Ledger) -> None:
    ledger.ran(interval(0, 600))
    ledger.passed_on("i1", OTHER, START + 100)
    ledger.passed_on("i1", OTHER, START + 150)  # told twice
    ledger.extended("i1", START + 900)
    ledger.seen(interval(0, 900), START + 200)  # its metadata has the old session for ever
    ledger.ended("i1", START + 300)
    ledger.resumed("i1", START + 400, START + 500)
    assert (seconds(ledger, 9999), seconds(ledger, 9999, OTHER)) == (100, 300)


def test_models_are_counted_per_month_and_session(ledger: Ledger) -> None:
    ledger.used_model(KEY, 0.25, 1000, START)
    ledger.used_model(KEY, 0.5, 500, START + 5)
    ledger.used_model(KEY, 8, 1, NOVEMBER.end)
    ledger.ran(interval(0, 10))
    (account,) = ledger.accounts(NOVEMBER, START + 10)
    assert account.spent == Spent(sandbox_seconds=10, sandbox_usd=5, model_usd=0.75, tokens=1500)
    assert account.spent.usd == 5.75


def test_several_reports_are_kept_together_or_not_at_all(ledger: Ledger) -> None:
    def fail() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    ran = partial(ledger.ran, interval(0, 600))
    with pytest.raises(sqlite3.OperationalError):
        ledger.write([ran, fail])
    assert seconds(ledger, 60) == 0
    ledger.write([ran])
    assert seconds(ledger, 60) == 60


def test_the_file_is_private_and_old_intervals_leave_it(ledger: Ledger, tmp_path: Path) -> None:
    ledger.ran(interval(-500 * 86_400, -499 * 86_400))
    ledger.ran(interval(0, 600, sandbox_id="i2"))
    ledger.close()
    assert seconds(ledger, 60) == 60
    database = sqlite3.connect(tmp_path / FILE)
    assert database.execute("SELECT COUNT(*) FROM intervals").fetchone() == (1,)
    database.close()
    assert (tmp_path / FILE).stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_written_costs_only_memory(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    ledger = Ledger(lambda: blocked / "ledger")
    ledger.ran(interval(0, 600))
    assert seconds(ledger, 60) == 60


LOOK = """
import sys
from pathlib import Path
from e2b_agent_mcp.costs import Ledger, month_of

ledger = Ledger(lambda: Path(sys.argv[1]))
now = float(sys.argv[2])
print(sum(account.spent.sandbox_seconds for account in ledger.accounts(month_of(now), now)))
ledger.close()
"""


def test_two_ledgers_of_one_process_share_the_file_with_other_processes(
    ledger: Ledger, tmp_path: Path
) -> None:
    """What a second one does must not take the first one's locks, or others clean up under it."""

    def look_from_elsewhere() -> float:
        command = [sys.executable, "-c", LOOK, str(tmp_path), str(START + 60)]
        return float(subprocess.run(command, check=True, capture_output=True).stdout)

    ledger.ran(interval(0, 600))
    second = Ledger(lambda: tmp_path)
    assert seconds(second, 60) == 60
    assert look_from_elsewhere() == 60
    ledger.ran(interval(0, 600, sandbox_id="i2", creation="c-2"))
    assert look_from_elsewhere() == 120
    assert seconds(second, 60) == 120


REPORT_AND_DIE = """
import os, signal, sys
from functools import partial
from pathlib import Path
from e2b_agent_mcp.costs import Interval, Ledger
from e2b_agent_mcp.pool import SessionKey

ledger = Ledger(lambda: Path(sys.argv[1]))
start = float(sys.argv[2])
interval = Interval(
    key=SessionKey("ann", "analysis"), creation="c", sandbox_id=f"i{os.getpid()}",
    started_at=start, ends_at=start + 600, usd_per_second=0.5,
)
sys.stdin.read()
ledger.write([partial(ledger.ran, interval)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_servers_that_report_at_once_and_are_killed_lose_no_report(
    ledger: Ledger, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", REPORT_AND_DIE, str(tmp_path), str(START)]
    servers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
    for server in servers:
        assert server.stdin is not None
        server.stdin.close()
    assert [server.wait(60) for server in servers] == [-signal.SIGKILL] * 4
    assert seconds(ledger, 60) == 4 * 60


# What happens to one sandbox at some seconds: a creation with its life, an extension, an end, or
# the passing of time. Each report comes once or twice.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["run", "extend", "connect", "end", "seen", "wait"]),
        st.integers(1, 40),  # seconds until the next
        st.integers(1, 60),  # life
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=rounds(few=60, many=3000), deadline=None)
@given(steps=STEPS)
def test_whatever_happens_a_second_is_spent_when_the_sandbox_ran_in_it(
    steps: list[tuple[str, int, int, bool]],
) -> None:
    ledger = Ledger(lambda: Path("/dev/null/nowhere"))  # in memory
    now, deadline, ran, known = 0, 0, 0, False
    for what, pause, life, twice in [("run", 10, 40, False), *steps]:
        for _ in range(1 + twice):
            match what:
                case "run" if deadline <= now and known:
                    ledger.resumed("i1", START + now, START + now + life)
                case "run" if deadline <= now:
                    ledger.ran(interval(now, now + life))
                case "extend" if deadline > now:
                    ledger.extended("i1", START + now + life)
                case "connect" if deadline > now:
                    ledger.connected("i1", START + now + life)
                case "seen" if deadline > now:
                    ledger.seen(interval(-5, deadline), START + now)
                case "end":
                    ledger.ended("i1", START + now)
        if what == "run" and deadline <= now:
            deadline, known = now + life, True
        elif what == "extend" and deadline > now:
            deadline = now + life
        elif what == "connect" and deadline > now:
            deadline = max(deadline, now + life)
        elif what == "end":
            deadline = min(deadline, now)
        ran += max(0, min(deadline, now + pause) - now)
        now += pause
        assert seconds(ledger, now) == ran
    ledger.close()
