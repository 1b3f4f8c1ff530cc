"""Starts the guest inside a box, where it lies at `/opt/e2b/boot.py` next to the `guest` package.

Python runs it isolated (`-I -S`): nothing that the sandbox's user can write is ever imported.
The standard library comes first, so no package of the template can stand in for a part of it.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent

sys.path += [str(ROOT), str(ROOT / "lib"), str(ROOT / "site")]
runpy.run_module("guest", run_name="__main__")
