"""Prices and monthly budgets. Pure: no I/O, the time is passed in.

E2B bills the vCPUs and the memory that a sandbox has, for every second that it runs; a paused
sandbox costs nothing. A month is a calendar month in UTC. A budget counts sandboxes and language
models together, because a bill does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Self

from e2b_agent_mcp.errors import InvalidArgumentError, MonthlyBudgetError
from e2b_agent_mcp.settings import CostSettings

# US dollars, https://e2b.dev/pricing
E2B_VCPU_SECOND = 0.000014
E2B_GIB_SECOND = 0.0000045

# Of E2B's default template: assumed until E2B has said what a sandbox has.
USUAL_VCPUS = 2
USUAL_MEMORY_MB = 512


def price(costs: CostSettings, *, vcpus: int, memory_mb: int, billed: bool) -> float:
    """US dollars per second of a running sandbox; `billed` says whether E2B's prices apply where
    the settings name none."""
    vcpu = _either(costs.vcpu_second, E2B_VCPU_SECOND if billed else 0.0)
    gib = _either(costs.gib_second, E2B_GIB_SECOND if billed else 0.0)
    return vcpus * vcpu + memory_mb / 1024 * gib


def _either(given: float | None, default: float) -> float:
    return default if given is None else given


class Month(NamedTuple):
    """`start` and `end` in seconds since the epoch; `end` is the next one's start."""

    name: str  # 2026-11
    start: float
    end: float


def month_of(now: float) -> Month:
    moment = datetime.fromtimestamp(now, UTC)
    start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    end = datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)
    return Month(f"{start:%Y-%m}", start.timestamp(), end.timestamp())


def named_month(name: str) -> Month:
    try:
        return month_of(datetime.strptime(name, "%Y-%m").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise InvalidArgumentError(f"Not a month: {name[:40]!r}. Write it as 2026-11.") from None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """US dollars; models whose price nobody knows count with nothing."""

    sandbox_seconds: float = 0.0
    sandbox_usd: float = 0.0
    model_usd: float = 0.0
    tokens: int = 0  # in and out

    @property
    def usd(self) -> float:
        return self.sandbox_usd + self.model_usd

    def __add__(self, other: Self) -> "Spent":
        return Spent(
            sandbox_seconds=self.sandbox_seconds + other.sandbox_seconds,
            sandbox_usd=self.sandbox_usd + other.sandbox_usd,
            model_usd=self.model_usd + other.model_usd,
            tokens=self.tokens + other.tokens,
        )


class Verdict(NamedTuple):
    """Whether new work may start ("" for yes), and what its caller is to be told."""

    refusal: str = ""
    hint: str = ""
    warning: str = ""

    def check(self) -> None:
        """Raises `MonthlyBudgetError` when new work may not start."""
        if self.refusal:
            raise MonthlyBudgetError(self.refusal, hint=self.hint)


@dataclass(frozen=True, kw_only=True)
class Spending:
    """What an owner has spent in a month, per session and in all; with an empty name, for
    sandboxes kept warm until a session claimed them."""

    month: str  # 2026-11
    sessions: Mapping[str, Spent]
    total: Spent
    verdict: Verdict  # of the current month


def judge(costs: CostSettings, month: Month, *, owner: Spent, everyone: Spent) -> Verdict:
    """`owner` is what the owner has spent this month, `everyone` what all owners have."""
    whose = (("owner_budget", "your", owner), ("budget", "the server's", everyone))
    for name, words, spent in whose:
        limit = getattr(costs, name)
        if limit is not None and spent.usd >= limit:
            return _refusal(name, words, limit, spent, month)
    for name, words, spent in whose:
        limit = getattr(costs, name.replace("budget", "warning"))
        if limit is not None and spent.usd >= limit:
            return Verdict(warning=_warning(costs, name, words, spent, month))
    return Verdict()


def _refusal(name: str, whose: str, limit: float, spent: Spent, month: Month) -> Verdict:
    next_month = datetime.fromtimestamp(month.end, UTC)
    return Verdict(
        refusal=f"No new work: {whose} budget for {month.name} is spent ({dollars(spent.usd)} of "
        f"{dollars(limit)}, the limit of costs.{name}). Nothing was lost: sandboxes that run go "
        "on until they end or pause by themselves, and their files can still be read.",
        hint=f"Raise E2B_AGENT_MCP_COSTS_{name.upper()}, or wait until "
        f"{next_month:%Y-%m-%d} (UTC).",
    )


def _warning(costs: CostSettings, name: str, whose: str, spent: Spent, month: Month) -> str:
    limit = getattr(costs, name)
    then = f" At {dollars(limit)} no new work starts." if limit is not None else ""
    return (
        f"{whose[0].upper()}{whose[1:]} sandboxes and models have cost {dollars(spent.usd)} in "
        f"{month.name}, which costs.{name.replace('budget', 'warning')} warns of.{then}"
    )


def dollars(amount: float) -> str:
    """With cents, or as many digits as a small amount needs."""
    if amount >= 0.1 or round(amount, 6) == 0:
        return f"${amount:.2f}"
    return f"${amount:.6f}".rstrip("0")
