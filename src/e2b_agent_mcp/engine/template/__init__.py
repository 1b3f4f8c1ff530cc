"""The read-only environment that sandboxes are made from, built once and then shared.

A template is complete or absent: it is built in a folder beside its place and renamed. Its name
is a digest of all that it is made of, so an upgrade makes a new one next to the old. One
process builds while others wait for the lock and repeat its progress. Nothing downloaded runs
on the host: only wheels are installed, and they are tried inside a box.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import platform
import py_compile
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from ..errors import TemplateError
from ..folders import put_folder
from ..guest.interpreter.requirements import KERNEL_REQUIREMENTS
from ..index import BOX_CERTIFICATES
from ..isolation import Bind
from .build import Recipe, build
from .etc import etc_binds, has_certificates, prepare_etc
from .interpreter import Interpreter, locate
from .prune import in_use, prune
from .turn import Progress, sole_builder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..index import PackageIndex
    from ..isolation import Isolation

__all__ = ["Progress", "Template", "ensure_template", "find_template", "in_use", "prune"]

ROOT = "/opt/e2b"  # in a box
LAYOUT = 1  # raise when the folders of a template change their meaning

# What the guest program itself needs.
GUEST_REQUIREMENTS = (
    "anyio>=4.16,<5",
    "h11>=0.16,<1",
    "python-multipart>=0.0.20,<1",
    "starlette>=1.10,<2",
    "uvicorn>=0.54,<1",
)

# What user code finds, after E2B's own template; majors fixed where results depend on them.
USER_REQUIREMENTS = (
    "beautifulsoup4>=4.12,<5",
    "matplotlib>=3.10,<3.11",  # the series that e2b-charts was made for
    "nbformat>=5.10,<6",  # plotly shows no figure without it
    "numpy>=2.2,<3",
    "openpyxl>=3.1,<4",
    "orjson>=3.10,<4",
    "pandas>=2.2.3,<3",
    "pillow>=11",
    "plotly>=6,<7",
    "requests>=2.32,<3",
    "scikit-learn>=1.6,<2",
    "scipy>=1.14,<2",
    "seaborn>=0.13,<1",
    "sympy>=1.13,<2",
)

PATH = (
    f"/home/user/.venv/bin:/home/user/.local/bin:{ROOT}/site/bin"
    ":/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
)


@dataclass(frozen=True, kw_only=True)
class Template:
    """What every box made from it is shown and told. Its folders belong to the cache."""

    digest: str
    root: Path
    binds: tuple[Bind, ...]
    environment: Mapping[str, str] = field(repr=False)
    command: tuple[str, ...]
    folders: tuple[Path, ...]  # of the cache, for `in_use`

    @property
    def python(self) -> str:
        """The interpreter's path in a box."""
        return self.command[0]


async def ensure_template(
    *,
    cache_dir: Path,
    isolation: Isolation,
    index: PackageIndex,
    environ: Mapping[str, str],
    on_progress: Progress = lambda message: None,
) -> Template:
    """A minute and some 750 MB at first use, milliseconds later. `environ` is for uv."""
    shared = await _prepare(cache_dir, isolation, index)
    root = cache_dir / "templates" / _digest(shared.python)
    recipe = Recipe(
        python=shared.python,
        requirements={"lib": GUEST_REQUIREMENTS, "site": _kernel_requirements()},
        index=index,
        environ=environ,
        isolation=isolation,
        template=shared.template,
    )
    if not root.exists():
        async with sole_builder(root, on_progress) as report:
            if not root.exists():
                await build(recipe, root, report)
    if not isolation.owner.can_read(root):
        raise TemplateError(
            f"{root} cannot be read by uid {isolation.owner.uid}, as which sandboxes run. "
            "Choose a cache_dir that everybody may pass through."
        )
    return shared.template(root)


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """What a template shows beside its own packages: made at each start, for all templates."""

    python: Interpreter
    guest: Path
    etc: Path
    index: PackageIndex
    isolation: Isolation

    def template(self, root: Path) -> Template:
        """The one whose packages are in `root`, finished or being built."""
        return Template(
            digest=_digest(self.python),
            root=root,
            binds=(
                *etc_binds(self.etc),
                *self.python.binds(root),
                *_own_binds(root, self.guest),
                *_index_binds(self.index, self.isolation),
            ),
            environment=_environment(self.index, self.etc),
            command=(self.python.executable, "-I", "-S", f"{ROOT}/boot.py"),
            folders=(root, self.guest, self.etc),
        )


async def _prepare(cache_dir: Path, isolation: Isolation, index: PackageIndex) -> _Shared:
    guest = await anyio.to_thread.run_sync(
        put_folder, _guest_folder(cache_dir), _copy_guest, _compile_guest
    )
    etc = await anyio.to_thread.run_sync(prepare_etc, cache_dir, index)
    python = locate(isolation.owner)
    return _Shared(python=python, guest=guest, etc=etc, index=index, isolation=isolation)


def find_template(cache_dir: Path, isolation: Isolation) -> Path | None:
    """The folder of the finished template; None when the first sandbox would have to build it."""
    root = cache_dir / "templates" / _digest(locate(isolation.owner))
    return root if root.exists() else None


def _kernel_requirements() -> tuple[str, ...]:
    return tuple(sorted({*USER_REQUIREMENTS, *KERNEL_REQUIREMENTS}))


def _digest(python: Interpreter) -> str:
    made_of = [
        LAYOUT,
        platform.machine(),
        sys.version,
        str(python),
        GUEST_REQUIREMENTS,
        _kernel_requirements(),
    ]
    return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]


def _copy_guest(folder: Path) -> None:
    """`boot.py` beside the package: an upgrade makes a new folder and leaves running boxes be."""
    source = Path(__file__).parent.parent / "guest"
    shutil.copytree(source, folder / "guest", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.move(folder / "guest/boot.py", folder / "boot.py")


def _guest_folder(cache_dir: Path) -> Path:
    # Bytecode is of one version of Python.
    return cache_dir / "guest" / (sys.implementation.cache_tag or "python")


def _compile_guest(folder: Path) -> None:
    """Boxes see the folder read-only: without its bytecode each would compile it again."""
    compileall.compile_dir(
        folder,
        quiet=2,
        stripdir=folder,
        prependdir=ROOT,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _own_binds(root: Path, guest: Path) -> Iterator[Bind]:
    yield Bind(guest / "boot.py", f"{ROOT}/boot.py")
    yield Bind(guest / "guest", f"{ROOT}/guest")
    for name in ("lib", "site", "fonts"):
        yield Bind(root / name, f"{ROOT}/{name}")


def _index_binds(index: PackageIndex, isolation: Isolation) -> Iterator[Bind]:
    for folder in index.folders():
        if isolation.owner.can_read(folder) and not folder.is_relative_to("/home/user"):
            yield Bind(folder, str(folder))


def _environment(index: PackageIndex, etc: Path) -> dict[str, str]:
    found = {
        "PATH": PATH,
        "HOME": "/home/user",
        "USER": "user",
        "LOGNAME": "user",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "MPLCONFIGDIR": "/home/user/.config/matplotlib",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        **index.box_environment(),
    }
    if has_certificates(etc):
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
        found |= dict.fromkeys((*names, "NODE_EXTRA_CA_CERTS"), BOX_CERTIFICATES)
    return found
