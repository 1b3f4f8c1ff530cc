"""What the SDK's `files` does, seen through the SDK."""

import gzip
import io
from collections.abc import AsyncIterator

import anyio
import pytest
from e2b import (
    AuthenticationException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    NotEnoughSpaceException,
)
from e2b_code_interpreter import E2B, AsyncSandbox

MEGABYTE = 1024 * 1024


async def home_of(sandbox: AsyncSandbox) -> str:
    return (await sandbox.commands.run("cd && pwd")).stdout.strip()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="empty"),
        pytest.param("naïve ✓\r\n\n", id="text"),
        pytest.param(bytes(range(256)) * 10, id="every byte"),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="multipart"),
        pytest.param({"use_octet_stream": True}, id="octet stream"),
        pytest.param({"gzip": True}, id="gzip"),
    ],
)
async def test_what_is_written_is_read_back(
    sandbox: AsyncSandbox, data: str | bytes, options: dict[str, bool]
) -> None:
    octets = data.encode() if isinstance(data, str) else data
    await sandbox.files.write("file", data, **options)
    assert await sandbox.files.read("file", format="bytes") == octets
    assert await sandbox.files.read("file", format="bytes", gzip=True) == octets


async def test_a_path_is_relative_to_the_home(sandbox: AsyncSandbox) -> None:
    home = await home_of(sandbox)
    written = await sandbox.files.write("~/deep/er/../file.txt", "x")
    assert (written.path, written.name) == (f"{home}/deep/file.txt", "file.txt")
    assert written.type is FileType.FILE
    for same in ("deep/file.txt", "./deep//file.txt", f"{home}/deep/file.txt"):
        assert await sandbox.files.read(same) == "x"


async def test_writing_again_replaces_the_content_and_keeps_the_mode(
    sandbox: AsyncSandbox,
) -> None:
    await sandbox.files.write("script", "a longer content")
    await sandbox.commands.run("chmod 750 script")
    await sandbox.files.write("script", "short")
    assert await sandbox.files.read("script") == "short"
    assert (await sandbox.files.get_info("script")).permissions == "-rwxr-x---"


@pytest.mark.parametrize("octet_stream", [False, True])
async def test_several_files_are_written_at_once(sandbox: AsyncSandbox, octet_stream: bool) -> None:
    written = await sandbox.files.write_files(
        [{"path": "some/a.txt", "data": "A"}, {"path": "some/ü b.bin", "data": b"\x00\xff"}],
        use_octet_stream=octet_stream,
    )
    assert [entry.name for entry in written] == ["a.txt", "ü b.bin"]
    assert await sandbox.files.read("some/a.txt") == "A"
    assert await sandbox.files.read("some/ü b.bin", format="bytes") == b"\x00\xff"


async def test_one_path_twice_in_one_upload_is_refused(sandbox: AsyncSandbox) -> None:
    with pytest.raises(InvalidArgumentException, match="twice"):
        await sandbox.files.write_files(
            [{"path": "same", "data": "1"}, {"path": "./same", "data": "2"}]
        )


async def test_a_large_file_streams_both_ways_without_being_held_in_memory(
    sandbox: AsyncSandbox,
) -> None:
    block = bytes(range(256)) * 4096

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield block

    before = await guest_memory(sandbox)
    await sandbox.files.write("large", blocks())
    received = 0
    async with await sandbox.files.read("large", format="stream") as stream:
        async for chunk in stream:
            received += len(chunk)
    assert received == 100 * MEGABYTE
    assert await guest_memory(sandbox) - before < 30 * MEGABYTE


async def guest_memory(sandbox: AsyncSandbox) -> int:
    """The most memory that the parent of a command, the guest, ever held."""
    result = await sandbox.commands.run("grep VmHWM /proc/$PPID/status")
    return int(result.stdout.split()[1]) * 1024


