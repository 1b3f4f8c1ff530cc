"""The Python of the boxes: the one the engine runs on, at the same path as on the host.

Below /usr a box sees it anyway. Elsewhere (pyenv, uv, conda) only its program, libraries and
headers are shown, never its installed packages. Where the box's user cannot read it (root's own
Python below /root) a template carries a copy.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..isolation import Bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..isolation import Owner

PARTS = ("bin", "include", "lib")
NOT_COPIED = (
    "site-packages",
    "test",
    "idlelib",
    "turtledemo",
    "lib2to3",
    "ensurepip",
    "config-*",
    "*.a",
)
# Nothing of the host is mounted below the home or where a box has a filesystem of its own.
TAKEN = ("/home/user", "/tmp", "/dev", "/proc", "/run", "/etc")  # noqa: S108
ELSEWHERE = "/opt/python"


@dataclass(frozen=True)
class Interpreter:
    """`prefix` is on the host, `target` the same folder in a box."""

    prefix: Path
    target: str
    version: str  # as in python3.11
    needs_copy: bool

    @property
    def executable(self) -> str:
        return f"{self.target}/bin/{self.version}"

    @property
    def is_in_usr(self) -> bool:
        return self.prefix.is_relative_to("/usr")

    def binds(self, template: Path) -> Iterator[Bind]:
        if self.is_in_usr:
            return
        source = template / "python" if self.needs_copy else self.prefix
        for part in PARTS:
            if (source / part).is_dir():
                yield Bind(source / part, f"{self.target}/{part}")
        packages = f"lib/{self.version}/site-packages"
        if (source / packages).is_dir():
            yield Bind(template / "empty", f"{self.target}/{packages}")

    def copy_to(self, template: Path) -> None:
        """Fills the template's `python` if a copy is needed."""
        (template / "empty").mkdir()
        if not self.needs_copy:
            return
        copy = template / "python"
        (copy / "bin").mkdir(parents=True)
        shutil.copy2(self.prefix / "bin" / self.version, copy / "bin" / self.version)
        (copy / "bin/python3").symlink_to(self.version)
        for part in (f"lib/{self.version}", f"include/{self.version}"):
            if (self.prefix / part).is_dir():
                ignore = shutil.ignore_patterns(*NOT_COPIED)
                shutil.copytree(self.prefix / part, copy / part, symlinks=True, ignore=ignore)
        for library in (self.prefix / "lib").glob("*.so*"):
            shutil.copy2(library, copy / "lib" / library.name, follow_symlinks=False)


def locate(owner: Owner) -> Interpreter:
    """The engine's interpreter; for one in a virtual environment, the Python it was made from."""
    prefix = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    taken = any(prefix.is_relative_to(folder) for folder in TAKEN)
    in_usr = prefix.is_relative_to("/usr")
    needed = (prefix / "bin" / version, prefix / "lib" / version / "os.py")
    return Interpreter(
        prefix=prefix,
        target=ELSEWHERE if taken else str(prefix),
        version=version,
        needs_copy=not in_usr and not all(owner.can_read(path) for path in needed),
    )
