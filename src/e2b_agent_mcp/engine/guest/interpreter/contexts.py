"""Contexts: who runs code, one execution at a time, in order.

A context's kernel is known to be idle before the next execution is sent to it. An execution that
its client abandons is interrupted and then read to its end. A kernel that goes on regardless is
waited for, and whoever asks meanwhile is told that it is busy.
"""

import logging
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from math import inf
from pathlib import Path
from typing import Self

import anyio
from anyio.abc import TaskGroup

from ..config import Environment, GuestConfig
from .channels import Channels
from .kernels import Kernel, KernelProcess
from .languages import JAVASCRIPT, LANGUAGES, PYTHON, Language, find_language
from .messages import END, Event, Transcript, error, stderr, syntax_error
from .nursery import Nursery, is_untouched

logger = logging.getLogger(__name__)

LAUNCH_TIMEOUT = 60.0  # seconds from the start of a kernel to its first answer
# Seconds after each interrupt of abandoned code. It may swallow one, or have it come where Python
# forgets an exception; in the end it may take its time to clean up.
INTERRUPT_PAUSES = (0.5, 1.5, 4.0)
START_PATIENCE = 2.0  # seconds for abandoned code to begin; a kernel that stands still never does
CHECK_TIMEOUT = 5.0  # seconds to find what is wrong with code; usually 40 ms
REPLY_GRACE = 1.0  # seconds between reply and "idle": after an interrupt, one may be missing
ABANDONED_GRACE = 0.2  # the same when nobody listens; what comes later belongs to nobody
COLOURS_OFF = {"NO_COLOR": "1", "TERM": "dumb"}
EVENTS = 4  # waiting for a slow client; beyond that its kernel waits

BUSY = (
    "The context still runs earlier code that ignored its interruption. "
    "Restart the context to use it again; its variables will be lost."
)
LOST = "Its variables are lost."
FAILED = "The context failed and lost its variables; run the code again."
RESTARTED = "The context was restarted."
REMOVED = "The context was removed."


class ContextNotFoundError(Exception):
    """No context has this id."""


class ContextRefusedError(Exception):
    """A context cannot be made as asked; the message says why."""


class KernelEndedError(Exception):
    """The kernel ended, or never came to life, while something was asked of it."""


class Execution:
    """Code on its way through a context. Its client reads `events` to their end, or abandons."""

    def __init__(self, code: str, variables: Mapping[str, str]) -> None:
        self.code = code
        self.variables = variables
        self.abandoned = anyio.Event()
        self._sender, self.events = anyio.create_memory_object_stream[Event](EVENTS)

    def abandon(self) -> None:
        self.abandoned.set()
        self.events.close()

    async def emit(self, events: Iterable[Event]) -> None:
        """Waits for a slow client; says nothing to one that has gone."""
        for event in events:
            with suppress(anyio.BrokenResourceError):
                await self._sender.send(event)

    def refuse(self, event: Event) -> None:
        """Answers code that did not run. Never waits, so a cancellation cannot lose it."""
        with suppress(anyio.BrokenResourceError):
            self._sender.send_nowait(event)
            self._sender.send_nowait(END)
        self._sender.close()

    async def finish(self) -> None:
        await self.emit([END])
        self._sender.close()


