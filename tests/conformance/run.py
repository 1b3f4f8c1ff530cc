"""Runs the MCP conformance suite against our server: what both generations of the protocol
require, and the scenarios of the tasks extension.

Usage: run.py NODE MODULES - a Node.js of at least version 22, and the folder `node_modules` that
holds the suite. Exits with the number of protocol versions that failed.
"""

import re
import subprocess
import sys
from pathlib import Path

REVISIONS = ("2025-11-25", "2026-07-28")
SUITE = "@modelcontextprotocol/conformance/dist/index.js"
# `tasks-status-notifications` checks nothing in this version of the suite.
TASKS = (
    *("lifecycle", "capability-negotiation", "wire-fields", "request-state-removal"),
    *("mrtr-input", "request-headers", "dispatch-and-envelope", "required-task-error"),
    "mrtr-composition",
)
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
    """Whether a scenario that the revision requires failed, or one of the tasks extension, which
    the suite runs without counting it; its summary is printed."""
    suite = str(Path(modules, SUITE))
    done = subprocess.run(
        [node, suite, "server", "--url", url, "--requirements", revision],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    summary = done.stdout.rpartition("=== SUMMARY ===")[2] or done.stdout
    wanted = TASKS if revision == REVISIONS[-1] else ()
    missing = [name for name in wanted if not _passed(f"tasks-{name}", summary)]
    failed = done.returncode != 0 or bool(missing)
    print(f"--- MCP {revision}: {'failed' if failed else 'passed'}\n{summary.strip()}")
    if failed:
        print(f"{done.stdout}\nNot passed of the tasks extension: {', '.join(missing) or 'none'}")
    return failed


def _passed(scenario: str, summary: str) -> bool:
    """Whether it checked something and found nothing wrong."""
    return re.search(rf" {scenario}: [1-9]\d* passed, 0 failed", summary) is not None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
