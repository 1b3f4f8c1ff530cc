"""What a sandbox uses of its CPUs, memory and disk, and what to tell after a run about it. Pure.

E2B samples every 5 s, and asking costs a request. So a run is followed by a question only when the
answer may matter: it took long enough to fill something, or failed as code does that ran out of
memory or disk. A short run that went well costs nothing.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from e2b import SandboxMetrics

LONG_RUN = 5.0  # seconds
NEAR = 0.9  # of a limit

KILLED = 137  # a shell's exit code for a program that was killed
_MEMORY_LIMIT = ("memory limit",)
_MEMORY_WORDS = (*_MEMORY_LIMIT, "MemoryError", "Cannot allocate memory", "out of memory")
_DISK_WORDS = ("No space left on device", "Disk quota exceeded", "disk limit")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """One sandbox as it was sampled last; bytes. `cpu_percent` as E2B gives it."""

    vcpus: int
    cpu_percent: float
    memory_used: int
    memory_peak: int  # in the time that was asked for
    memory_total: int
    disk_used: int
    disk_total: int


def usage_of(samples: "Sequence[SandboxMetrics]") -> Usage | None:
    """From samples in the order of their time; None without any."""
    if not samples:
        return None
    last = samples[-1]
    return Usage(
        vcpus=last.cpu_count,
        cpu_percent=last.cpu_used_pct,
        memory_used=last.mem_used,
        memory_peak=max(sample.mem_used for sample in samples),
        memory_total=last.mem_total,
        disk_used=last.disk_used,
        disk_total=last.disk_total,
    )


def _is_near(used: int, total: int) -> bool:
    return total > 0 and used >= NEAR * total


class Outcome(NamedTuple):
    """How a run ended, as far as its use of the sandbox goes."""

    duration: float  # seconds
    failed: bool = False
    words: str = ""  # of its error
    died: bool = False  # the interpreter, or the program, was killed

    @property
    def lacked_memory(self) -> bool:
        # Of an interpreter that was killed, only a limit is a reason: the rest is a guess.
        words = _MEMORY_LIMIT if self.died else _MEMORY_WORDS
        return self.failed and any(word in self.words for word in words)

    @property
    def lacked_disk(self) -> bool:
        return self.failed and any(word in self.words for word in _DISK_WORDS)

    @property
    def raises_a_question(self) -> bool:
        return self.duration >= LONG_RUN or self.died or self.lacked_memory or self.lacked_disk


def explain(outcome: Outcome, usage: Usage | None) -> str:
    """What the caller should know of memory and disk after a run; mostly ""."""
    return " ".join(filter(None, [_memory(outcome, usage), _disk(outcome, usage)]))


def _memory(outcome: Outcome, usage: Usage | None) -> str:
    has = "" if usage is None else f": the sandbox has {_gib(usage.memory_total)}"
    if outcome.lacked_memory:
        return f"The code ran out of memory{has}. {_LESS_MEMORY}"
    if usage is None:
        return ""
    if outcome.died and _is_near(usage.memory_peak, usage.memory_total):
        return f"It was probably killed for want of memory{has}. {_LESS_MEMORY}"
    if _is_near(usage.memory_used, usage.memory_total):
        return (
            f"The sandbox's memory is nearly full: {_gib(usage.memory_used)} of "
            f"{_gib(usage.memory_total)}. {_LESS_MEMORY}"
        )
    return ""


_LESS_MEMORY = (
    "Work on less at a time and delete variables that are not needed; its operator can give it "
    "more (engine.memory_mb, or another e2b.template)."
)


def _disk(outcome: Outcome, usage: Usage | None) -> str:
    is_full = usage is not None and _is_near(usage.disk_used, usage.disk_total)
    if not is_full and not outcome.lacked_disk:
        return ""
    used = "" if usage is None else f": {_gib(usage.disk_used)} of {_gib(usage.disk_total)}"
    return f"The sandbox's disk is {'' if outcome.lacked_disk else 'nearly '}full{used}. " + (
        "Delete files that are not needed."
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
