"""Serves our app over HTTP with the conformance fixtures added; prints its URL when it listens."""

import socket
import sys
from pathlib import Path

import uvicorn

from e2b_agent_mcp import Settings, create_server

sys.path.insert(0, str(Path(__file__).parent))
import fixtures


def main() -> None:
    server = create_server(Settings())
    fixtures.register(server)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    config = uvicorn.Config(
        server.streamable_http_app(), log_level="warning", timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