class Context:
    """A namespace that survives between executions; `serve` runs for as long as it exists."""

    def __init__(
        self,
        language: Language,
        cwd: Path,
        config: GuestConfig,
        environment: Environment,
        nursery: Nursery,
    ) -> None:
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self._config = config
        self._environment = environment
        self._nursery = nursery
        self._kernel: Kernel | None = None
        self._removed = False
        self._current: Execution | None = None
        # None asks for a kernel, so that the first execution finds one.
        self._asking, self._asked = anyio.create_memory_object_stream[Execution | None](inf)

    def submit(self, code: str, variables: Mapping[str, str]) -> Execution:
        execution = Execution(code, variables)
        self._asking.send_nowait(execution)
        return execution

    def prepare(self) -> None:
        self._asking.send_nowait(None)

    async def restart(self) -> None:
        """Ends the kernel, and with it the running execution; a new one is started."""
        await self._end(RESTARTED)
        self.prepare()

    async def remove(self) -> None:
        """Ends the kernel and every execution that waits; `serve` returns."""
        self._removed = True
        self._asking.close()
        await self._end(REMOVED)

    async def _end(self, verdict: str) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.end(verdict)

    async def serve(self) -> None:
        while not self._removed:
            try:
                await self._serve()
            except Exception:
                # One of ours, or a sandbox that has no disk or descriptor left: it must end
                # neither the other contexts nor, unanswered, the execution that met it.
                logger.exception("context %s failed", self.id)
                self._kernel = None  # the end of its tasks has killed it
                if self._current is not None:
                    await self._fail(self._current, KernelEndedError(FAILED))

    async def _serve(self) -> None:
        async with anyio.create_task_group() as kernels:
            async for execution in self._asked:
                self._current = execution
                try:
                    kernel = await self._ensure_kernel(kernels, execution)
                    await self._run(kernel, execution)
                except KernelEndedError as ended:
                    await self._fail(execution, ended)
                self._current = None

    async def _fail(self, execution: Execution | None, ended: KernelEndedError) -> None:
        if execution is None or execution.abandoned.is_set():
            return  # the next execution is told
        self._forget_dead_kernel()
        event = error("ContextRestarting", str(ended))
        if self._removed:
            event = error("ContextRemoved", REMOVED)
        await execution.emit([event])
        await execution.finish()

    def _forget_dead_kernel(self) -> None:
        if self._kernel is not None and not self._kernel.process.poll():
            self._kernel = None

    async def _ensure_kernel(self, kernels: TaskGroup, execution: Execution | None) -> Kernel:
        if self._removed:
            raise KernelEndedError(REMOVED)
        kernel = self._kernel
        if kernel is not None and kernel.process.poll():
            return kernel
        if kernel is not None and execution is not None:
            await execution.emit([stderr(f"{kernel.describe_end()} {LOST}\n")])
        self._kernel = kernel = await self._launch()
        kernels.start_soon(kernel.serve)
        if self._removed:  # meanwhile
            await kernel.end(REMOVED)
            raise KernelEndedError(REMOVED)
        await self._wait_ready(kernel)
        await self._run_silently(kernel, self.language.preface)
        return kernel

    async def _launch(self) -> Kernel:
        environ = self._environ({})
        try:
            folder = Path(tempfile.mkdtemp(prefix="kernel-"))
        except OSError as exc:
            raise KernelEndedError(f"The context could not start: {exc}") from exc
        try:
            channels = Channels(folder, self.language.transport)
        except OSError as exc:
            shutil.rmtree(folder, ignore_errors=True)
            raise KernelEndedError(f"The context could not start: {exc}") from exc
        try:
            process = await self._fork(channels.connection_file, environ, folder / "log")
            if process is None:
                command = self.language.command(self._config, environ, channels.connection_file)
                process = KernelProcess.launch(
                    command, environ=environ, cwd=self.cwd, log=folder / "log"
                )
        except BaseException as exc:
            channels.close()
            shutil.rmtree(folder)
            if isinstance(exc, (OSError, ValueError)):
                raise KernelEndedError(f"The context could not start: {exc}") from exc
            raise
        return Kernel(
            process=process,
            channels=channels,
            folder=folder,
            variables=environ,
            kills=self._config.kills,
        )

    async def _fork(
        self, connection_file: Path, environ: Mapping[str, str], log: Path
    ) -> KernelProcess | None:
        """None where only a program that is started would be the kernel that is asked for."""
        if self.language is not PYTHON or not is_untouched(self._config.python):
            return None
        try:
            return KernelProcess.adopt(
                await self._nursery.fork(connection_file, environ=environ, cwd=self.cwd, log=log)
            )
        except OSError:
            return None

    def _environ(self, extra: Mapping[str, str]) -> dict[str, str]:
        return self._environment.build({**COLOURS_OFF, **self._environment.variables, **extra})

    async def _wait_ready(self, kernel: Kernel) -> None:
        try:
            with anyio.fail_after(LAUNCH_TIMEOUT):
                await kernel.channels.wait_ready()
        except TimeoutError as exc:
            await kernel.end(f"No answer within {LAUNCH_TIMEOUT:g} s.")
            raise KernelEndedError(_describe_failed_start(kernel)) from exc
        except anyio.EndOfStream as exc:
            await kernel.end("")
            raise KernelEndedError(_describe_failed_start(kernel)) from exc

    async def _run(self, kernel: Kernel, execution: Execution | None) -> None:
        if execution is None:
            return
        if execution.abandoned.is_set():
            await execution.finish()
            return
        await self._set_variables(kernel, execution.variables)
        await kernel.channels.request("execute_request", _execute_request(execution.code))
        transcript = Transcript()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._interrupt_when_abandoned, kernel, execution, transcript)
            alive = await self._read(kernel, transcript, execution.emit, execution.abandoned)
            tasks.cancel_scope.cancel()
        if not alive:
            raise KernelEndedError(f"{kernel.describe_end()} {LOST}")
        await execution.emit(await self._last_words(transcript, execution.code))
        await execution.finish()
        with suppress(KernelEndedError):  # the next execution finds out
            await self._set_variables(kernel, {})

    async def _last_words(self, transcript: Transcript, code: str) -> Iterable[Event]:
        if transcript.wordless and (reason := await self._check(code)):
            return [reason]
        return transcript.finish()

    async def _check(self, code: str) -> Event | None:
        """None when nothing is found, or not soon."""
        if self.language.check is None:
            return None
        environ = self._environ({})
        with anyio.move_on_after(CHECK_TIMEOUT), suppress(OSError):
            done = await anyio.run_process(
                self.language.check(environ),
                input=code.encode(errors="replace"),
                stdout=subprocess.DEVNULL,
                check=False,
                env=environ,
            )
            return syntax_error(done.stderr.decode(errors="replace"))
        return None

    async def _set_variables(self, kernel: Kernel, extra: Mapping[str, str]) -> None:
        """Brings the sandbox's variables too: they may be newer than the kernel."""
        wanted = self._environ(extra)
        code = self.language.change_variables(kernel.variables, wanted)
        kernel.variables = wanted
        await self._run_silently(kernel, code)

    async def _run_silently(self, kernel: Kernel, code: str) -> None:
        if not code:
            return
        await kernel.channels.request("execute_request", _execute_request(code, silent=True))
        if not await self._read(kernel, Transcript(), _ignore, anyio.Event()):
            raise KernelEndedError(f"{kernel.describe_end()} {LOST}")

    async def _read(
        self,
        kernel: Kernel,
        transcript: Transcript,
        emit: Callable[[Iterable[Event]], Awaitable[None]],
        abandoned: anyio.Event,
    ) -> bool:
        """Until the kernel is idle again; False when it died instead."""
        try:
            while (patience := self._patience(transcript, abandoned.is_set())) > 0:
                with anyio.move_on_after(patience) as waiting:
                    message = await kernel.channels.messages.receive()
                if waiting.cancelled_caught:
                    break
                await emit(transcript.read(message))
        except anyio.EndOfStream:
            return False
        finally:
            kernel.channels.release()
        return True

    def _patience(self, transcript: Transcript, abandoned: bool) -> float:
        if transcript.complete:
            return self.language.settle
        if transcript.replied or transcript.idle:
            return ABANDONED_GRACE if abandoned else REPLY_GRACE
        return inf

    async def _interrupt_when_abandoned(
        self, kernel: Kernel, execution: Execution, transcript: Transcript
    ) -> None:
        await execution.abandoned.wait()
        with anyio.move_on_after(START_PATIENCE):
            await transcript.started.wait()  # before that, an interrupt would be lost
        for pause in INTERRUPT_PAUSES:
            kernel.process.interrupt()
            await anyio.sleep(pause)
        async for waiting in self._asked:
            if waiting is not None:
                waiting.refuse(error("ContextBusy", BUSY))


