"""The proxy that the host itself must use to reach the internet, from its usual variables.

Only plain HTTP proxies: to what else a variable names, connections are made directly.
"""

from __future__ import annotations

import base64
import ipaddress
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

DEFAULT_PORT = 80


class Proxy(NamedTuple):
    host: str
    port: int
    authorization: str | None  # of the host's own; no sandbox sees it

    def tunnel_head(self, host: str, port: int) -> bytes:
        """What asks it for a tunnel."""
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return "\r\n".join(
            [f"CONNECT {place} HTTP/1.1", f"Host: {place}", *self._own(), "", ""]
        ).encode()

    def absolute(self, forward: bytes, host: str, port: int) -> bytes:
        """A request that was meant for its server, as this proxy expects it."""
        line, _, rest = forward.partition(b"\r\n")
        method, _, target = line.partition(b" ")
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [
            method + b" http://" + place.encode() + target,
            *map(str.encode, self._own()),
            rest,
        ]
        return b"\r\n".join(lines)

    def _own(self) -> list[str]:
        return [f"Proxy-Authorization: {self.authorization}"] if self.authorization else []


@dataclass(frozen=True)
class Upstream:
    http: Proxy | None = field(default=None, repr=False)
    https: Proxy | None = field(default=None, repr=False)
    no_proxy: str = ""

    def proxy_for(self, host: str, port: int, *, tunnel: bool) -> Proxy | None:
        proxy = self.https if tunnel else self.http
        if proxy is None or any(_covers(e, host.lower(), port) for e in self.no_proxy.split(",")):
            return None
        return proxy


def read_upstream(environ: Mapping[str, str]) -> Upstream:
    def value(name: str) -> str:
        return environ.get(name) or environ.get(name.upper()) or ""

    every = value("all_proxy")
    return Upstream(
        http=_parse(value("http_proxy") or every),
        https=_parse(value("https_proxy") or every),
        no_proxy=value("no_proxy"),
    )


def _covers(entry: str, host: str, port: int) -> bool:
    """One entry of `no_proxy`: `*`, a name with all below it, an address or a network."""
    entry = entry.strip().lower()
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.removesuffix(f":{port}").lstrip("*").lstrip(".")
    if not name:
        return entry == "*"
    return host == name or host.endswith(f".{name}")


def _parse(url: str) -> Proxy | None:
    if not url:
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname:
        logger.warning("a %s proxy cannot be used for sandboxes", parts.scheme)
        return None
    authorization = None
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(secret.encode()).decode()
    return Proxy(parts.hostname, parts.port or DEFAULT_PORT, authorization)
