"""`/files`: the bytes of files, in both directions, never a whole file in memory.

An upload writes into the file itself, as a program would: links, modes and watchers keep
meaning the same file. An upload that is cut off leaves what has arrived. A request that fails is
read to its end before it is answered, else the client may meet a reset instead of the answer.
"""

import os
import re
import stat
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple
from urllib.parse import quote

from anyio.to_thread import run_sync
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .filesystem import filesystem_errors, make_directories, read_metadata, write_metadata
from .paths import printable, resolve
from .rpc import HTTP_STATUS, RpcError, require_user

CHUNK = 1024 * 1024  # bytes; each costs a walk to a thread and back
GZIP = zlib.MAX_WBITS | 16  # zlib's number for the gzip format
GZIP_LEVEL = 1  # the other end is near: compressing must not cost more than sending
METADATA_HEADER = "x-metadata-"
MEDIA_TYPE = "application/octet-stream"
PARTIAL_CONTENT = 206
NOT_THAT_LONG = 416
CLIENT_GONE = 499  # nobody reads it
DISK_FULL = 507


_RANGE = re.compile("bytes=([0-9]{0,18})-([0-9]{0,18})")


class FileStart(NamedTuple):
    """What follows in an upload is the content of the file of this name."""

    name: str


Piece = FileStart | bytes


def file_routes(home: Path) -> list[Route]:
    return [
        Route("/files", _answering_errors(partial(_download, home)), methods=["GET"]),
        Route("/files", _answering_errors(partial(_upload, home)), methods=["POST"]),
    ]


