"""The MCP door: `create_server` makes the server, `serve` runs it over stdio or HTTP."""

from e2b_agent_mcp.server.app import create_server
from e2b_agent_mcp.server.transports import Transport, http_server, serve

__all__ = ["Transport", "create_server", "http_server", "serve"]
