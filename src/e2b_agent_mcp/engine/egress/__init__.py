"""The network of the sandboxes: what they may reach, and the proxy that is their only way out."""

from .policy import Allowed, Denied, NetworkPolicy, is_rule
from .proxy import EgressProxy, HostNetwork, share_of_connections
from .upstream import Upstream, read_upstream

__all__ = [
    "Allowed",
    "Denied",
    "EgressProxy",
    "HostNetwork",
    "NetworkPolicy",
    "Upstream",
    "is_rule",
    "read_upstream",
    "share_of_connections",
]