def _execute_request(code: str, *, silent: bool = False) -> dict[str, object]:
    return {
        "code": code,
        "silent": silent,
        "store_history": not silent,
        "user_expressions": {},
        "allow_stdin": False,  # `input()` raises instead of waiting for nobody
        "stop_on_error": False,
    }


def _describe_failed_start(kernel: Kernel) -> str:
    return f"The context did not start. {kernel.describe_end()} {kernel.log}".strip()


async def _ignore(events: Iterable[Event]) -> None:
    """Reads what nobody wants to know."""
    for _ in events:
        pass


class Contexts:
    """All contexts of a sandbox. A language's default context is made when it is asked for."""

    def __init__(
        self,
        config: GuestConfig,
        environment: Environment,
        nursery: Nursery,
        tasks: TaskGroup,
    ) -> None:
        self._config = config
        self._environment = environment
        self._nursery = nursery
        self._tasks = tasks
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, str] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls, config: GuestConfig, environment: Environment, nursery: Nursery
    ) -> AsyncIterator[Self]:
        """The Python kernel starts at once, so that the first execution finds it."""
        async with anyio.create_task_group() as tasks:
            contexts = cls(config, environment, nursery, tasks)
            contexts.find_default(PYTHON.name).prepare()
            if contexts._is_available(JAVASCRIPT):
                contexts.find_default(JAVASCRIPT.name)
            yield contexts
            tasks.cancel_scope.cancel()

    def list_all(self) -> list[Context]:
        return list(self._contexts.values())

    def find(self, context_id: str) -> Context:
        try:
            return self._contexts[context_id]
        except KeyError:
            raise ContextNotFoundError(f"Context {context_id} not found") from None

    def find_default(self, language_name: str) -> Context:
        language = self._find_language(language_name)
        context_id = self._defaults.get(language.name)
        if context_id not in self._contexts:
            context_id = self._add(language, self._config.home).id
            self._defaults[language.name] = context_id
        return self._contexts[context_id]

    def create(self, language_name: str, cwd: str | None) -> Context:
        folder = self._config.home / (cwd or "")
        language = self._find_language(language_name)
        if not folder.is_dir():
            raise ContextRefusedError(f"cwd '{cwd}' does not exist")
        context = self._add(language, folder)
        context.prepare()
        return context

    async def remove(self, context_id: str) -> None:
        context = self.find(context_id)
        del self._contexts[context_id]
        await context.remove()

    def _add(self, language: Language, cwd: Path) -> Context:
        context = Context(language, cwd, self._config, self._environment, self._nursery)
        self._contexts[context.id] = context
        self._tasks.start_soon(context.serve)
        return context

    def _find_language(self, name: str) -> Language:
        language = find_language(name)
        if language is None or not self._is_available(language):
            available = ", ".join(self._available())
            raise ContextRefusedError(
                f"Language '{name}' is not available in this sandbox. Available: {available}."
            )
        return language

    def _available(self) -> list[str]:
        return [name for name, language in LANGUAGES.items() if self._is_available(language)]

    def _is_available(self, language: Language) -> bool:
        try:
            language.command(self._config, self._environment.build(), Path("connection.json"))
        except FileNotFoundError:
            return False
        return True
