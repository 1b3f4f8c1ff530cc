"""Runs the MCP conformance suite against our server, for both generations of the protocol.

Usage: run.py NODE MODULES - a Node.js of at least version 22, and the folder `node_modules` that
holds the suite. Exits with the number of protocol versions that failed.
"""

import subprocess
import sys
from pathlib import Path

REVISIONS = ("2025-11-25", "2026-07-28")
SUITE = "@modelcontextprotocol/conformance/dist/index.js"
LIMIT = 300  # seconds, for one revision


def main(node: str, modules: str) -> int:
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("server.py")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = server.stdout.readline().strip()  # type: ignore[union-attr]  # it is a pipe
        return sum(_fails(node, modules, url, revision) for revision in REVISIONS)
    finally:
        server.terminate()
        server.wait(10)


def _fails(node: str, modules: str, url: str, revision: str) -> bool:
    """Whether a scenario that the revision requires failed; the suite's summary is printed."""
    suite = str(Path(modules, SUITE))
    done = subprocess.run(
        [node, suite, "server", "--url", url, "--requirements", revision],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    summary = done.stdout.rpartition("=== SUMMARY ===")[2] or done.stdout
    print(f"--- MCP {revision}: {'failed' if done.returncode else 'passed'}\n{summary.strip()}")
    return done.returncode != 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
