"""Runs one engine: `python -m e2b_agent_mcp.engine`.

Standard output carries one line, and only when asked for with `--json`. `--background` is how
`discovery` starts it: it leaves its parent, logs to its file, and tells a pipe how far it is.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import asdict
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING

import anyio

from .errors import EngineError
from .options import EngineOptions
from .server import serve

if TYPE_CHECKING:
    from .discovery import EngineAddress

logger = logging.getLogger(__name__)

LOG_SIZE = 1024 * 1024  # bytes; one older file is kept


def main() -> int:
    arguments = _parse()
    if arguments.background:
        _detach(arguments.ready_fd)

    def announce(address: EngineAddress) -> None:
        logger.info("serving on %s", address.api_url)
        if arguments.json:
            print(json.dumps(asdict(address)), flush=True)
        if arguments.background:
            os.write(arguments.ready_fd, b"ready\n")
            os.close(arguments.ready_fd)

    try:
        options = EngineOptions.from_json(arguments.options_json)
        _log_to(options, background=arguments.background)
        anyio.run(serve, options, announce)
    except EngineError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("--options-json", default="{}", help="EngineOptions as JSON")
    parser.add_argument("--json", action="store_true", help="print the address when ready")
    parser.add_argument("--background", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _detach(ready_fd: int) -> None:
    """Leaves the process that was started, so that whoever started it has no child to reap."""
    if os.fork():
        os._exit(0)
    os.write(ready_fd, b"%d\n" % os.getpid())


def _log_to(options: EngineOptions, *, background: bool) -> None:
    handler: logging.Handler = logging.StreamHandler()
    if background:
        handler = RotatingFileHandler(options.log_file, maxBytes=LOG_SIZE, backupCount=1)
    logging.basicConfig(
        level=logging.INFO, handlers=[handler], format="%(asctime)s %(levelname)s %(message)s"
    )


if __name__ == "__main__":
    sys.exit(main())
