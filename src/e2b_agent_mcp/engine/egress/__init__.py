"""The network of the sandboxes: what they may reach, and the proxy that is their only way out."""

from .policy import Allowed, Denied, NetworkPolicy
from .proxy import EgressProxy

__all__ = ["Allowed", "Denied", "EgressProxy", "NetworkPolicy"]
