"""The arguments for bubblewrap as plain data: the rules that keep a box closed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from e2b_agent_mcp.engine.isolation.bubblewrap import (
    Bind,
    BoxSpec,
    HostTree,
    build_arguments,
    build_command,
    build_environment,
    build_outer_arguments,
    read_host_tree,
)
from e2b_agent_mcp.engine.isolation.limits import Limits

MERGED = HostTree(links=(("usr/bin", "/bin"), ("usr/lib", "/lib")))
WITH_ARGUMENT = {
    "--uid": 1,
    "--gid": 1,
    "--hostname": 1,
    "--cap-drop": 1,
    "--ro-bind": 2,
    "--bind": 2,
    "--symlink": 2,
    "--proc": 1,
    "--dev": 1,
    "--size": 1,
    "--perms": 1,
    "--tmpfs": 1,
    "--dir": 1,
    "--remount-ro": 1,
    "--chdir": 1,
}
MOUNTS = {"--ro-bind": 1, "--bind": 1, "--tmpfs": 0, "--proc": 0, "--dev": 0}


@dataclass(frozen=True)
class PlainTemplate:
    binds: tuple[Bind, ...] = (
        Bind(Path("/cache/etc"), "/etc"),
        Bind(Path("/cache/site"), "/opt/e2b/site"),
    )
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/bin"})
    command: tuple[str, ...] = ("/usr/bin/python3", "/opt/e2b/boot.py")


def box(**changes: object) -> BoxSpec:
    plain: dict[str, object] = {
        "sandbox_id": "i1",
        "home": Path("/homes/i1"),
        "template": PlainTemplate(),
    }
    return BoxSpec(**plain | changes)  # type: ignore[arg-type]


def options(spec: BoxSpec, tree: HostTree = MERGED) -> list[tuple[str, ...]]:
    """Each option with its arguments."""
    words = build_arguments(spec, tree, disable_userns=True)
    found = []
    while words:
        count = WITH_ARGUMENT.get(words[0], 0)
        found.append(tuple(words[: count + 1]))
        words = words[count + 1 :]
    return found


def mounts(spec: BoxSpec) -> list[str]:
    return [option[1 + MOUNTS[option[0]]] for option in options(spec) if option[0] in MOUNTS]


def test_the_home_is_the_last_mount_and_the_only_writable_bind() -> None:
    spec = box(egress_dir=Path("/run/x"))

    assert mounts(spec)[-1] == "/home/user"
    assert [o for o in options(spec) if o[0] == "--bind"] == [("--bind", "/homes/i1", "/home/user")]


def test_nothing_is_mounted_below_the_home() -> None:
    """bubblewrap would follow a symlink that the sandbox left there (GHSA-pxhw-h44j-8pfx)."""
    template = PlainTemplate(binds=(Bind(Path("/x"), "/home/user/.venv"),))

    with pytest.raises(ValueError, match="below the home"):
        options(box(template=template))
    assert [m for m in mounts(box()) if m.startswith("/home/user/")] == []


def test_every_namespace_is_new_and_no_more_can_be_made() -> None:
    names = {option[0] for option in options(box())}

    assert names >= {
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--disable-userns",
        "--assert-userns-disabled",
        "--new-session",
    }
    assert ("--cap-drop", "ALL") in options(box())
    assert "--share-net" not in names


def test_the_root_and_dev_become_read_only_after_they_are_filled() -> None:
    names = [option for option in options(box()) if option[0] in {*MOUNTS, "--remount-ro", "--dir"}]
    root = names.index(("--remount-ro", "/"))

    assert names[root:] == [("--remount-ro", "/"), ("--bind", "/homes/i1", "/home/user")]
    assert names.index(("--remount-ro", "/dev")) > names.index(("--tmpfs", "/dev/shm"))


def test_every_memory_filesystem_has_a_size() -> None:
    listed = options(box(limits=Limits(tmp_mb=1, shm_mb=2)))
    sized = {
        option[1]: [o[1] for o in listed[max(0, i - 2) : i] if o[0] == "--size"]
        for i, option in enumerate(listed)
        if option[0] == "--tmpfs"
    }

    assert sized == {"/dev/shm": ["2097152"], "/tmp": ["1048576"]}


def test_the_environment_is_only_what_was_given() -> None:
    assert build_environment(box(env={"PATH": "/mine"})) == {
        "PATH": "/mine",
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
    }


def test_proxies_are_named_only_where_there_is_a_way_out() -> None:
    with_network = build_environment(box(egress_dir=Path("/n")))
    without = build_environment(box())

    assert with_network.keys() - without.keys() == {
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "no_proxy",
        "NO_PROXY",
    }
    assert "/run/egress" not in mounts(box())


def test_the_guest_is_told_its_limits_and_no_secret() -> None:
    command = build_command(box(limits=Limits(max_processes=7)), "6.1.0")

    assert command[:3] == ["/usr/bin/python3", "/opt/e2b/boot.py", "--limits"]
    assert json.loads(command[command.index("--limits") + 1])["NPROC"] == 7


@pytest.mark.parametrize(
    ("kernel", "counted"), [("5.13.0", False), ("5.14.0-x", True), ("?", False)]
)
def test_processes_are_limited_where_the_kernel_counts_them_per_box(
    kernel: str, counted: bool
) -> None:
    assert ("NPROC" in json.loads(Limits().to_json(kernel))) is counted


def test_both_layouts_of_the_hosts_root_are_rebuilt(tmp_path: Path) -> None:
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "lib").mkdir()

    tree = read_host_tree(tmp_path)

    assert tree == HostTree(links=(("usr/bin", "/bin"),), folders=("/lib",))
    assert ("--symlink", "usr/bin", "/bin") in options(box(), tree)
    assert ("--ro-bind", "/lib", "/lib") in options(box(), tree)


def test_the_outer_box_can_write_to_nothing_but_the_homes() -> None:
    words = build_outer_arguments(
        PlainTemplate(), MERGED, {"/run/engine": Path("/sockets")}, Path("/homes")
    )

    binds = [words[i + 1 : i + 3] for i, word in enumerate(words) if word == "--bind"]
    assert binds == [["/homes", "/run/homes"]]
    assert words.index("--bind") > max(i for i, word in enumerate(words) if word == "--remount-ro")
