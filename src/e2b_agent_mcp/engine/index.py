"""Which package index the host is configured for, told to uv on the host and to pip in a box.

A box installs from where its host installs: corporate mirrors, folders and certificates are
taken from pip's and uv's own settings. Credentials in them stay on the host: a box gets the
same URLs without user and password, so an index that demands them is of no use inside.
"""

from __future__ import annotations

import base64
import configparser
import html
import http.client
import os
import re
import ssl
import tomllib
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

PYPI = "https://pypi.org/simple"
# Where indexes keep their files when that is another host than the index itself.
FILE_HOSTS = {"pypi.org": "files.pythonhosted.org", "test.pypi.org": "test-files.pythonhosted.org"}

BOX_CONSTRAINTS = "/etc/pip/constraints.txt"
BOX_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
SYSTEM_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
LINKING_PAGES = 2000  # pages of a local index that are searched for the folders of its files

# Every index that a template can be made from has one of these.
KNOWN_PROJECTS = ("ipykernel", "pip", "anyio")
ASK_TIMEOUT = 10.0  # seconds
LARGEST_PAGE = 8 * 1024 * 1024  # bytes

_HREF = re.compile(r"""<a\b[^>]*?\bhref\s*=\s*["']([^"']+)""", re.IGNORECASE)


class Endpoint(NamedTuple):
    """Where a box may connect although the address is not public."""

    host: str
    port: int


@dataclass(frozen=True, kw_only=True)
class PackageIndex:
    """`index_url` None is PyPI. URLs may carry credentials: only `box_*` may enter a box."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    no_index: bool = False
    constraints: tuple[Path, ...] = ()
    certificates: Path | None = None
    trusted_hosts: tuple[str, ...] = ()

    def uv_environment(self) -> dict[str, str]:
        """What uv needs on the host; by environment, since an argv is readable by everyone."""
        found = {
            "UV_NO_CONFIG": "1",
            # pip takes the best version of all its indexes; a host set up for pip expects that.
            "UV_INDEX_STRATEGY": "unsafe-best-match",
            "UV_DEFAULT_INDEX": self.index_url or "",
            "UV_INDEX": " ".join(self.extra_index_urls),
            "UV_FIND_LINKS": ",".join(self.find_links),
            "UV_CONSTRAINT": " ".join(map(str, self.constraints)),
            "UV_INSECURE_HOST": " ".join(self.trusted_hosts),
            "SSL_CERT_FILE": str(self.certificates or ""),
        }
        return {name: value for name, value in found.items() if value}

    def uv_arguments(self) -> list[str]:
        return ["--no-index"] if self.no_index else []

    def box_environment(self) -> dict[str, str]:
        """The same for pip in a box."""
        found = {
            "PIP_INDEX_URL": _without_credentials(self.index_url or ""),
            "PIP_EXTRA_INDEX_URL": " ".join(map(_without_credentials, self.extra_index_urls)),
            "PIP_FIND_LINKS": " ".join(map(_without_credentials, self.find_links)),
            "PIP_NO_INDEX": "1" if self.no_index else "",
            "PIP_CONSTRAINT": BOX_CONSTRAINTS if self.constraints else "",
            "PIP_TRUSTED_HOST": " ".join(self.trusted_hosts),
        }
        return {name: value for name, value in found.items() if value}

    def endpoints(self) -> frozenset[Endpoint]:
        """The index's hosts: often an intranet address, which the egress refuses otherwise."""
        default = [] if self.no_index else [self.index_url or PYPI]
        urls = [*default, *self.extra_index_urls, *self.find_links]
        return frozenset(_endpoints(urls))

    def unknown_file_hosts(self) -> tuple[str, ...]:
        """Indexes of which only their own pages tell where their files are."""
        urls = [url for url in (self.index_url, *self.extra_index_urls) if url]
        parts = [(url, urlsplit(url)) for url in urls]
        return tuple(
            url
            for url, part in parts
            if part.scheme in {"http", "https"} and part.hostname not in FILE_HOSTS
        )

    def folders(self) -> tuple[Path, ...]:
        """Folders of the host that hold packages; a box sees them at the same path."""
        return tuple(_outermost(self._local_folders()))

    def certificate_bundle(self) -> Path | None:
        """The authorities a box trusts: those the host's own pip trusts."""
        candidates = [self.certificates, *map(Path, SYSTEM_CERTIFICATES)]
        return next((path for path in candidates if path and path.is_file()), None)

    def _local_folders(self) -> Iterator[Path]:
        for place in self.find_links:
            if folder := _local(place):
                yield folder if folder.is_dir() else folder.parent
        for url in (self.index_url, *self.extra_index_urls):
            if url and (folder := _local(url)):
                yield folder
                yield from _linked_folders(folder)


