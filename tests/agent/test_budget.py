"""What may still be spent."""

import math

import pytest

from e2b_agent_mcp.agent.budget import Budget, Price, add
from e2b_agent_mcp.agent.events import Usage
from e2b_agent_mcp.settings import AgentSettings


def test_the_callers_limits_replace_the_settings() -> None:
    settings = AgentSettings(max_steps=5, max_tokens=100, max_cost_usd=0.5, timeout=60)
    assert Budget.of(settings, max_steps=2, timeout=10) == Budget(
        max_steps=2, max_tokens=100, max_cost_usd=0.5, timeout=10, sandbox_seconds=1200
    )


def test_zero_in_the_settings_means_no_limit() -> None:
    settings = AgentSettings(max_tokens=0, max_cost_usd=0, timeout=0, sandbox_seconds=0)
    assert Budget.of(settings) == Budget(max_steps=20)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        pytest.param(Budget(max_tokens=150), "150 tokens were used", id="tokens"),
        pytest.param(Budget(max_cost_usd=0.01), "$0.0100 were spent", id="dollars"),
        pytest.param(Budget(timeout=30), "30 s have passed", id="time"),
        pytest.param(Budget(sandbox_seconds=20), "code ran for 20 s", id="sandbox"),
    ],
)
def test_a_limit_that_is_reached_is_said(budget: Budget, said: str) -> None:
    spent = Usage(
        input_tokens=100, output_tokens=50, cost_usd=0.01, sandbox_seconds=20, duration=30
    )
    assert budget.exceeded(spent) == said
    assert Budget().exceeded(spent) == ""


def test_steps_leave_a_share_for_the_last_answer() -> None:
    budget = Budget(max_tokens=1000, max_cost_usd=1.0, timeout=100, sandbox_seconds=10)
    spent = Usage(input_tokens=900)
    assert budget.for_steps().exceeded(spent)
    assert not budget.for_last_answer().exceeded(spent)
    assert not budget.for_last_answer().exceeded(Usage(sandbox_seconds=10))


def test_a_reply_is_as_long_as_the_smaller_of_two_limits_allows() -> None:
    price = Price(input=1e-6, output=4e-6, cached=1e-7)
    spent = Usage(input_tokens=100, cost_usd=0.001)
    budget = Budget(max_tokens=1000, max_cost_usd=0.002)
    assert budget.reply_tokens(spent, prompt=200, price=None) == 700
    assert budget.reply_tokens(spent, prompt=200, price=price) == pytest.approx(200)
    assert Budget().reply_tokens(spent, prompt=200, price=price) == math.inf


def test_a_cost_that_is_unknown_stays_unknown() -> None:
    assert add(Usage(cost_usd=0.1), Usage(cost_usd=None)).cost_usd is None
    assert add(Usage(cost_usd=0.1), Usage(cost_usd=0.2)).cost_usd == pytest.approx(0.3)
