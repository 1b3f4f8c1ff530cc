"""What sandboxes and models cost, and what may be spent.

`budget` decides (pure: prices, months, budgets), `ledger` keeps (sqlite, blocking).
"""

from e2b_agent_mcp.costs.budget import (
    Month,
    Spending,
    Spent,
    Verdict,
    dollars,
    judge,
    month_of,
    named_month,
    price,
)
from e2b_agent_mcp.costs.ledger import Account, Interval, Ledger

__all__ = [
    "Account",
    "Interval",
    "Ledger",
    "Month",
    "Spending",
    "Spent",
    "Verdict",
    "dollars",
    "judge",
    "month_of",
    "named_month",
    "price",
]
