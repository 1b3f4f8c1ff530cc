"""Sets the resource limits of the guest and, by inheritance, of all that it starts.

Hard limits: nothing in the box can raise them again. They count per process (the number of
processes: per box), so user code that hits one takes nothing from the guest itself.
"""

import json
import resource
from contextlib import suppress
from pathlib import Path

FIRST_TO_GO = 300  # of 1000: a third of the memory limit worse than it is


def apply_limits(limits_json: str) -> None:
    """Takes `{"NOFILE": 4096, …}`; a host's own lower limit stays."""
    limits: dict[str, int] = json.loads(limits_json)
    for name, value in limits.items():
        number: int = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(number)
        bound = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(number, (bound, bound))


def let_go_first(pid: int) -> None:
    """When memory runs out, the kernel is to kill this process before it kills the guest."""
    with suppress(OSError):  # it has ended
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(FIRST_TO_GO))
