"""Where a sandbox may connect: decided from the name, the port and the resolved addresses.

What is allowed explicitly wins over what is denied, as in E2B. No rule opens this machine's own
addresses, link-local ones (cloud metadata) or a private network that is not named by address:
a public name that resolves to a private address stays closed. The one exception are the
endpoints of the package index, which the host's owner has configured.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SMTP = 25  # sending spam is what an open port 25 is used for

# Top-level domains that no public name has.
INTERNAL_DOMAINS = frozenset(
    {
        "corp",
        "home",
        "internal",
        "intranet",
        "invalid",
        "lan",
        "local",
        "localdomain",
        "localhost",
        "private",
        "test",
    }
)

NAT64 = IPv6Network("64:ff9b::/96")
# Not public either: `ipaddress` knows some of them in later versions of Python only.
SPECIAL: tuple[Network, ...] = (
    IPv4Network("168.63.129.16/32"),  # a cloud's metadata service
    IPv4Network("192.0.0.0/24"),  # protocols
    IPv4Network("192.88.99.0/24"),  # relays of 6to4
    IPv6Network("::/96"),  # IPv4-compatible
    IPv6Network("64:ff9b:1::/48"),  # local NAT64
    IPv6Network("3fff::/20"),  # documentation
    IPv6Network("5f00::/16"),  # segment routing
)


@dataclass(frozen=True)
class Allowed:
    """Connect to one of these and to nothing else: the name is not resolved again."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class Denied:
    """`reason` says what is wrong, `remedy` which setting changes it."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class NetworkPolicy:
    """`allow_out` and `deny_out`: names, `*.names`, addresses or networks (10.0.0.0/8).

    `internet` is None when nothing was said of it, which opens the internet like True.
    """

    internet: bool | None = None
    allow_out: tuple[str, ...] = ()
    deny_out: tuple[str, ...] = ()

    @property
    def is_moot(self) -> bool:
        """Whether it allows names while nothing else is denied. Who writes that means a list of
        all that is allowed, and would have none."""
        everything = self._is_open and "*" not in self._deny.names
        return everything and bool(self._allow.names - {"*"})

    def decide(
        self,
        host: str,
        port: int,
        addresses: Sequence[Address],
        *,
        own: Collection[Address] = (),
        endpoints: Collection[tuple[str, int]] = (),
        ceiling: NetworkPolicy | None = None,
    ) -> Allowed | Denied:
        """`own` are those of the addresses that belong to this machine. Nothing but `endpoints`
        is reached that `ceiling`, the policy of the engine's owner, does not permit too."""
        host = host.lower().rstrip(".")
        if port == SMTP:
            return Denied("port 25 is closed", "Mail can be sent over ports 465 or 587.")
        permitted = [a for a in addresses if self._permits(host, a)]
        if not permitted:
            return self._refusal(host)
        if (host, port) in endpoints:
            return Allowed(tuple(permitted))
        ceiling = ceiling or NetworkPolicy()
        permitted = [a for a in permitted if ceiling._permits(host, a)]
        if not permitted:
            return ceiling._refusal_to_all(host)
        reachable = [
            a for a in permitted if a not in own and (self._may_reach(a) or ceiling._may_reach(a))
        ]
        if not reachable:
            return Denied(
                f"{host} is at {permitted[0]}, which is not a public address",
                "A private address can be allowed by naming it in network.allow_out.",
            )
        return Allowed(tuple(reachable))

    def decide_unresolved(
        self,
        host: str,
        port: int,
        *,
        endpoints: Collection[tuple[str, int]] = (),
        ceiling: NetworkPolicy | None = None,
    ) -> Denied | None:
        """About a name that this machine cannot resolve, and a proxy of the host's perhaps can."""
        host = host.lower().rstrip(".")
        if port == SMTP:
            return Denied("port 25 is closed", "Mail can be sent over ports 465 or 587.")
        if not self._permits(host, None):
            return self._refusal(host)
        if (host, port) in endpoints:
            return None
        ceiling = ceiling or NetworkPolicy()
        if not ceiling._permits(host, None):
            return ceiling._refusal_to_all(host)
        if "." not in host or host.rpartition(".")[2] in INTERNAL_DOMAINS:
            return Denied(f"no address is known for {host}", "It is not a public name.")
        return None

    def _permits(self, host: str, address: Address | None) -> bool:
        if self._allow.matches(host, address):
            return True
        return self._is_open and not self._deny.matches(host, address)

    @property
    def _is_open(self) -> bool:
        return self.internet is not False

    def _may_reach(self, address: Address) -> bool:
        plain = unwrap(address)
        return is_public(address) or (is_intranet(plain) and self._allow.names_private(plain))

    def _refusal_to_all(self, host: str) -> Denied:
        """This policy being the ceiling."""
        return Denied(
            f"{host} is not open to sandboxes of this engine",
            "Its owner can change that: see engine.network and engine.network_allow.",
        )

    def _refusal(self, host: str) -> Denied:
        if self._is_open:
            return Denied(f"{host} is denied", "network.deny_out of the sandbox names it.")
        if self.allow_out:
            return Denied(
                f"{host} is not on the allow list", "Add it to network.allow_out of the sandbox."
            )
        return Denied(
            "this sandbox has no internet access",
            "Create it with allow_internet_access, or name the host in network.allow_out.",
        )

    @cached_property
    def _allow(self) -> _Rules:
        return _Rules.parse(self.allow_out)

    @cached_property
    def _deny(self) -> _Rules:
        return _Rules.parse(self.deny_out)


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_RULE_NAME = re.compile(rf"\*|(?:\*\.)?{_LABEL}(?:\.{_LABEL})*\.?")


