"""Where the host installs packages from, and what of that a box is told."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from e2b_agent_mcp.engine.index import PackageIndex, find_file_hosts, read_package_index

if TYPE_CHECKING:
    from pathlib import Path

WITH_SECRET = "https://user:secret@index.corp/simple"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A host whose only configuration is below `tmp_path`."""
    return {
        "HOME": str(tmp_path / "home"),
        "XDG_CONFIG_HOME": str(tmp_path / "own"),
        "XDG_CONFIG_DIRS": str(tmp_path / "machine"),
        "PIP_CONFIG_FILE": "",
        "UV_NO_CONFIG": "",
        "UV_CONFIG_FILE": str(tmp_path / "own/uv/uv.toml"),
    }


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(environ: dict[str, str], tmp_path: Path, **variables: str) -> PackageIndex:
    return read_package_index(environ | variables, tmp_path / "prefix")


def test_the_files_of_machine_user_and_interpreter_override_each_other(
    environ: dict[str, str], tmp_path: Path
) -> None:
    write(
        tmp_path / "machine/pip/pip.conf",
        "[global]\nindex-url = https://machine/simple\nextra-index-url = https://a https://b\n"
        "trusted-host = machine\n",
    )
    write(tmp_path / "own/pip/pip.conf", "[global]\nindex_url = https://own/simple\n")
    write(
        tmp_path / "prefix/pip.conf", "[install]\nfind-links = \n    https://f/1\n    https://f/2\n"
    )

    index = read(environ, tmp_path)

    assert index.index_url == "https://own/simple"
    assert index.extra_index_urls == ("https://a", "https://b")
    assert index.find_links == ("https://f/1", "https://f/2")
    assert index.trusted_hosts == ("machine",)


def test_variables_override_files_and_the_install_section_the_global_one(
    environ: dict[str, str], tmp_path: Path
) -> None:
    write(
        tmp_path / "own/pip/pip.conf",
        "[install]\nindex-url = https://install\nno-index = true\n"
        "[global]\nindex-url = https://global\n",
    )

    assert read(environ, tmp_path).index_url == "https://install"
    assert read(environ, tmp_path).no_index
    assert read(environ, tmp_path, PIP_INDEX_URL="https://env").index_url == "https://env"


def test_pip_can_be_told_to_read_no_file(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "own/pip/pip.conf", "[global]\nindex-url = https://own/simple\n")

    assert read(environ, tmp_path, PIP_CONFIG_FILE="/dev/null").index_url is None


def test_a_broken_file_is_skipped(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "own/pip/pip.conf", "index-url = no section\n")
    write(tmp_path / "own/uv/uv.toml", "not toml")

    assert read(environ, tmp_path, PIP_CERT="") == PackageIndex(
        certificates=read(environ, tmp_path).certificates
    )


def test_uvs_default_index_wins_and_its_other_sources_add_up(
    environ: dict[str, str], tmp_path: Path
) -> None:
    write(
        tmp_path / "own/uv/uv.toml",
        """
        find-links = ["https://f/uv"]
        [[index]]
        url = "https://default/simple"
        default = true
        [[index]]
        name = "more"
        url = "https://more/simple"
        [[index]]
        name = "torch"
        url = "https://torch/simple"
        explicit = true
        """,
    )

    index = read(
        environ,
        tmp_path,
        PIP_INDEX_URL="https://pip/simple",
        PIP_EXTRA_INDEX_URL="https://pip-more/simple https://more/simple",
        UV_INDEX="named=https://named/simple",
    )

    assert index.index_url == "https://default/simple"
    assert index.extra_index_urls == (
        "https://named/simple",
        "https://more/simple",
        "https://pip-more/simple",
    )
    assert index.find_links == ("https://f/uv",)


def test_uvs_variables_win_over_its_file(environ: dict[str, str], tmp_path: Path) -> None:
    write(tmp_path / "own/uv/uv.toml", 'index-url = "https://file/simple"')

    assert read(environ, tmp_path).index_url == "https://file/simple"
    assert read(environ, tmp_path, UV_DEFAULT_INDEX="https://v/s").index_url == "https://v/s"
    assert read(environ, tmp_path, UV_NO_CONFIG="1").index_url is None