def find_file_hosts(index: PackageIndex) -> frozenset[Endpoint]:
    """Asks the indexes where their files are: often on another host. Takes seconds; never fails."""
    found: set[Endpoint] = set()
    for url in index.unknown_file_hosts():
        for project in KNOWN_PROJECTS:
            try:
                page, at = _read_page(f"{url.rstrip('/')}/{project}/", index)
            except (OSError, ValueError, http.client.HTTPException):
                continue
            links = (urljoin(at, html.unescape(link)) for link in _HREF.findall(page))
            found.update(_endpoints(links))
            break
    return frozenset(found)


def _read_page(url: str, index: PackageIndex) -> tuple[str, str]:
    """The page and where it was in the end."""
    parts = urlsplit(url)
    # http or https: `unknown_file_hosts` names no other.
    request = urllib.request.Request(  # noqa: S310
        _without_credentials(url), headers={"Accept": "text/html"}
    )
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        # Not to where a redirect leads.
        value = f"Basic {base64.b64encode(secret).decode()}"
        request.add_unredirected_header("Authorization", value)
    trusted = {host.partition(":")[0] for host in index.trusted_hosts}
    context = ssl.create_default_context(cafile=index.certificates)
    if parts.hostname in trusted:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opened = urllib.request.urlopen(request, timeout=ASK_TIMEOUT, context=context)  # noqa: S310
    with opened as answer:
        return answer.read(LARGEST_PAGE).decode("utf-8", "replace"), answer.url


def read_package_index(environ: Mapping[str, str], prefix: Path) -> PackageIndex:
    """Reads pip's and uv's files and variables; uv's own default index wins over pip's.

    `prefix` is the interpreter's, whose `pip.conf` counts too.
    """
    pip = _pip_options(environ, prefix)
    uv = _uv_options(environ)
    certificates = pip.get("cert") or environ.get("SSL_CERT_FILE")
    constraints = _words(pip.get("constraint")) + _words(environ.get("UV_CONSTRAINT"))
    return PackageIndex(
        index_url=uv.index_url or pip.get("index-url") or None,
        extra_index_urls=_distinct(uv.extra_index_urls + _words(pip.get("extra-index-url"))),
        find_links=_distinct(uv.find_links + _words(pip.get("find-links"))),
        no_index=uv.no_index or _is_true(pip.get("no-index")),
        constraints=tuple(path for path in map(Path, _distinct(constraints)) if path.is_file()),
        certificates=Path(certificates) if certificates else None,
        trusted_hosts=_distinct(_words(pip.get("trusted-host"))),
    )


# ---------------------------------------------------------------- pip's settings


