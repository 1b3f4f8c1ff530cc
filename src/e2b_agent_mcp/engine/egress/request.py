"""The head of a proxy request: read from a hostile client, so bounded and strict. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

LARGEST_HEAD = 64 * 1024  # bytes
END_OF_HEAD = b"\r\n\r\n"

_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
# A URL parser drops line ends, which a server may take for the end of a header.
_TARGET = re.compile(r'[!"$-~]+')
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
# Between the client and this proxy only, or set anew.
_NOT_FORWARDED = frozenset({"connection", "host", "keep-alive", "proxy-connection", "upgrade"})


class BadRequest(Exception):
    """The message is the client's answer."""


@dataclass(frozen=True)
class ProxyRequest:
    """`forward` is what the server gets instead of the head; None for a tunnel (CONNECT)."""

    host: str
    port: int
    forward: bytes | None


def parse_head(head: bytes) -> ProxyRequest:
    """Takes all up to the empty line."""
    try:
        request_line, *lines = head.decode("ascii").split("\r\n")
        method, target, version = request_line.split(" ")
    except ValueError:
        raise BadRequest("not an HTTP request") from None
    if version not in {"HTTP/1.0", "HTTP/1.1"} or not _METHOD.fullmatch(method):
        raise BadRequest("not an HTTP request")
    if not _TARGET.fullmatch(target):
        raise BadRequest("the target is malformed")
    if method == "CONNECT":
        host, port = _authority(f"//{target}", None)
        return ProxyRequest(host, port, None)
    if not target.startswith("http://"):
        raise BadRequest("this is a proxy: the request must name an http:// URL")
    host, port = _authority(target, 80)
    return ProxyRequest(host, port, _rewrite(method, target, lines))


def _authority(url: str, default_port: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or default_port
    except ValueError:
        raise BadRequest("the target is malformed") from None
    if not port or not _HOST.fullmatch(host) or "@" in parts.netloc:
        raise BadRequest("the target is malformed")
    return host, port


def _rewrite(method: str, target: str, lines: list[str]) -> bytes:
    """The request as its server expects it, the last one on its connection."""
    headers = [_header(line) for line in lines]
    authority, slash, rest = target.removeprefix("http://").partition("/")
    authority, question, query = authority.partition("?")
    path = f"/{rest}" if slash else f"/{question}{query}"
    kept = [f"{name}: {value}" for name, value in headers if _is_forwarded(name)]
    new = [f"{method} {path} HTTP/1.1", f"Host: {authority}", *kept, "Connection: close"]
    return "\r\n".join(new).encode("ascii") + END_OF_HEAD


def _header(line: str) -> tuple[str, str]:
    found = _HEADER.fullmatch(line)
    if found is None:
        raise BadRequest("a header is malformed")
    return found[1], found[2]


def _is_forwarded(name: str) -> bool:
    return name.lower() not in _NOT_FORWARDED and not name.lower().startswith("proxy-")
