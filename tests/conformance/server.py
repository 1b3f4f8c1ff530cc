"""Serves our app over HTTP with the conformance fixtures added; prints its URL when it listens."""

import os
import socket
import sys
from pathlib import Path

import uvicorn

from e2b_agent_mcp import Settings, create_server
from e2b_agent_mcp.server.background import BackgroundCalls
from e2b_agent_mcp.server.transports import configure_logging
from e2b_agent_mcp.settings import config_path, read_config

sys.path.insert(0, str(Path(__file__).parent))
import fixtures
import task_fixtures


def main() -> None:
    settings = Settings.load(os.environ, config=read_config(config_path(os.environ)))
    configure_logging(settings)
    background = BackgroundCalls()
    server = create_server(settings, background=background)
    fixtures.register(server)
    task_fixtures.register(server, background)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp", flush=True)
    config = uvicorn.Config(
        server.streamable_http_app(), log_level="warning", timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
