"""Files of the host that `upload_file` and `download_file` may touch: below `files.roots` only.

The path is walked from its root without following a symlink, each folder opened relative to the
one before (`O_NOFOLLOW`), so a link swapped in after a check leads nowhere. Links in the roots
themselves are the operator's own and are followed.
"""

import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from e2b_agent_mcp.errors import InvalidArgumentError, NotFoundError, PathNotAllowedError

_OPTION = "E2B_AGENT_MCP_FILES_ROOTS"


@contextmanager
def open_source(
    path: str, roots: Sequence[Path], *, argument: str = "source_path"
) -> Iterator[BinaryIO]:
    """A regular file to read from; messages call it by the caller's `argument`."""
    with _folder(path, roots, argument=argument) as (folder, name):
        try:
            # O_NONBLOCK: opening a pipe must not wait for its writer.
            number = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            raise NotFoundError(f"{argument}: no file {path}") from None
        except OSError as exc:
            raise PathNotAllowedError(f"{argument}: cannot open {path}: {exc.strerror}.") from exc
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise InvalidArgumentError(f"{argument}: {path} is not a regular file.")
    with open(number, "rb") as file:
        yield file


@contextmanager
def open_target(path: str, roots: Sequence[Path]) -> Iterator[BinaryIO]:
    """A file to write to, which appears under its name when the block ends without an error."""
    with _folder(path, roots, argument="target_path") as (folder, name):
        draft = f".{name[:200]}.{secrets.token_hex(4)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            number = os.open(draft, flags, 0o644, dir_fd=folder)
        except OSError as exc:
            raise PathNotAllowedError(f"target_path: cannot write {path}: {exc.strerror}.") from exc
        try:
            with open(number, "wb") as file:
                yield file
            _replace(draft, name, folder, path)
        finally:
            with suppress(FileNotFoundError):  # it has its name already
                os.unlink(draft, dir_fd=folder)


def _replace(draft: str, name: str, folder: int, path: str) -> None:
    try:
        os.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as exc:
        raise PathNotAllowedError(f"target_path: cannot write {path}: {exc.strerror}.") from exc


@contextmanager
def _folder(path: str, roots: Sequence[Path], *, argument: str) -> Iterator[tuple[int, str]]:
    """The open folder of `path` and the name in it."""
    root, parts = _below(path, roots, argument=argument)
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts[:-1]:
            above = folder
            try:
                folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=above)
            finally:
                os.close(above)
    except FileNotFoundError:
        raise NotFoundError(f"{argument}: no folder {os.path.dirname(path)}") from None
    except OSError as exc:
        raise PathNotAllowedError(
            f"{argument}: {path} leads through a symbolic link or what is no folder.",
            hint="Name the real path, inside a folder of " + _OPTION + ".",
        ) from exc
    try:
        yield folder, parts[-1]
    finally:
        os.close(folder)


def _below(path: str, roots: Sequence[Path], *, argument: str) -> tuple[Path, tuple[str, ...]]:
    """The root that `path` is below, and the way from there."""
    if not roots:
        raise PathNotAllowedError(
            f"{argument}: this server has no host folder to exchange files with.",
            hint=f"Its operator can allow folders with {_OPTION} (files.roots).",
        )
    if "\0" in path or not os.path.isabs(path):
        raise InvalidArgumentError(f"{argument}: {path[:200]!r} is not an absolute path.")
    plain = Path(os.path.normpath(path))
    for root in roots:
        for spelled in (Path(os.path.abspath(root)), Path(os.path.realpath(root))):
            if plain != spelled and plain.is_relative_to(spelled):
                return spelled, plain.relative_to(spelled).parts
    raise PathNotAllowedError(
        f"{argument}: {path} is not below an allowed folder.",
        hint=f"{_OPTION} allows: {', '.join(map(str, roots))}",
    )