async def test_a_file_object_is_uploaded(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("file", io.BytesIO(b"from a file object"))
    assert await sandbox.files.read("file") == "from a file object"


async def test_a_broken_gzip_upload_is_refused(sandbox: AsyncSandbox) -> None:
    cut = gzip.compress(b"x" * 1000)[:-4]

    async def body() -> AsyncIterator[bytes]:
        yield cut

    response = await sandbox._envd_api.post(
        "/files",
        params={"path": "file"},
        content=body(),
        headers={"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"},
    )
    assert response.status_code == 400
    assert response.json() == {"code": 400, "message": "the gzip upload is cut off"}


async def test_files_of_proc_have_content_though_their_size_is_zero(
    sandbox: AsyncSandbox,
) -> None:
    assert "Name:" in await sandbox.files.read("/proc/self/status")


@pytest.mark.parametrize(
    ("path", "on_read", "on_write"),
    [
        pytest.param("directory", InvalidArgumentException, InvalidArgumentException, id="dir"),
        pytest.param("pipe", InvalidArgumentException, InvalidArgumentException, id="named pipe"),
        pytest.param("file/below", FileNotFoundException, InvalidArgumentException, id="below"),
        pytest.param("a\0b", InvalidArgumentException, InvalidArgumentException, id="no path"),
    ],
)
async def test_what_is_not_a_file_is_refused(
    sandbox: AsyncSandbox, path: str, on_read: type[Exception], on_write: type[Exception]
) -> None:
    await sandbox.commands.run("mkdir directory; mkfifo pipe; touch file")
    with pytest.raises(on_read):
        await sandbox.files.read(path)
    with pytest.raises(on_write):
        await sandbox.files.write(path, "x")


async def test_a_missing_file_is_named_in_the_message(sandbox: AsyncSandbox) -> None:
    home = await home_of(sandbox)
    with pytest.raises(FileNotFoundException) as raised:
        await sandbox.files.read("missing")
    assert str(raised.value) == f"path '{home}/missing' does not exist"


@pytest.mark.parametrize("user", ["user", "root"])
async def test_both_users_of_the_sandbox_are_accepted(sandbox: AsyncSandbox, user: str) -> None:
    await sandbox.files.write("file", "x", user=user)
    assert await sandbox.files.read("file", user=user) == "x"
    assert await sandbox.files.exists("file", user=user)


async def test_an_unknown_user_is_refused(sandbox: AsyncSandbox) -> None:
    with pytest.raises(AuthenticationException):
        await sandbox.files.read("file", user="nobody-here")
    with pytest.raises(AuthenticationException):
        await sandbox.files.list("", user="nobody-here")


async def test_list_is_in_the_order_of_names_and_as_deep_as_asked(
    sandbox: AsyncSandbox,
) -> None:
    home = await home_of(sandbox)
    await sandbox.commands.run("mkdir -p tree/b/c && touch tree/z tree/a tree/b/c/deep")
    assert [entry.name for entry in await sandbox.files.list("tree")] == ["a", "b", "z"]
    deep = await sandbox.files.list("tree", depth=3)
    assert [entry.path.removeprefix(f"{home}/tree/") for entry in deep] == [
        "a",
        "b",
        "b/c",
        "b/c/deep",
        "z",
    ]
    assert [entry.type for entry in deep] == [
        FileType.FILE,
        FileType.DIR,
        FileType.DIR,
        FileType.FILE,
        FileType.FILE,
    ]


async def test_a_folder_of_many_files_is_listed_while_code_runs(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run("mkdir many && cd many && seq 20000 | xargs touch")
    listed, ran = anyio.Event(), 0

    async def list_all() -> None:
        assert len(await sandbox.files.list("many", request_timeout=60)) == 20_000
        listed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(list_all)
        while not listed.is_set():
            await sandbox.run_code("1")
            ran += not listed.is_set()
    assert ran


async def test_list_of_what_is_no_directory(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("file", "")
    with pytest.raises(FileNotFoundException):
        await sandbox.files.list("missing")
    with pytest.raises(InvalidArgumentException):
        await sandbox.files.list("file")


async def test_info_of_a_file(sandbox: AsyncSandbox) -> None:
    home = await home_of(sandbox)
    await sandbox.files.write("file", "12345")
    await sandbox.commands.run("chmod 640 file; touch -d '2024-02-03T04:05:06.5Z' file")
    info = await sandbox.files.get_info("file")
    assert (info.name, info.path, info.type) == ("file", f"{home}/file", FileType.FILE)
    assert (info.size, info.mode, info.permissions) == (5, 0o640, "-rw-r-----")
    assert info.modified_time.isoformat() == "2024-02-03T04:05:06.500000+00:00"
    assert info.owner == info.group == (await sandbox.commands.run("id -un")).stdout.strip()
    assert info.symlink_target is None


async def test_modes_are_written_as_go_writes_them(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run(
        "mkdir modes; cd modes; mkdir -m 1777 sticky; mkfifo -m 600 pipe; touch set; chmod 6711 set"
    )
    found = {entry.name: entry.permissions for entry in await sandbox.files.list("modes")}
    assert found == {"pipe": "prw-------", "set": "ugrwx--x--x", "sticky": "dtrwxrwxrwx"}
    assert (await sandbox.files.get_info("/dev/null")).permissions == "Dcrw-rw-rw-"


async def test_the_root_has_a_name(sandbox: AsyncSandbox) -> None:
    assert (await sandbox.files.get_info("/")).name == "/"


@pytest.mark.parametrize(
    ("target", "resolved"),
    [
        pytest.param("file", "file", id="to a file"),
        pytest.param("directory", "directory", id="to a directory"),
        pytest.param("nowhere", "nowhere", id="to nothing"),
    ],
)
async def test_info_of_a_link(sandbox: AsyncSandbox, target: str, resolved: str) -> None:
    home = await home_of(sandbox)
    await sandbox.commands.run(f"mkdir directory; touch file; mkdir l; ln -s ../{target} l/link")
    info = await sandbox.files.get_info("l/link")
    assert (info.type, info.symlink_target) == (FileType.SYMLINK, f"{home}/{resolved}")
    assert info.permissions == "Lrwxrwxrwx"
    assert [entry.name for entry in await sandbox.files.list("l", depth=2)] == ["link"]


async def test_a_name_that_is_not_utf8_is_listed(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run(r"mkdir odd; touch odd/$'a\xffb'")
    assert [entry.name for entry in await sandbox.files.list("odd")] == ["a\ufffdb"]


async def test_metadata_is_stored_with_the_file(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("file", "x", metadata={"Origin": "a test", "n": "1"})
    info = await sandbox.files.get_info("file")
    if info.metadata is None:
        pytest.skip("this file system has no extended attributes")
    assert info.metadata == {"origin": "a test", "n": "1"}
    await sandbox.files.rename("file", "renamed")
    assert (await sandbox.files.list(""))[-1].metadata == info.metadata


async def test_metadata_that_is_too_long_to_keep_is_refused(sandbox: AsyncSandbox) -> None:
    with pytest.raises(InvalidArgumentException, match="metadata 'a' cannot be kept"):
        await sandbox.files.write("file", "x", metadata={"a": "b" * 100_000})
    assert (await sandbox.files.get_info("file")).size == 1


async def test_exists(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("file", "")
    assert await sandbox.files.exists("file")
    assert await sandbox.files.exists("~")
    assert not await sandbox.files.exists("missing")
    assert not await sandbox.files.exists("missing/too")
    assert not await sandbox.files.exists("file/below")


async def test_make_dir_makes_parents_and_says_if_it_was_there(sandbox: AsyncSandbox) -> None:
    assert await sandbox.files.make_dir("x/y/z") is True
    assert await sandbox.files.make_dir("x/y") is False
    await sandbox.files.write("file", "")
    with pytest.raises(InvalidArgumentException):
        await sandbox.files.make_dir("file")


async def test_remove_takes_files_and_whole_directories(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run(
        "mkdir -p tree/deep kept; touch tree/deep/file; ln -s ../kept tree/l"
    )
    await sandbox.files.remove("tree")
    await sandbox.files.remove("missing")
    assert not await sandbox.files.exists("tree")
    assert await sandbox.files.exists("kept")


@pytest.mark.parametrize("depth", [1500, 6000])
async def test_a_tree_deeper_than_pythons_stack_is_listed_and_removed(
    sandbox: AsyncSandbox, depth: int
) -> None:
    """The longest path has 4096 bytes: what lies deeper cannot be named in a list."""
    make = f"import os\nfor _ in range({depth}): os.mkdir('d'); os.chdir('d')"
    await sandbox.run_code(f"import os\nos.mkdir('tree'); os.chdir('tree')\n{make}")
    assert len(await sandbox.files.list("tree", depth=1400)) == 1400
    if depth < 2000:
        assert len(await sandbox.files.list("tree", depth=2000)) == depth
    else:
        with pytest.raises(InvalidArgumentException, match="too long"):
            await sandbox.files.list("tree", depth=depth)
    await sandbox.files.remove("tree")
    assert not await sandbox.files.exists("tree")


async def test_rename_moves_and_makes_the_directories_on_the_way(sandbox: AsyncSandbox) -> None:
    home = await home_of(sandbox)
    await sandbox.files.write("old", "content")
    info = await sandbox.files.rename("old", "new/place/file")
    assert (info.name, info.path) == ("file", f"{home}/new/place/file")
    assert await sandbox.files.read("new/place/file") == "content"
    assert not await sandbox.files.exists("old")


async def test_rename_crosses_file_systems(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run("mkdir -p /dev/shm/moved && echo content > /dev/shm/moved/file")
    await sandbox.files.rename("/dev/shm/moved", "here")
    assert await sandbox.files.read("here/file") == "content\n"
    assert not await sandbox.files.exists("/dev/shm/moved")


async def test_rename_of_a_missing_file(sandbox: AsyncSandbox) -> None:
    with pytest.raises(FileNotFoundException):
        await sandbox.files.rename("missing", "other/place")
    assert not await sandbox.files.exists("other")


async def test_a_full_disk_is_an_error_of_its_own(sandbox: AsyncSandbox) -> None:
    free = await sandbox.commands.run("df --output=avail -B1 /dev/shm | tail -1")
    block = bytes(MEGABYTE)

    async def too_much() -> AsyncIterator[bytes]:
        for _ in range(int(free.stdout) // MEGABYTE + 2):
            yield block

    with pytest.raises(NotEnoughSpaceException, match="No space left on device"):
        await sandbox.files.write("/dev/shm/file", too_much())


def test_the_sync_sdk_reads_and_writes_too(e2b: E2B) -> None:
    sandbox = e2b.Sandbox.create()
    sandbox.files.write("file", io.StringIO("text ✓"))
    with sandbox.files.read("file", format="stream") as stream:
        assert b"".join(stream) == "text ✓".encode()
    sandbox.kill()


async def test_many_files_at_once(sandbox: AsyncSandbox) -> None:
    async def round_trip(number: int) -> None:
        await sandbox.files.write(f"many/{number}", str(number))
        assert await sandbox.files.read(f"many/{number}") == str(number)

    async with anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(round_trip, number)
    assert len(await sandbox.files.list("many")) == 50


async def test_a_time_that_no_calendar_has_hides_no_file(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run("touch -d @100000000000000 /tmp/late; touch /tmp/now")
    listed = {entry.name: entry for entry in await sandbox.files.list("/tmp")}
    assert {"late", "now"} <= listed.keys()
    assert listed["late"].modified_time.year == 9999
