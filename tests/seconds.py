"""What a ledger must say of sandboxes that a test watches: bounds of the seconds spent."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from e2b_agent_mcp.pool import Candidate, creation_of
from faults import Exchange


class Creation(NamedTuple):
    session: str
    creation: str


@dataclass
class Phantom:
    """A creation that may be taken for a sandbox, until a server has looked."""

    asked_at: float
    lost: bool  # its server crashed: it may still come, for as long as a creation may take
    seconds: float = 0.0


class Seconds:
    """For how long each session's sandboxes ran at least, and may have been counted at most.

    What ran at both ends of a step ran during the step. Besides, servers may take for running: what
    they resumed or made in the step, and what has stopped, until E2B has told one of them; and what
    they asked for, until they list what there is.
    """

    def __init__(self, owner: str, create_timeout: float) -> None:
        self.least = Counter[str]()
        self._owner = owner
        self._create_timeout = create_timeout
        self._most = Counter[str]()
        self._looked = time.monotonic()
        self._running: set[str] = set()  # sandboxes, when we looked last
        self._names: dict[str, str] = {}  # of the sessions of all sandboxes
        self._stopped: set[str] = set()  # sandboxes; no server need know it
        self._phantoms: dict[Creation, Phantom] = {}

    @property
    def most(self) -> Counter[str]:
        most = Counter(self._most)
        for creation, phantom in self._phantoms.items():
            most[creation.session] += phantom.seconds
        return most

    def count(
        self, every: list[Candidate], exchanges: list[Exchange], *, cut: bool, warm: bool
    ) -> None:
        """After a step, in which a server or a caller may have been `cut` off."""
        since, self._looked = self._looked, time.monotonic()
        took = self._looked - since
        running = {item.sandbox_id for item in every if not item.paused}
        self._names |= {item.sandbox_id: item.session for item in every}
        for sandbox_id in self._running & running:
            self.least[self._names[sandbox_id]] += took
        resumed = {_sandbox_of(item) for item in exchanges if item.route == "connect"}
        may_count = self._running | running | self._stopped | (resumed & self._names.keys())
        for sandbox_id in may_count:
            self._most[self._names[sandbox_id]] += took
        told = [] if cut else exchanges
        all_shown = any(_shows_all(item, self._owner) for item in told)
        known = {*_told_to_have_stopped(told)}
        self._stopped = (set() if all_shown else self._stopped) | may_count
        self._stopped -= running | known
        self._running = running

        asked = {_creation_of(item) for item in exchanges if item.route == "create"}
        if cut and warm:  # which a server that crashed may have been about to ask for
            asked.add(Creation("", f"unsent at {since}"))
        for creation in asked:
            self._most[creation.session] += took
        self._haunt(took, since, all_shown)
        new = asked - self._phantoms.keys()
        self._phantoms |= {creation: Phantom(since, lost=cut) for creation in new}
        for item in every:
            name = "" if item.is_warm else item.session
            self._phantoms.pop(Creation(name, creation_of(item.metadata)), None)

    def _haunt(self, took: float, since: float, all_shown: bool) -> None:
        for creation, phantom in [*self._phantoms.items()]:
            phantom.seconds += took
            may_come = phantom.lost and since < phantom.asked_at + self._create_timeout + took
            if all_shown and not may_come:
                del self._phantoms[creation]


def _told_to_have_stopped(exchanges: Iterable[Exchange]) -> Iterator[str]:
    """The sandboxes that a server ended or paused, or asked for in vain, and knows so."""
    for item in exchanges:
        ended = item.route in ("kill", "pause") and item.status in (204, 404, 409)
        missed = item.route in ("inspect", "extend", "connect") and item.status == 404
        if _heard(item) and (ended or missed):
            yield _sandbox_of(item)


def _heard(exchange: Exchange) -> bool:
    return exchange.fault in ("", "delay") and exchange.outcome == "answered"


def _sandbox_of(exchange: Exchange) -> str:
    return exchange.path.partition("/sandboxes/")[2].partition("/")[0]


def _creation_of(exchange: Exchange) -> Creation:
    metadata = json.loads(exchange.body)["metadata"]
    return Creation(metadata.get("session", ""), creation_of(metadata))


def _shows_all(exchange: Exchange, owner: str) -> bool:
    asks_for_all = exchange.route == "list" and owner in exchange.request.target.decode()
    return asks_for_all and exchange.status == 200 and _heard(exchange)
