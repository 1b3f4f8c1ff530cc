"""The `filesystem.Filesystem` service without its watches (those are in `watch.py`).

The work is done in threads: a directory may be large and a disk slow. An entry describes the
link itself (size, mode, owner, time) but has the type of what the link points to.
"""

import errno
import grp
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

from anyio.to_thread import run_sync
from starlette.routing import Route

from .paths import printable, resolve
from .rpc import Call, Code, Fields, Reply, RpcError, unary

METADATA_PREFIX = "user.e2b."  # of extended attributes
NEW_DIRECTORY_MODE = 0o755
TOO_DEEP = (errno.EMFILE, errno.ENAMETOOLONG)  # of a tree whose levels are held open or named
ERROR_TAIL = 500  # bytes
# What a timestamp of the wire can say; a file can have any.
EARLIEST, LATEST = -62_135_596_800 * 10**9, 253_402_300_799 * 10**9

ERROR_CODES: dict[int, Code] = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",  # what lies below a file
    errno.ENXIO: "invalid_argument",  # a named pipe that nobody reads
    errno.EISDIR: "invalid_argument",
    errno.EINVAL: "invalid_argument",
    errno.ELOOP: "invalid_argument",
    errno.ENAMETOOLONG: "invalid_argument",
    errno.EEXIST: "already_exists",
    errno.ENOTEMPTY: "already_exists",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EROFS: "permission_denied",
    errno.ENOSPC: "resource_exhausted",
    errno.EDQUOT: "resource_exhausted",
    errno.EMFILE: "resource_exhausted",
}


def filesystem_routes(home: Path) -> list[Route]:
    methods = {
        "Stat": stat_entry,
        "MakeDir": make_directory,
        "Move": move,
        "ListDir": list_directory,
        "Remove": remove,
    }
    return [
        Route(f"/filesystem.Filesystem/{name}", unary(_in_thread(answer, home)), methods=["POST"])
        for name, answer in methods.items()
    ]


def stat_entry(fields: Fields, home: Path) -> Reply:
    return {"entry": entry_info(resolve(fields.text("path"), home))}


def make_directory(fields: Fields, home: Path) -> Reply:
    path = resolve(fields.text("path"), home)
    if os.path.isdir(path):
        raise RpcError("already_exists", f"directory '{path}' already exists")
    if os.path.lexists(path):
        raise RpcError("invalid_argument", f"'{path}' exists and is not a directory")
    make_directories(path)
    return {"entry": entry_info(path)}


def move(fields: Fields, home: Path) -> Reply:
    source = resolve(fields.text("source"), home)
    destination = resolve(fields.text("destination"), home)
    os.lstat(source)  # a missing source makes no directories
    make_directories(os.path.dirname(destination))
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV or os.path.isdir(destination):
            raise
        shutil.move(source, destination)  # home and /tmp are two file systems in a box
    return {"entry": entry_info(destination)}


