"""Why bubblewrap could not make a box on this host, and what its owner can do.

bubblewrap only says which step was refused; which rule of the host refused it is read from
`HostFacts`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ELSE = "Or set E2B_API_KEY to use E2B's cloud."


@dataclass(frozen=True, kw_only=True)
class HostFacts:
    """Switches of the kernel; None where this kernel has no such switch."""

    apparmor_restricts: bool | None = None
    unprivileged_userns: bool | None = None
    max_user_namespaces: int | None = None
    in_container: bool = False


def read_host_facts(root: Path = Path("/")) -> HostFacts:
    kernel = root / "proc/sys"
    restrict = _number(kernel / "kernel/apparmor_restrict_unprivileged_userns")
    clone = _number(kernel / "kernel/unprivileged_userns_clone")
    containers = (root / ".dockerenv", root / "run/.containerenv")
    return HostFacts(
        apparmor_restricts=None if restrict is None else restrict > 0,
        unprivileged_userns=None if clone is None else clone > 0,
        max_user_namespaces=_number(kernel / "user/max_user_namespaces"),
        in_container=any(path.exists() for path in containers),
    )


def explain(said: str, facts: HostFacts, bubblewrap: Path) -> str:
    """`said` is bubblewrap's own message."""
    cause, remedy = _cause(said, facts, bubblewrap)
    return f"No sandbox can be made here: {cause} {remedy} {ELSE} (bubblewrap: {said.strip()})"


def _cause(said: str, facts: HostFacts, bubblewrap: Path) -> tuple[str, str]:
    if facts.max_user_namespaces == 0:
        return (
            "user namespaces are switched off.",
            "As root: sysctl user.max_user_namespaces=10000.",
        )
    if facts.unprivileged_userns is False:
        return (
            "user namespaces are reserved for root.",
            "As root: sysctl kernel.unprivileged_userns_clone=1.",
        )
    if facts.apparmor_restricts:
        return (
            "AppArmor reserves user namespaces for programs with a profile.",
            f"Give {bubblewrap} a profile with `userns,` (Ubuntu: install the packages bubblewrap "
            "and apparmor-profiles, then load bwrap-userns-restrict), or as root: "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0.",
        )
    if "proc" in said and "mount" in said.lower():
        return (
            "this container hides parts of /proc, so no new /proc can be mounted.",
            "Start it with --security-opt systempaths=unconfined.",
        )
    if facts.in_container or "ermission" in said or "not permitted" in said:
        return (
            "making namespaces is refused, as containers do by default.",
            "Start the container with --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined.",
        )
    return ("bubblewrap failed.", f"Try `{bubblewrap} --unshare-all --ro-bind / / true`.")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
