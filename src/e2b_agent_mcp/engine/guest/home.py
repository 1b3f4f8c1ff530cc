"""The home folder: a virtual environment made by hand over the template's packages.

`pip install` writes into the home and shadows the template, which stays read-only: the template's
packages are on the path *behind* the environment's own, by a `.pth` file. Making it takes no
process and is repeated at every start, so a home from an older template is put right.
"""

import os
import shutil
import sys
from pathlib import Path

from .config import GuestConfig

PIP = """\
#!{python}
import sys

from pip._internal.cli.main import main

sys.exit(main())
"""

PYVENV = """\
home = {home}
include-system-site-packages = false
version = {version}
"""


def prepare_home(config: GuestConfig) -> None:
    """Idempotent; changes nothing that is already as it should be."""
    binaries = config.python.parent
    venv = binaries.parent
    # The interpreter below any virtual environment; `venv` finds it so too.
    base = Path(getattr(sys, "_base_executable", sys.executable))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = venv / "lib" / f"python{version}" / "site-packages"
    binaries.mkdir(parents=True, exist_ok=True)
    packages.mkdir(parents=True, exist_ok=True)
    for name in ("python", "python3", f"python{version}"):
        _link(binaries / name, base)
    for name in ("pip", "pip3"):
        _write(binaries / name, PIP.format(python=config.python), mode=0o755)
    _write(venv / "pyvenv.cfg", PYVENV.format(home=base.parent, version=version))
    _write(packages / "template.pth", f"{config.site}\n")
    _copy_fonts(config.site.parent / "fonts", config.home / ".config/matplotlib")


def _copy_fonts(source: Path, target: Path) -> None:
    """Matplotlib's list of fonts, which takes seconds to make; its folder must be writable."""
    for name in os.listdir(source) if source.is_dir() else ():
        target.mkdir(parents=True, exist_ok=True)
        if name.startswith("fontlist-") and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and path.readlink() == target:
        return
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    if path.is_file() and path.read_text() == text:
        return
    path.write_text(text)
    path.chmod(mode)
