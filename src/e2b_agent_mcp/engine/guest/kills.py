"""Why a process of the sandbox was killed from outside: read from files that the host counts in."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

_COUNTER = re.compile(rb"^(\w+) (\d+)$", re.MULTILINE)
_LONGEST = 4096  # bytes


@dataclass(frozen=True)
class Kills:
    """`words` by the name of a counter; without descriptors nothing is ever known."""

    descriptors: tuple[int, ...] = ()
    words: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Self:
        found = json.loads(text)
        return cls(tuple(found["descriptors"]), found["words"])

    def counts(self) -> dict[str, int]:
        found: dict[str, int] = dict.fromkeys(self.words, 0)
        for fd in self.descriptors:
            with suppress(OSError):
                for name, count in _COUNTER.findall(os.pread(fd, _LONGEST, 0)):
                    if name.decode() in found:
                        found[name.decode()] += int(count)
        return found

    def since(self, before: Mapping[str, int]) -> str:
        """The limit for which something was killed since `before`, "" if there is none."""
        now = self.counts()
        return next((self.words[name] for name in now if now[name] > before.get(name, 0)), "")