def remove(fields: Fields, home: Path) -> Reply:
    """A missing path is fine: it is gone."""
    path = resolve(fields.text("path"), home)
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return {}
        try:
            shutil.rmtree(path)
        except (RecursionError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in TOO_DEEP:
                raise
            _remove_deep(path)
    return {}


def _remove_deep(path: str) -> None:
    """By a program that needs few descriptors and no stack, however deep a tree is."""
    done = subprocess.run(
        ["rm", "-rf", "--", path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    if os.path.lexists(path):
        raise RpcError("internal", done.stderr[-ERROR_TAIL:].decode(errors="replace"))


def list_directory(fields: Fields, home: Path) -> Reply:
    path = resolve(fields.text("path"), home)
    require_directory(path)
    return {"entries": list(_walk(path, fields.number("depth") or 1))}


def _walk(directory: str, depth: int) -> Iterator[Reply]:
    """In the order of names, each directory before its content; links are not followed.

    Without recursion: a tree can be deeper than Python's stack. What is too deep for a path to
    name is an error.
    """
    waiting = [_names_in(directory)]
    while waiting:
        path = next(waiting[-1], None)
        if path is None:
            waiting.pop()
            continue
        with suppress(FileNotFoundError):  # removed meanwhile
            yield entry_info(path)
            if len(waiting) < depth and stat.S_ISDIR(os.lstat(path).st_mode):
                waiting.append(_names_in(path))


def _names_in(directory: str) -> Iterator[str]:
    return iter([os.path.join(directory, name) for name in sorted(os.listdir(directory))])


def make_directories(path: str) -> None:
    try:
        os.makedirs(path, NEW_DIRECTORY_MODE, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        message = f"cannot make directory '{path}': a file is in the way"
        raise RpcError("invalid_argument", message) from error


def require_directory(path: str) -> None:
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise RpcError("invalid_argument", f"path '{path}' is not a directory")


def entry_info(path: str) -> Reply:
    """An `EntryInfo` of the wire."""
    status = os.lstat(path)
    is_link = stat.S_ISLNK(status.st_mode)
    info: dict[str, object] = {
        "name": printable(os.path.basename(path) or path),
        "type": _file_type(path),
        "path": printable(path),
        "size": str(status.st_size),
        "mode": status.st_mode & 0o777,
        "permissions": _permissions(status.st_mode),
        "owner": _name_of(status.st_uid, _user_name),
        "group": _name_of(status.st_gid, _group_name),
        "modifiedTime": _timestamp(status.st_mtime_ns),
        "metadata": read_metadata(path),
    }
    if is_link:
        info |= {"isSymlink": True, "symlinkTarget": printable(os.path.realpath(path))}
    return info


def _file_type(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "FILE_TYPE_SYMLINK"  # it points to nothing
    return "FILE_TYPE_DIRECTORY" if stat.S_ISDIR(mode) else "FILE_TYPE_FILE"


def _permissions(mode: int) -> str:
    """As Go prints a mode, which is what the SDKs' users know: `-rw-r--r--`, `dtrwxrwxrwx`."""
    traits = {
        "d": stat.S_ISDIR(mode),
        "L": stat.S_ISLNK(mode),
        "D": stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
        "p": stat.S_ISFIFO(mode),
        "S": stat.S_ISSOCK(mode),
        "u": mode & stat.S_ISUID,
        "g": mode & stat.S_ISGID,
        "c": stat.S_ISCHR(mode),
        "t": mode & stat.S_ISVTX,
    }
    letters = "".join(letter for letter, has in traits.items() if has)
    return (letters or "-") + stat.filemode(mode & 0o777)[1:]


def _name_of(number: int, look_up: Callable[[int], str]) -> str:
    try:
        return look_up(number)
    except KeyError:
        return str(number)


@cache  # each look reads a whole file, and nobody can change /etc
def _user_name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name


@cache
def _group_name(gid: int) -> str:
    return grp.getgrgid(gid).gr_name


def _timestamp(nanoseconds: int) -> str:
    seconds, fraction = divmod(min(max(nanoseconds, EARLIEST), LATEST), 10**9)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z"


def read_metadata(path: str) -> dict[str, str]:
    """What was written with the file, or by `setfattr`; nothing where it is not supported."""
    metadata = {}
    with suppress(OSError):
        for name in os.listxattr(path):
            if name.startswith(METADATA_PREFIX):
                value = os.getxattr(path, name).decode("utf-8", "replace")
                metadata[name.removeprefix(METADATA_PREFIX)] = value
    return metadata


def write_metadata(path: str, metadata: dict[str, str]) -> None:
    """Does nothing on a file system without extended attributes."""
    for key, value in metadata.items():
        try:
            os.setxattr(path, METADATA_PREFIX + key, value.encode())
        except OSError as error:
            if error.errno != errno.ENOTSUP:  # as where it is too long
                message = f"metadata '{key}' cannot be kept: {error.strerror}"
                raise RpcError("invalid_argument", message) from error


@contextmanager
def filesystem_errors() -> Iterator[None]:
    """Turns what the system refused into what the client is told."""
    try:
        yield
    except OSError as error:
        code = ERROR_CODES.get(error.errno or 0, "internal")
        raise RpcError(code, _explain(error)) from error
    except ValueError as error:  # a NUL or a lone surrogate in a path
        raise RpcError("invalid_argument", f"not a path: {error}") from error


def _explain(error: OSError) -> str:
    reason = error.strerror or str(error)
    if not isinstance(error.filename, str | bytes):
        return reason  # as when a disk is full
    path = printable(os.fsdecode(error.filename))
    return f"path '{path}' does not exist" if error.errno == errno.ENOENT else f"{reason}: '{path}'"


def _in_thread(
    answer: Callable[[Fields, Path], Reply], home: Path
) -> Callable[[Call], Awaitable[Reply]]:
    async def run(call: Call) -> Reply:
        with filesystem_errors():
            return await run_sync(partial(answer, call.fields, home))

    return run
