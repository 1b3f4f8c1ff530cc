"""The embedded E2B: a server on loopback that E2B's SDKs talk to as if it were the cloud.

Rule: nothing here imports the rest of the package, and the public names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .discovery import EngineAddress as EngineAddress
    from .discovery import ensure_ready as ensure_ready
    from .discovery import find as find
    from .discovery import stop as stop
    from .errors import EngineError as EngineError
    from .errors import IsolationUnavailable as IsolationUnavailable
    from .errors import StartError as StartError
    from .errors import TemplateError as TemplateError
    from .isolation import probe as probe
    from .options import EngineOptions as EngineOptions
    from .server import serve as serve
    from .template import find_template as find_template

_HOMES = {
    "EngineAddress": "discovery",
    "EngineError": "errors",
    "EngineOptions": "options",
    "IsolationUnavailable": "errors",
    "StartError": "errors",
    "TemplateError": "errors",
    "ensure_ready": "discovery",
    "find": "discovery",
    "find_template": "template",
    "probe": "isolation",
    "serve": "server",
    "stop": "discovery",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
