"""Runs E2B's SDKs for JavaScript against an engine of its own.

Usage: run.py NODE MODULES - a Node.js of at least version 22, and the folder `node_modules` that
holds `@e2b/code-interpreter`. Exits as the tests do.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from e2b_agent_mcp.engine import EngineOptions

TESTS = Path(__file__).with_name("sdk.test.mjs")
LIMIT = 300  # seconds


def main(node: str, modules: str) -> int:
    with tempfile.TemporaryDirectory(prefix="e2b-js-") as folder:
        os.chmod(folder, 0o711)  # boxes may be another user
        options = EngineOptions(state_dir=Path(folder, "state"), runtime_dir=Path(folder, "run"))
        engine = subprocess.Popen(
            [
                *(sys.executable, "-m", "e2b_agent_mcp.engine", "--json"),
                *("--options-json", options.to_json()),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            address = json.loads(engine.stdout.readline())  # type: ignore[union-attr]  # a pipe
            return _test(node, modules, Path(folder), address)
        finally:
            engine.terminate()
            engine.wait(10)


def _test(node: str, modules: str, folder: Path, address: dict[str, str]) -> int:
    # Node looks for modules beside the file that imports them.
    tests = shutil.copy(TESTS, folder)
    (folder / "node_modules").symlink_to(Path(modules).absolute())
    environment = {
        "PATH": os.environ["PATH"],
        "E2B_API_URL": address["api_url"],
        "E2B_SANDBOX_URL": address["sandbox_url"],
        "E2B_API_KEY": address["api_key"],
    }
    done = subprocess.run(
        [node, "--test", "--test-reporter=spec", tests], env=environment, timeout=LIMIT
    )
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