def is_rule(text: str) -> bool:
    """Whether it names something: a name, `*.name`, an address or a network."""
    try:
        ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return len(text) < 256 and _RULE_NAME.fullmatch(text.lower()) is not None
    return True


@dataclass(frozen=True)
class _Rules:
    names: frozenset[str]
    networks: tuple[Network, ...]

    @classmethod
    def parse(cls, rules: Sequence[str]) -> _Rules:
        names, networks = set(), []
        for rule in rules:
            try:
                network = ipaddress.ip_network(rule.strip("[]"), strict=False)
            except ValueError:
                names.add(rule.lower().rstrip("."))
                continue
            if network.prefixlen == 0:  # E2B's "all traffic", of either IP version
                names.add("*")
            else:
                networks.append(network)
        return cls(frozenset(names), tuple(networks))

    def matches(self, host: str, address: Address | None) -> bool:
        labels = host.split(".")
        wildcards = {"*." + ".".join(labels[i:]) for i in range(1, len(labels))}
        if self.names & {host, "*", *wildcards}:
            return True
        if address is None:
            return False
        return any(a in network for network in self.networks for a in (address, unwrap(address)))

    def names_private(self, address: Address) -> bool:
        """Whether a rule that is about private addresses alone covers this one."""
        return any(address in network for network in self.networks if network.is_private)


def is_public(address: Address) -> bool:
    """Whether everybody on the internet means the same machine by it."""
    plain = unwrap(address)
    if plain.is_multicast or plain.is_reserved or any(plain in network for network in SPECIAL):
        return False
    if isinstance(plain, IPv6Address) and plain.is_site_local:
        return False
    return plain.is_global


def is_intranet(address: Address) -> bool:
    """Private, but neither this machine nor its link nor nobody."""
    special = address.is_loopback or address.is_link_local or address.is_multicast
    return address.is_private and not (special or address.is_unspecified or address.is_reserved)


def unwrap(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), else itself."""
    if isinstance(address, IPv4Address):
        return address
    if embedded := address.ipv4_mapped or address.sixtofour:
        return embedded
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address
