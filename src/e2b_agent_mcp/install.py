"""Enters this server into the configuration of an MCP client.

The rule: what else stands in the client's file stays, and a copy of the old file is kept beside it.
A file that is not plain JSON (comments, a syntax error) is left alone.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from e2b_agent_mcp.errors import SettingsError

NAME = "e2b-agent-mcp"


@dataclass(frozen=True)
class Client:
    """Where a client keeps its servers, and under which key."""

    title: str
    key: str
    path: Callable[["Place"], Path]
    typed: bool = False  # VS Code wants "type": "stdio"


@dataclass(frozen=True)
class Place:
    """The folders that configuration files are found in."""

    home: Path
    project: Path
    platform: str = sys.platform


def _claude_desktop(place: Place) -> Path:
    folders = {
        "darwin": "Library/Application Support/Claude",
        "win32": "AppData/Roaming/Claude",
    }
    return place.home / folders.get(place.platform, ".config/Claude") / "claude_desktop_config.json"


CLIENTS: Mapping[str, Client] = {
    "claude-desktop": Client("Claude Desktop", "mcpServers", _claude_desktop),
    "claude-code": Client(
        "Claude Code (this folder)", "mcpServers", lambda place: place.project / ".mcp.json"
    ),
    "cursor": Client("Cursor", "mcpServers", lambda place: place.home / ".cursor" / "mcp.json"),
    "vscode": Client(
        "VS Code (this folder)",
        "servers",
        lambda place: place.project / ".vscode" / "mcp.json",
        typed=True,
    ),
}


def entry(client: Client) -> dict[str, object]:
    """What the client shall start: this very installation, by absolute path.

    Clients start servers with a short PATH of their own. An installation that uvx made for one run
    may be gone tomorrow, so there uvx itself is named.
    """
    uvx = shutil.which("uvx")
    command: dict[str, object] = {"command": sys.executable, "args": ["-m", "e2b_agent_mcp"]}
    if uvx and "archive-v0" in Path(sys.prefix).parts:
        command = {"command": uvx, "args": [NAME]}
    return {"type": "stdio", **command} if client.typed else command


def merged(client: Client, text: str) -> str:
    """The client's configuration `text` with our entry in it; other servers stay."""
    document = json.loads(text) if text.strip() else {}
    if not isinstance(document, dict) or not isinstance(document.get(client.key, {}), dict):
        raise ValueError(f'no object with the key "{client.key}"')
    servers = document.setdefault(client.key, {})
    servers[NAME] = {**servers.get(NAME, {}), **entry(client)}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def install(client: Client, path: Path) -> Path | None:
    """Writes the entry into `path`; returns the copy of the old file, if there was one."""
    old = path.read_text("utf-8") if path.exists() else ""
    try:
        new = merged(client, old)
    except ValueError as exc:
        raise SettingsError(
            f"{path} is not plain JSON ({exc}), so it was left alone.",
            hint=f"Add what `e2b-agent-mcp install {_name(client)} --print` shows by hand.",
        ) from exc
    path.parent.mkdir(parents=True, exist_ok=True)
    backup = path.with_name(f"{path.name}.{time.strftime('%Y%m%d-%H%M%S')}.backup") if old else None
    if backup:
        shutil.copy2(path, backup)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(new, "utf-8")
    if backup:
        shutil.copymode(path, draft)
    os.replace(draft, path)
    return backup


def _name(client: Client) -> str:
    return next(name for name, item in CLIENTS.items() if item is client)