def test_credentials_reach_uv_but_no_box() -> None:
    index = PackageIndex(
        index_url=WITH_SECRET, extra_index_urls=(WITH_SECRET,), find_links=(WITH_SECRET,)
    )

    assert index.uv_environment()["UV_DEFAULT_INDEX"] == WITH_SECRET
    assert "secret" not in " ".join(index.uv_arguments())
    assert index.box_environment() == {
        "PIP_INDEX_URL": "https://index.corp/simple",
        "PIP_EXTRA_INDEX_URL": "https://index.corp/simple",
        "PIP_FIND_LINKS": "https://index.corp/simple",
    }


@pytest.mark.parametrize(
    ("index", "endpoints"),
    [
        pytest.param(
            PackageIndex(), {("pypi.org", 443), ("files.pythonhosted.org", 443)}, id="PyPI"
        ),
        pytest.param(
            PackageIndex(index_url="http://Index.Corp:8080/simple"),
            {("index.corp", 8080)},
            id="another port",
        ),
        pytest.param(
            PackageIndex(no_index=True, find_links=("https://f/x", "/srv/wheels")),
            {("f", 443)},
            id="no index",
        ),
        pytest.param(PackageIndex(index_url="file:///srv/simple"), set(), id="folder"),
    ],
)
def test_the_endpoints_are_those_of_the_configured_urls(
    index: PackageIndex, endpoints: set[tuple[str, int]]
) -> None:
    assert index.endpoints() == endpoints


class _Index(BaseHTTPRequestHandler):
    """Knows one project, for who logs in."""

    def do_GET(self) -> None:
        known = self.path == "/simple/pip/"
        allowed = self.headers.get("Authorization") == "Basic dTpw"
        self.send_response((200 if allowed else 401) if known else 404)
        self.end_headers()
        if known and allowed:
            self.wfile.write(
                b'<a href="https://files.corp:8443/a.whl#x">a</a>'
                b'<a href="../../files/b.whl">b</a><a href="ftp://other/c.whl">c</a>'
            )

    def log_message(self, *args: object) -> None:
        pass


def test_an_index_is_asked_where_its_files_are() -> None:
    with HTTPServer(("127.0.0.1", 0), _Index) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        port = server.server_port
        try:
            url = f"http://u:p@127.0.0.1:{port}/simple/"
            found = find_file_hosts(PackageIndex(index_url=url))
            refused = find_file_hosts(PackageIndex(index_url=url.replace("u:p", "u:q")))
        finally:
            server.shutdown()
            thread.join()
    assert found == {("files.corp", 8443), ("127.0.0.1", port)}
    assert refused == find_file_hosts(PackageIndex(index_url="https://pypi.org/simple")) == set()


def test_a_local_index_shows_its_pages_and_the_files_they_link_to(tmp_path: Path) -> None:
    write(
        tmp_path / "index/simple/six/index.html",
        '<a href="../../files/six-1.whl#sha256=0">x</a> <A HREF="https://h/six-2.whl">y</A>',
    )
    (tmp_path / "index/files").mkdir()
    (tmp_path / "wheels/inner").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    index = PackageIndex(
        index_url=(tmp_path / "index/simple").as_uri(),
        find_links=(str(tmp_path / "wheels"), str(tmp_path / "wheels/inner"), "/"),
    )

    assert index.folders() == (
        tmp_path / "index/files",
        tmp_path / "index/simple",
        tmp_path / "wheels",
    )


def test_constraints_of_pip_and_uv_are_both_kept(environ: dict[str, str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, f"{name}<2\n")

    index = read(
        environ,
        tmp_path,
        PIP_CONSTRAINT=f"{tmp_path}/a {tmp_path}/missing",
        UV_CONSTRAINT=f"{tmp_path}/b",
    )

    assert index.constraints == (tmp_path / "a", tmp_path / "b")
    assert index.box_environment()["PIP_CONSTRAINT"] == "/etc/pip/constraints.txt"
