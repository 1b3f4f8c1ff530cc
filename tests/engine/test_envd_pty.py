"""Terminals, seen through the SDK."""

import anyio
import pytest
from e2b import CommandExitException, NotFoundException, PtySize, SandboxException
from e2b_code_interpreter import AsyncSandbox


class Screen:
    """Collects what a terminal shows."""

    def __init__(self) -> None:
        self.text = ""
        self._changed = anyio.Event()

    def __call__(self, data: bytes) -> None:
        self.text += data.decode("utf-8", "replace")
        self._changed.set()

    async def shows(self, text: str) -> None:
        with anyio.fail_after(10):
            while text not in self.text:
                self._changed = anyio.Event()
                await self._changed.wait()


@pytest.fixture
def screen() -> Screen:
    return Screen()


async def test_a_terminal_takes_input_and_shows_output(
    sandbox: AsyncSandbox, screen: Screen
) -> None:
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=screen, cwd="/tmp")
    await sandbox.pty.send_stdin(terminal.pid, b"echo $((20+22)) $TERM; tty; pwd\n")
    await screen.shows("42 xterm-256color")
    await screen.shows("/dev/pts/")
    await screen.shows("/tmp\r\n")
    await sandbox.pty.send_stdin(terminal.pid, b"exit\n")
    assert (await terminal.wait()).exit_code == 0


async def test_a_terminal_has_the_size_asked_for_and_can_be_resized(
    sandbox: AsyncSandbox, screen: Screen
) -> None:
    terminal = await sandbox.pty.create(PtySize(rows=31, cols=97), on_data=screen)
    await sandbox.pty.send_stdin(terminal.pid, b"stty size\n")
    await screen.shows("31 97")
    await sandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=120))
    await sandbox.pty.send_stdin(terminal.pid, b"stty size\n")
    await screen.shows("40 120")
    await terminal.kill()


async def test_a_terminal_has_job_control(sandbox: AsyncSandbox, screen: Screen) -> None:
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=screen)
    await sandbox.pty.send_stdin(terminal.pid, b"bash -c 'echo run\"\"ning; exec sleep 300'\n")
    await screen.shows("running")
    await sandbox.pty.send_stdin(terminal.pid, b"\x03")
    await sandbox.pty.send_stdin(terminal.pid, b"echo after $?\n")
    await screen.shows("after 130")
    assert "no job control" not in screen.text
    await terminal.kill()


async def test_a_terminal_outlives_its_client(sandbox: AsyncSandbox, screen: Screen) -> None:
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=lambda data: None)
    await terminal.disconnect()
    again = await sandbox.pty.connect(terminal.pid, on_data=screen)
    await sandbox.pty.send_stdin(again.pid, b"echo still $((1+1))\n")
    await screen.shows("still 2")
    await again.kill()


async def test_kill_ends_a_terminal(sandbox: AsyncSandbox, screen: Screen) -> None:
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=screen)
    assert await sandbox.pty.kill(terminal.pid) is True
    with pytest.raises(CommandExitException):
        await terminal.wait()
    assert terminal.error == "signal: killed"
    assert await sandbox.pty.kill(terminal.pid) is False
    with pytest.raises(NotFoundException):
        await sandbox.pty.send_stdin(terminal.pid, b"x")


async def test_input_streams_into_a_terminal(sandbox: AsyncSandbox, screen: Screen) -> None:
    terminal = await sandbox.pty.create(PtySize(rows=24, cols=80), on_data=screen)
    async with sandbox.pty.stream_input(terminal.pid) as stream:
        await stream.send(b"echo a$((1+")
        await stream.send(b"2))b\n")
    await screen.shows("a3b")
    await terminal.kill()


async def test_a_command_cannot_be_resized(sandbox: AsyncSandbox) -> None:
    command = await sandbox.commands.run("sleep 60", background=True)
    with pytest.raises(SandboxException, match="no terminal"):
        await sandbox.pty.resize(command.pid, PtySize(rows=1, cols=1))
    await command.kill()
