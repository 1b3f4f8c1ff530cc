"""Reading what clients of the control plane send: bodies, their fields, and queries.

Rule: a request is understood or refused with a reason; what is not asked for gets E2B's default.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException

from .egress import is_rule
from .errors import InvalidRequest
from .sandbox import Lifecycle, PauseMode

if TYPE_CHECKING:
    from starlette.requests import Request

LARGEST_BODY = 1024 * 1024  # bytes
LARGEST_PAGE = 100

_HOST = re.compile(r"(?:[A-Za-z0-9.-]|\$\{PORT\}){1,253}(?::(?:\d{1,5}|\$\{PORT\}))?")

Json = dict[str, Any]  # a decoded body: nothing is known of it yet


async def read_body(request: Request) -> Json:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > LARGEST_BODY:
            raise HTTPException(413, f"A request body may have at most {LARGEST_BODY} bytes")
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not JSON") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object")
    return body


def flag(body: Json, name: str, *, default: bool) -> bool:
    value = said(body, name)
    return default if value is None else value


def said(body: Json, name: str) -> bool | None:
    """Yes, no, or nothing."""
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false")
    return value


def object_of(body: Json, name: str) -> Json:
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be an object")
    return value


def string_map(body: Json, name: str) -> dict[str, str]:
    value = object_of(body, name)
    if not all(isinstance(v, str) for v in value.values()):
        raise InvalidRequest(f"{name} must map names to strings")
    if not all(map(_is_text, (*value, *value.values()))):
        raise InvalidRequest(f"{name} holds what is not text: NUL, or half of a surrogate pair")
    return value


def _is_text(value: str) -> bool:
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _strings(body: Json, name: str) -> tuple[str, ...]:
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise InvalidRequest(f"{name} must be a list of strings")
    return tuple(value)


def rules(body: Json, name: str) -> tuple[str, ...]:
    found = _strings(body, name)
    for rule in found:
        if not is_rule(rule):
            raise InvalidRequest(f"{name}: {rule[:100]!r} is no name, address or network")
    return found


def host_name(body: Json, name: str) -> str | None:
    value = body.get(name)
    if value is not None and not (isinstance(value, str) and _HOST.fullmatch(value)):
        raise InvalidRequest(f"{name} must be a host name; ${{PORT}} in it stands for the port")
    return value or None


def number(text: str | None, default: float) -> float:
    try:
        return default if text is None else float(text)
    except ValueError:
        raise InvalidRequest("start and end must be seconds since 1970") from None


def lifecycle_of(body: Json) -> Lifecycle:
    auto_pause = flag(body, "autoPause", default=False)
    memory = flag(body, "autoPauseMemory", default=True)
    auto_resume = flag(object_of(body, "autoResume"), "enabled", default=False)
    if not memory and not auto_pause:
        raise InvalidRequest("autoPauseMemory=false needs autoPause")
    if not memory and auto_resume:
        raise InvalidRequest("autoPauseMemory=false cannot be combined with autoResume")
    return Lifecycle(
        on_timeout="pause" if auto_pause else "kill",
        pause_mode=PauseMode.FULL if memory else PauseMode.FILESYSTEM,
        auto_resume=auto_resume,
    )


def metadata_filter(text: str | None) -> dict[str, str]:
    """`k=v&k2=v2`; keys and values were quoted once before they were encoded into that."""
    pairs = urllib.parse.parse_qsl(text or "", keep_blank_values=True)
    return {urllib.parse.unquote(k): urllib.parse.unquote(v) for k, v in pairs}


def moment(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        found = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        raise InvalidRequest("startedAfter must be an ISO 8601 time") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def page_size(text: str | None) -> int:
    if text is None:
        return LARGEST_PAGE
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= LARGEST_PAGE:
        raise InvalidRequest(f"limit must be between 1 and {LARGEST_PAGE}")
    return int(text)
