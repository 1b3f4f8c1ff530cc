"""How long E2B lets a sandbox run.

Every plan has a longest continuous run (an hour on E2B's free plan). It is learnt from the refusal
of a longer life, or from an extension that came out shorter than asked; from then on nothing longer
is asked for. A pause starts the run anew, so a session that is used for longer is paused and
resumed between two of its calls, in good time before its run would end.
"""

import math
from dataclasses import dataclass

PLANS = (86_400.0, 3600.0, 300.0)  # seconds; tried in turn where a refusal names no number
UNCHECKED_RUN = 2400.0  # seconds; no plan is known whose longest run is shorter
SLACK = 15.0  # seconds by which two clocks and a slow answer may differ


@dataclass
class Terms:
    """`wanted` is `sandboxes.idle_after`."""

    wanted: float
    longest: float = math.inf  # continuous run, in seconds

    @property
    def life(self) -> int:
        """What is asked of E2B with each use, in its whole seconds."""
        return max(1, math.ceil(min(self.wanted, self.longest)))

    def learn(self, longest: float | None) -> bool:
        """Takes in a refusal of `life`; False when it teaches nothing, so asking again is vain."""
        if longest is None:
            longest = next((plan for plan in PLANS if plan < self.life), None)
        if longest is None or not 1 <= longest < self.life:
            return False
        self.longest = longest
        return True

    def observe(self, *, ran: float, left: float) -> None:
        """After an extension: how long the sandbox ran already, and what E2B says is left."""
        if left + SLACK < self.life:
            self.longest = min(self.longest, ran + left)

    def extended_at(self, started_at: float, end_at: float) -> float:
        """When a run that ends then was extended last; inf where its plan's longest run may have
        cut the extension, so that its end tells nothing."""
        longest = end_at - started_at
        cuts = (self.longest, *(plan for plan in PLANS if plan > UNCHECKED_RUN))
        if any(abs(longest - cut) < SLACK for cut in cuts):
            return math.inf
        return end_at - self.life

    @property
    def margin(self) -> float:
        """A run with less than this left is renewed: all of a life, unless a run is hardly more."""
        return min(self.life, self.longest / 2)
