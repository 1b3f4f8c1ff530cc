"""Sets the resource limits of the guest and, by inheritance, of all that it starts.

Hard limits: nothing in the box can raise them again. They count per process (the number of
processes: per box), so user code that hits one takes nothing from the guest itself.
"""

import json
import resource


def apply_limits(limits_json: str) -> None:
    """Takes `{"NOFILE": 4096, …}`; a host's own lower limit stays."""
    limits: dict[str, int] = json.loads(limits_json)
    for name, value in limits.items():
        number: int = getattr(resource, f"RLIMIT_{name}")
        _, most = resource.getrlimit(number)
        bound = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(number, (bound, bound))
