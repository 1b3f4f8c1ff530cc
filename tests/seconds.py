"""What a ledger must say of sandboxes that a test watches: bounds of the seconds spent."""

import json
import time
from collections import Counter

from faults import Exchange


class Seconds:
    """For how long each session's sandboxes ran at least, and may have been counted at most.

    What ran at both ends of a step ran during the step. Besides, servers may take for running: what
    they resumed or made in the step, and what has stopped, until one of them has seen the list of
    all. That a server was about to create when it crashed may be taken for a sandbox for good.
    """

    def __init__(self) -> None:
        self.least = Counter[str]()
        self.most = Counter[str]()
        self._looked = time.monotonic()
        self._running: set[str] = set()  # sandboxes, when we looked last
        self._names: dict[str, str] = {}  # of the sessions of all sandboxes
        self._stopped: set[str] = set()  # sandboxes; no server need know it
        self._pending = Counter[str]()  # creations that no server has seen in a list
        self._lost = Counter[str]()  # those of crashed servers

    def count(
        self,
        names: dict[str, str],
        running: set[str],
        exchanges: list[Exchange],
        *,
        cut: bool,
        owner: str,
    ) -> None:
        since, self._looked = self._looked, time.monotonic()
        took = self._looked - since
        self._names |= names
        for sandbox_id in self._running & running:
            self.least[self._names[sandbox_id]] += took
        creations = Counter(_session_of(item) for item in exchanges if item.route == "create")
        resumed = {item.path.split("/")[-2] for item in exchanges if item.route == "connect"}
        may_count = self._running | running | self._stopped | (resumed & self._names.keys())
        for sandbox_id in may_count:
            self.most[self._names[sandbox_id]] += took
        for name, number in (creations + self._pending + self._lost).items():
            self.most[name] += took * number
        if cut:
            self._lost += creations
        else:
            self._pending += creations
            if any(_shows_all(item, owner) for item in exchanges):
                self._stopped.clear()
                self._pending = creations
        self._stopped |= may_count - running
        self._running = running


def _session_of(creation: Exchange) -> str:
    return str(json.loads(creation.body)["metadata"].get("session", ""))


def _shows_all(exchange: Exchange, owner: str) -> bool:
    return (
        exchange.route == "list"
        and owner in exchange.request.target.decode()
        and exchange.fault in ("", "delay")
        and (exchange.status, exchange.outcome) == (200, "answered")
    )
