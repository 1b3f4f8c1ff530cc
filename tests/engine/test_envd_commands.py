"""What the SDK's `commands` does, seen through the SDK."""

import time

import anyio
import pytest
from e2b import (
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)
from e2b_code_interpreter import E2B, AsyncSandbox

MEGABYTE = 1024 * 1024


async def is_alive(sandbox: AsyncSandbox, pid: int | str) -> bool:
    command = f"kill -0 {pid} 2>/dev/null && ! grep -q 'State:.Z' /proc/{pid}/status && echo yes; :"
    return (await sandbox.commands.run(command)).stdout == "yes\n"


async def until_dead(sandbox: AsyncSandbox, pid: int | str) -> None:
    with anyio.fail_after(5):
        while await is_alive(sandbox, pid):
            await anyio.lowlevel.checkpoint()


async def test_stdout_and_stderr_come_apart(sandbox: AsyncSandbox) -> None:
    result = await sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
    assert result.error is None


async def test_output_reaches_the_callbacks_while_the_command_runs(
    sandbox: AsyncSandbox,
) -> None:
    first = anyio.Event()
    out: list[str] = []
    err: list[str] = []

    def on_stdout(text: str) -> None:
        out.append(text)
        first.set()

    command = "echo first; read line; echo $line; echo oops >&2"
    handle = await sandbox.commands.run(
        command, background=True, stdin=True, on_stdout=on_stdout, on_stderr=err.append
    )
    with anyio.fail_after(5):
        await first.wait()
    await handle.send_stdin("second\n")
    await handle.wait()
    assert ("".join(out), "".join(err)) == ("first\nsecond\n", "oops\n")


@pytest.mark.parametrize(
    ("command", "exit_code", "error"),
    [
        pytest.param("exit 3", 3, "exit status 3", id="exit code"),
        pytest.param("no-such-command", 127, "exit status 127", id="no such command"),
        pytest.param("kill -9 $$", -1, "signal: killed", id="killed"),
        pytest.param("kill -TERM $$", -1, "signal: terminated", id="terminated"),
    ],
)
async def test_a_failed_command_says_how_it_ended(
    sandbox: AsyncSandbox, command: str, exit_code: int, error: str
) -> None:
    with pytest.raises(CommandExitException) as raised:
        await sandbox.commands.run(f"echo before; {command}")
    assert (raised.value.exit_code, raised.value.error) == (exit_code, error)
    assert raised.value.stdout == "before\n"


async def test_large_output_arrives_whole_and_in_order(sandbox: AsyncSandbox) -> None:
    result = await sandbox.commands.run("seq 1000000")
    assert result.stdout == "".join(f"{number}\n" for number in range(1, 1_000_001))


async def test_a_slow_reader_loses_nothing(sandbox: AsyncSandbox) -> None:
    received = 0

    async def on_stdout(text: str) -> None:
        nonlocal received
        await anyio.lowlevel.checkpoint()
        received += len(text)

    await sandbox.commands.run(f"head -c {20 * MEGABYTE} /dev/zero", on_stdout=on_stdout)
    assert received == 20 * MEGABYTE


async def test_characters_cut_by_a_chunk_are_put_together(sandbox: AsyncSandbox) -> None:
    result = await sandbox.commands.run("for i in $(seq 30000); do printf 'a✓'; done")
    assert result.stdout == "a✓" * 30000


async def test_variables_of_the_request_win(sandbox: AsyncSandbox) -> None:
    command = "echo $MINE $HOME $USER"
    home = (await sandbox.commands.run("cd; pwd")).stdout.strip()
    result = await sandbox.commands.run(command, envs={"MINE": "a b", "USER": "other"})
    assert result.stdout == f"a b {home} other\n"


async def test_programs_know_which_sandbox_they_are_in(sandbox: AsyncSandbox) -> None:
    told = f"true {sandbox.sandbox_id} code-interpreter-v1"
    names = ("E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID")
    result = await sandbox.commands.run("echo " + " ".join(f"${name}" for name in names))
    assert result.stdout == f"{told}\n"
    code = f"import os; ' '.join(os.environ[name] for name in {names})"
    assert (await sandbox.run_code(code)).text == told


async def test_cwd_is_the_home_unless_given(sandbox: AsyncSandbox) -> None:
    home = (await sandbox.commands.run("cd; pwd")).stdout
    assert (await sandbox.commands.run("pwd")).stdout == home
    assert (await sandbox.commands.run("pwd", cwd="/tmp")).stdout == "/tmp\n"
    await sandbox.commands.run("mkdir -p inner")
    assert (await sandbox.commands.run("pwd", cwd="inner")).stdout == f"{home.strip()}/inner\n"
    with pytest.raises(InvalidArgumentException) as raised:
        await sandbox.commands.run("pwd", cwd="/missing")
    assert str(raised.value) == "cwd '/missing' does not exist"


@pytest.mark.parametrize("user", ["user", "root"])
async def test_both_users_are_accepted(sandbox: AsyncSandbox, user: str) -> None:
    assert (await sandbox.commands.run("echo hi", user=user)).stdout == "hi\n"


async def test_an_unknown_user_is_refused(sandbox: AsyncSandbox) -> None:
    with pytest.raises(AuthenticationException, match="nobody-here"):
        await sandbox.commands.run("echo hi", user="nobody-here")


async def test_stdin_is_empty_unless_asked_for(sandbox: AsyncSandbox) -> None:
    assert (await sandbox.commands.run("cat; echo end")).stdout == "end\n"
    handle = await sandbox.commands.run("sleep 60", background=True)
    with pytest.raises(SandboxException, match="stdin"):
        await sandbox.commands.send_stdin(handle.pid, "x")
    await handle.kill()


