"""How much a run may spend, and whether the next call is still within it. Pure.

The rule: a limit is checked before something is spent, never noticed afterwards. Steps of the agent
stop at a share of the tokens, dollars and seconds; the rest is kept for one last call that turns
what was found into an answer.
"""

import math
from dataclasses import dataclass, replace

from e2b_agent_mcp.agent.events import Usage
from e2b_agent_mcp.settings import AgentSettings

STEPS_SHARE = 0.85  # of tokens, dollars and seconds; the rest is for the last answer
LEAST_REPLY = 64  # tokens; a call that could bring no more is not made


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of one run; infinity means none."""

    max_steps: int = 20
    max_tokens: float = math.inf  # in and out, of all calls together
    max_cost_usd: float = math.inf
    timeout: float = math.inf  # seconds, of the whole run
    sandbox_seconds: float = math.inf  # during which code runs

    @classmethod
    def of(
        cls,
        settings: AgentSettings,
        *,
        max_steps: int | None = None,
        max_tokens: int | None = None,
        max_cost_usd: float | None = None,
        timeout: float | None = None,
    ) -> "Budget":
        """The settings' limits, each replaced by the caller's where one is given; 0 in the
        settings means none."""
        return cls(
            max_steps=max_steps or settings.max_steps,
            max_tokens=max_tokens or settings.max_tokens or math.inf,
            max_cost_usd=max_cost_usd or settings.max_cost_usd or math.inf,
            timeout=timeout or settings.timeout or math.inf,
            sandbox_seconds=settings.sandbox_seconds or math.inf,
        )

    def for_steps(self) -> "Budget":
        """The part that steps may use."""
        return replace(
            self,
            max_tokens=self.max_tokens * STEPS_SHARE,
            max_cost_usd=self.max_cost_usd * STEPS_SHARE,
            timeout=self.timeout * STEPS_SHARE,
        )

    def for_last_answer(self) -> "Budget":
        """It may use the rest, and runs no code."""
        return replace(self, sandbox_seconds=math.inf)

    def exceeded(self, spent: Usage) -> str:
        """Which limit is reached, in words; "" while none is. Steps are counted elsewhere."""
        if spent.input_tokens + spent.output_tokens >= self.max_tokens:
            return f"{spent.input_tokens + spent.output_tokens:,} tokens were used"
        if (spent.cost_usd or 0.0) >= self.max_cost_usd:
            return f"${spent.cost_usd:.4f} were spent"
        if spent.duration >= self.timeout:
            return f"{spent.duration:.0f} s have passed"
        if spent.sandbox_seconds >= self.sandbox_seconds:
            return f"code ran for {spent.sandbox_seconds:.0f} s"
        return ""

    def reply_tokens(self, spent: Usage, *, prompt: int, price: "Price | None") -> float:
        """The longest reply to a prompt of so many tokens that stays within; infinity if any."""
        longest = self.max_tokens - spent.input_tokens - spent.output_tokens - prompt
        if price is not None and price.output > 0:
            left = self.max_cost_usd - (spent.cost_usd or 0.0) - prompt * price.input
            longest = min(longest, left / price.output)
        return longest


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars per token."""

    input: float
    output: float
    cached: float  # of the input that the service had seen before

    def of(self, given: int, taken: int, *, cached: int) -> float:
        return (given - cached) * self.input + cached * self.cached + taken * self.output


def add(one: Usage, other: Usage) -> Usage:
    """Both together; a cost that is unknown stays unknown."""
    known = one.cost_usd is not None and other.cost_usd is not None
    return Usage(
        llm_calls=one.llm_calls + other.llm_calls,
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cost_usd=(one.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None,
        sandbox_seconds=one.sandbox_seconds + other.sandbox_seconds,
        duration=one.duration + other.duration,
    )
