"""How a client names a file: relative to the home, `~` is the home, always made lexical.

Nothing here is a security boundary: the box is. A client may name any path in it.
"""

import os
from pathlib import Path


def resolve(path: str, home: Path) -> str:
    """The absolute path meant by `path`; symlinks are left for the system to follow."""
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    return os.path.normpath(os.path.join(home, path))


def printable(path: str) -> str:
    """A file name as JSON can carry it: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")