def _answering_errors(
    answer: Callable[[Request, AsyncIterator[bytes]], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        body = request.stream()
        try:
            with filesystem_errors():
                require_user(request.query_params.get("username") or "user")
                return await answer(request, body)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except RpcError as error:
            async for _ in body:
                pass
            full = error.code == "resource_exhausted"
            status = DISK_FULL if full else HTTP_STATUS[error.code]
            return JSONResponse({"code": status, "message": error.message}, status)

    return endpoint


async def _download(home: Path, request: Request, body: AsyncIterator[bytes]) -> Response:
    path = resolve(request.query_params.get("path", ""), home)
    file = await run_sync(_open_to_read, path)
    size = os.fstat(file.fileno()).st_size
    name = quote(os.fsencode(os.path.basename(path)), safe="")
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{name}"}
    part = _part_of(request.headers, size)
    if part is not None:
        return _answer_part(file, size, part, headers)
    if _wants_gzip(request.headers):
        headers |= {"content-encoding": "gzip", "vary": "accept-encoding"}
        content = _compress(_read(file, size))
    else:
        content = _read(file, size)
        if size:
            headers |= {"content-length": str(size), "accept-ranges": "bytes"}
    return StreamingResponse(content, headers=headers, media_type=MEDIA_TYPE)


def _answer_part(file: BinaryIO, size: int, part: range, headers: dict[str, str]) -> Response:
    if not part:
        file.close()
        message = f"the file has {size} bytes"
        headers = {"content-range": f"bytes */{size}"}
        return JSONResponse({"code": NOT_THAT_LONG, "message": message}, NOT_THAT_LONG, headers)
    file.seek(part.start)
    headers |= {
        "content-range": f"bytes {part.start}-{part.stop - 1}/{size}",
        "content-length": str(len(part)),
    }
    content = _read(file, len(part))
    return StreamingResponse(content, PARTIAL_CONTENT, headers, MEDIA_TYPE)


def _part_of(headers: Headers, size: int) -> range | None:
    """The bytes that are asked for, empty where the file has none; None: all of it.

    Several parts at once are answered with all, as is `If-Range`: no answer says what it would
    compare with.
    """
    asked = _RANGE.fullmatch(headers.get("range", ""))
    if asked is None or "if-range" in headers or not size:
        return None
    first, last = (int(text) if text else None for text in asked.groups())
    if first is None:
        return None if last is None else range(max(size - last, 0), size)
    if last is None or first <= last:
        return range(min(first, size), size if last is None else min(last + 1, size))
    return None


def _wants_gzip(headers: Headers) -> bool:
    """Only who asks for gzip and nothing else: HTTP libraries offer a list all by themselves."""
    return headers.get("accept-encoding", "").strip().lower() == "gzip"


def _open_to_read(path: str) -> BinaryIO:
    # Without O_NONBLOCK, opening a pipe would wait for its other end.
    return _regular(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), path, "rb")


def _regular(fd: int, path: str, mode: Literal["rb", "wb"]) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise RpcError("invalid_argument", f"path '{printable(path)}' is not a regular file")
    return os.fdopen(fd, mode)


async def _read(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """The first `size` bytes, as promised to the client; all of it where the size is unknown
    (the files of `/proc` say 0)."""
    with file:
        left = size
        while chunk := await run_sync(file.read, min(CHUNK, left) if size else CHUNK):
            yield chunk
            left -= len(chunk)


async def _compress(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    deflater = zlib.compressobj(GZIP_LEVEL, wbits=GZIP)
    async for chunk in chunks:
        yield await run_sync(deflater.compress, chunk)
    yield deflater.flush()


async def _upload(home: Path, request: Request, body: AsyncIterator[bytes]) -> Response:
    metadata = {
        name.removeprefix(METADATA_HEADER): value
        for name, value in request.headers.items()
        if name.startswith(METADATA_HEADER)
    }
    paths = await _store(_pieces(request, body), home)
    for path in paths:
        await run_sync(write_metadata, path, metadata)
    return JSONResponse([_written(path) for path in paths])


def _written(path: str) -> dict[str, object]:
    entry: dict[str, object] = {
        "name": printable(os.path.basename(path)),
        "type": "file",
        "path": printable(path),
    }
    metadata = read_metadata(path)
    return entry | {"metadata": metadata} if metadata else entry


async def _store(pieces: AsyncIterator[Piece], home: Path) -> list[str]:
    """Writes what comes; returns the paths in their order."""
    paths: list[str] = []
    waiting: list[bytes] = []
    with ExitStack() as opened:
        file: BinaryIO | None = None
        async for piece in pieces:
            if isinstance(piece, FileStart):
                if file:
                    await _write(waiting, file)
                opened.close()
                path = resolve(piece.name, home)
                if path in paths:
                    raise RpcError("invalid_argument", f"path '{path}' is given twice")
                file = opened.enter_context(await run_sync(_open_to_write, path))
                paths.append(path)
            elif file:
                waiting.append(piece)
                if sum(map(len, waiting)) >= CHUNK:
                    await _write(waiting, file)
        if file:
            await _write(waiting, file)
    if not paths:
        raise RpcError("invalid_argument", "the upload has no file")
    return paths


async def _write(pieces: list[bytes], file: BinaryIO) -> None:
    content = b"".join(pieces)
    pieces.clear()
    await run_sync(file.write, content)


def _open_to_write(path: str) -> BinaryIO:
    make_directories(os.path.dirname(path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
    return _regular(os.open(path, flags, 0o666), path, "wb")


def _pieces(request: Request, body: AsyncIterator[bytes]) -> AsyncIterator[Piece]:
    path = request.query_params.get("path", "")
    media_type, options = parse_options_header(request.headers.get("content-type"))
    if media_type == b"multipart/form-data" and b"boundary" in options:
        return _multipart(body, options[b"boundary"], path)
    if media_type == b"application/octet-stream" and path:
        return _single_file(body, path, request.headers.get("content-encoding", "identity"))
    raise RpcError(
        "invalid_argument",
        "an upload is multipart/form-data, or application/octet-stream with a path",
    )


async def _single_file(
    chunks: AsyncIterator[bytes], path: str, encoding: str
) -> AsyncIterator[Piece]:
    if encoding not in ("identity", "gzip"):
        raise RpcError("invalid_argument", f"content encoding '{encoding}' is not supported")
    yield FileStart(path)
    async for chunk in _decompress(chunks) if encoding == "gzip" else chunks:
        yield chunk


async def _decompress(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    inflater = zlib.decompressobj(GZIP)
    complete = False
    try:
        async for chunk in chunks:
            while chunk:
                yield inflater.decompress(chunk, CHUNK)
                complete, chunk = inflater.eof, inflater.unconsumed_tail
                if complete:
                    chunk = inflater.unused_data
                    inflater = zlib.decompressobj(GZIP)
    except zlib.error as error:
        raise RpcError("invalid_argument", f"the upload is not gzip: {error}") from error
    if not complete:
        raise RpcError("invalid_argument", "the gzip upload is cut off")


async def _multipart(
    chunks: AsyncIterator[bytes], boundary: bytes, path: str
) -> AsyncIterator[Piece]:
    """The parts named `file`; each is named by its file name unless the request has a `path`."""
    parts = _FileParts(boundary, path)
    try:
        async for chunk in chunks:
            for piece in parts.feed(chunk):
                yield piece
        parts.finish()
    except FormParserError as error:
        raise RpcError("invalid_argument", f"the multipart upload is broken: {error}") from error


class _FileParts:
    """Collects what the parser calls back with, chunk by chunk."""

    def __init__(self, boundary: bytes, path: str) -> None:
        self._path = path
        self._pieces: list[Piece] = []
        self._headers: dict[bytes, bytes] = {}
        self._name = b""
        self._value = b""
        self._is_file = False
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_end": self._end,
            },
        )

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        self._parser.write(chunk)
        pieces, self._pieces = self._pieces, []
        return iter(pieces)

    def finish(self) -> None:
        if not self._ended:
            raise FormParserError("the last boundary is missing")

    def _begin(self) -> None:
        self._headers = {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._is_file = options.get(b"name") == b"file"
        if self._is_file:
            name = self._path or options.get(b"filename", b"").decode("utf-8", "replace")
            self._pieces.append(FileStart(name))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        self._ended = True