async def test_stdin_is_sent_and_closed(sandbox: AsyncSandbox) -> None:
    handle = await sandbox.commands.run("cat | wc -c", background=True, stdin=True)
    await handle.send_stdin("héllo\n")
    await handle.send_stdin(b"x" * 3 * MEGABYTE)
    await handle.close_stdin()
    assert (await handle.wait()).stdout.strip() == str(3 * MEGABYTE + 7)
    with pytest.raises(NotFoundException):
        await sandbox.commands.send_stdin(handle.pid, "too late")


async def test_input_streams_in_order(sandbox: AsyncSandbox) -> None:
    handle = await sandbox.commands.run("cat", background=True, stdin=True)
    async with sandbox.commands.stream_input(handle.pid) as stream:
        for number in range(100):
            await stream.send(f"{number}\n")
    await handle.close_stdin()
    assert (await handle.wait()).stdout == "".join(f"{number}\n" for number in range(100))


async def test_input_streamed_to_nobody_is_an_error(sandbox: AsyncSandbox) -> None:
    stream = sandbox.commands.stream_input(999_999)
    with pytest.raises(NotFoundException), anyio.fail_after(5):
        await stream.close()


async def test_the_timeout_kills_the_whole_process_group(sandbox: AsyncSandbox) -> None:
    printed: list[str] = []
    with pytest.raises(TimeoutException):
        await sandbox.commands.run(
            "sleep 300 & echo $!; wait", timeout=0.5, on_stdout=printed.append
        )
    await until_dead(sandbox, printed[0].strip())


async def test_a_background_command_is_killed_at_its_timeout_too(sandbox: AsyncSandbox) -> None:
    handle = await sandbox.commands.run("sleep 300", background=True, timeout=0.5)
    await handle.disconnect()
    await until_dead(sandbox, handle.pid)


async def test_a_command_outlives_its_client(sandbox: AsyncSandbox) -> None:
    handle = await sandbox.commands.run(
        "read a; echo $a; read b; echo $b", background=True, stdin=True, timeout=0
    )
    await handle.disconnect()
    again = await sandbox.commands.connect(handle.pid)
    await sandbox.commands.send_stdin(handle.pid, "one\ntwo\n")
    assert (await again.wait()).stdout == "one\ntwo\n"


async def test_two_clients_see_the_same_output(sandbox: AsyncSandbox) -> None:
    first = await sandbox.commands.run("read a; seq 50000", background=True, stdin=True)
    second = await sandbox.commands.connect(first.pid)
    await first.send_stdin("go\n")
    assert (await first.wait()).stdout == (await second.wait()).stdout
    assert first.stdout.endswith("50000\n")


async def test_who_connects_soon_after_the_end_learns_how_it_ended(
    sandbox: AsyncSandbox,
) -> None:
    handle = await sandbox.commands.run("exit 7", background=True)
    with pytest.raises(CommandExitException):
        await handle.wait()
    late = await sandbox.commands.connect(handle.pid)
    with pytest.raises(CommandExitException) as raised:
        await late.wait()
    assert raised.value.exit_code == 7


async def test_list_shows_running_commands_only(sandbox: AsyncSandbox) -> None:
    handle = await sandbox.commands.run("sleep 60", background=True, envs={"A": "1"}, cwd="/tmp")
    [info] = await sandbox.commands.list()
    assert (info.pid, info.cmd, info.args) == (handle.pid, "/bin/bash", ["-l", "-c", "sleep 60"])
    assert (info.envs, info.cwd, info.tag) == ({"A": "1"}, "/tmp", None)
    assert await handle.kill() is True
    with pytest.raises(CommandExitException):
        await handle.wait()
    assert handle.error == "signal: killed"
    assert await sandbox.commands.list() == []
    assert await handle.kill() is False


async def test_the_unknown_pid_is_named(sandbox: AsyncSandbox) -> None:
    assert await sandbox.commands.kill(999_999) is False
    with pytest.raises(NotFoundException) as raised:
        await sandbox.commands.connect(999_999)
    assert str(raised.value) == "process with pid 999999 not found"


async def test_a_background_child_does_not_hold_the_command_open(sandbox: AsyncSandbox) -> None:
    started = time.monotonic()
    result = await sandbox.commands.run("sleep 300 & echo $!", timeout=30)
    assert time.monotonic() - started < 5
    assert await is_alive(sandbox, result.stdout.strip())


async def test_a_background_child_may_go_on_writing(sandbox: AsyncSandbox) -> None:
    await sandbox.commands.run(
        "(while [ ! -e go ]; do sleep 0.05; done; seq 200000; touch done) & true"
    )
    await sandbox.files.write("go", "")
    with anyio.fail_after(5):
        while not await sandbox.files.exists("done"):
            await anyio.lowlevel.checkpoint()


async def test_many_commands_at_once(sandbox: AsyncSandbox) -> None:
    async def run(number: int) -> None:
        assert (await sandbox.commands.run(f"echo {number}")).stdout == f"{number}\n"

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(run, number)


def test_the_sync_sdk_runs_commands_too(e2b: E2B) -> None:
    sandbox = e2b.Sandbox.create()
    handle = sandbox.commands.run("read a; echo got $a", background=True, stdin=True)
    handle.send_stdin("it\n")
    assert handle.wait().stdout == "got it\n"
    sandbox.kill()
