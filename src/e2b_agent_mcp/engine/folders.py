"""Folders that many processes share: complete or absent, and readable by every box."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STAGING = ".building-"


def put_folder(
    parent: Path, write: Callable[[Path], None], finish: Callable[[Path], None] = lambda _: None
) -> Path:
    """Lets `write` fill a folder, names it after its content, and returns the one that is there.

    `finish` adds to a new folder what follows from the content and does not name it.
    """
    with staging(parent) as stage:
        write(stage)
        place = parent / _content_digest(stage)
        if not place.exists():
            finish(stage)
            move_into_place(stage, place)
    return place


@contextmanager
def staging(parent: Path, name: str = "") -> Iterator[Path]:
    """A folder to build in; whatever is still there at the end is removed."""
    parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f"{STAGING}{name}-", dir=parent))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def move_into_place(stage: Path, place: Path) -> None:
    _open_to_all(stage)
    with suppress(FileExistsError):
        try:
            stage.rename(place)
        except OSError:  # another process was first: a folder that is not empty
            if not place.is_dir():
                raise


def remove_leftovers(parent: Path, name: str) -> None:
    """What interrupted builds of `name` left; the caller holds the lock that forbids others."""
    for leftover in parent.glob(f"{STAGING}{name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _content_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        if path.is_symlink():
            digest.update(os.fsencode(os.readlink(path)))
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _open_to_all(folder: Path) -> None:
    """Whatever the umask was: readable by everybody, writable by the owner alone."""
    folder.chmod(0o755)
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                runs = stat.S_ISDIR(mode) or mode & stat.S_IXUSR
                path.chmod(0o755 if runs else 0o644)