def _pip_options(environ: Mapping[str, str], prefix: Path) -> dict[str, str]:
    """Merged as pip does: machine, user, interpreter, PIP_CONFIG_FILE, then variables."""
    options: dict[str, str] = {}
    for section in ("global", "install"):
        for path in _pip_files(environ, prefix):
            options.update(_ini_section(path, section))
    for name, value in environ.items():
        if name.startswith("PIP_") and value:
            options[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return options


def _pip_files(environ: Mapping[str, str], prefix: Path) -> list[Path]:
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:  # pip's way to say: read no file at all
        return []
    home = Path(environ.get("HOME") or "/nonexistent")
    shared = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    own = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    return [
        *(Path(folder) / "pip/pip.conf" for folder in reversed(shared)),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        own / "pip/pip.conf",
        prefix / "pip.conf",
        *([Path(named)] if named else []),
    ]


def _ini_section(path: Path, section: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read(path, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError, OSError):
        return {}
    if not parser.has_section(section):
        return {}
    return {name.replace("_", "-"): value for name, value in parser.items(section)}


# ---------------------------------------------------------------- uv's settings


@dataclass(frozen=True)
class _UvOptions:
    index_url: str | None
    extra_index_urls: tuple[str, ...]
    find_links: tuple[str, ...]
    no_index: bool


def _uv_options(environ: Mapping[str, str]) -> _UvOptions:
    default = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
    extra = _words(environ.get("UV_INDEX")) + _words(environ.get("UV_EXTRA_INDEX_URL"))
    links = tuple(filter(None, (environ.get("UV_FIND_LINKS") or "").split(",")))
    no_index = False
    for table in _uv_tables(environ):
        default = default or _default_index(table)
        extra += _strings(table.get("extra-index-url")) + _other_indexes(table)
        links += _strings(table.get("find-links"))
        no_index = no_index or table.get("no-index") is True
    return _UvOptions(_url(default) if default else None, tuple(map(_url, extra)), links, no_index)


def _uv_tables(environ: Mapping[str, str]) -> Iterator[dict[str, object]]:
    """The user's file before the machine's, and in each the `[pip]` table first."""
    if _is_true(environ.get("UV_NO_CONFIG")):
        return
    named = environ.get("UV_CONFIG_FILE")
    home = Path(environ.get("HOME") or "/nonexistent")
    own = Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "uv/uv.toml"
    for path in [Path(named)] if named else [own, Path("/etc/uv/uv.toml")]:
        try:
            whole = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(pip := whole.get("pip"), dict):
            yield pip
        yield whole


def _default_index(table: Mapping[str, object]) -> str | None:
    for entry in _index_entries(table):
        if entry.get("default") is True:
            return str(entry["url"])
    url = table.get("index-url")
    return url if isinstance(url, str) else None


def _other_indexes(table: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(
        str(entry["url"])
        for entry in _index_entries(table)
        if entry.get("default") is not True and entry.get("explicit") is not True
    )


def _index_entries(table: Mapping[str, object]) -> list[dict[str, object]]:
    entries = table.get("index")
    if not isinstance(entries, list):
        return []
    return [entry for entry in entries if isinstance(entry, dict) and "url" in entry]


def _url(written: str) -> str:
    """uv allows `name=url`."""
    return re.sub(r"^[\w.-]+=(?=[a-z+]+://|/)", "", written)


# ---------------------------------------------------------------- pieces


def _words(text: str | None) -> tuple[str, ...]:
    return tuple((text or "").split())


def _strings(value: object) -> tuple[str, ...]:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _distinct(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _is_true(text: str | None) -> bool:
    return (text or "").lower() in {"1", "true", "yes", "on"}


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    if not parts.scheme or "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _endpoints(urls: Iterable[str]) -> Iterator[Endpoint]:
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            continue
        port = parts.port or (80 if parts.scheme == "http" else 443)
        yield Endpoint(parts.hostname, port)
        if parts.hostname in FILE_HOSTS:
            yield Endpoint(FILE_HOSTS[parts.hostname], port)


def _local(place: str) -> Path | None:
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(place).absolute() if not parts.scheme else None


def _linked_folders(index: Path) -> set[Path]:
    """Folders that hold the files which a local index links to."""
    found: set[Path] = set()
    pages = sorted(index.glob("*/index.html"))[:LINKING_PAGES]
    for page in pages:
        text = page.read_text(encoding="utf-8", errors="replace")
        for link in _HREF.findall(text):
            target = _local(urldefrag(urljoin(page.as_uri(), link)).url)
            if target is not None:
                found.add(target.parent)
    return found


def _outermost(folders: Iterable[Path]) -> Iterator[Path]:
    """Without the root folder, what is not there, and what lies below another."""
    kept: list[Path] = []
    for folder in sorted(set(folders)):
        if folder == Path("/") or not folder.is_dir():
            continue
        if not any(folder.is_relative_to(outer) for outer in kept):
            kept.append(folder)
    yield from kept
