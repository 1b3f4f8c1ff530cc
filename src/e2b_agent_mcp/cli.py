"""The commands. The only module that prints and the only one that reads `sys.argv` and the
environment; each command is a thin layer over the package, which it imports on first use.

Exit codes: 0 fine, 1 the user's code failed or `doctor` found a problem, 2 wrong use or settings or
no sandbox to be had, 124 the time limit of a run, 130 Ctrl-C.
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import anyio

from e2b_agent_mcp.errors import (
    E2BAgentError,
    EngineUnavailableError,
    InvalidArgumentError,
    SettingsError,
)
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import Settings, config_path, read_config

if TYPE_CHECKING:
    from e2b_agent_mcp.engine import EngineAddress
    from e2b_agent_mcp.lifecycle import Lease, Progress, Run, SandboxManager
    from e2b_agent_mcp.tasks import TaskRequest

NAME = "e2b-agent-mcp"
FLUSH_TIMEOUT = 2000  # milliseconds
NEVER = 10 * 365 * 86_400.0  # seconds

Command = Callable[[argparse.Namespace, Settings], int]


def run_command_line() -> NoReturn:
    """The program: ends without taking Python down part by part.

    The HTTP client of E2B's SDK has threads of its own; one that reports its last answer in that
    moment aborts the process (seen under load).
    """
    code = main()
    _flush_telemetry()
    with suppress(OSError):  # whoever read our output went away
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _flush_telemetry() -> None:
    """What an OpenTelemetry SDK has not sent yet, where the process was started under one."""
    for name, provider in (("trace", "get_tracer_provider"), ("metrics", "get_meter_provider")):
        if (module := sys.modules.get(f"opentelemetry.{name}")) is not None:
            flush = getattr(getattr(module, provider)(), "force_flush", None)
            if flush is not None:
                flush(FLUSH_TIMEOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    flags, rest = _shared().parse_known_args(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(rest)
    try:
        settings = _settings(flags, args)
        _log_to_stderr(settings)
        command: Command = args.command
        return command(args, settings)
    except E2BAgentError as exc:
        print(f"{NAME}: {exc.message}", *filter(None, [exc.hint]), sep="\n", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read our output went away; the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _log_to_stderr(settings: Settings) -> None:
    """Other packages log warnings only: at finer levels some write what passes through them."""
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("e2b_agent_mcp").setLevel(settings.log_level.upper())


def _settings(flags: argparse.Namespace, args: argparse.Namespace) -> Settings:
    named = {name.replace("__", "."): value for name, value in vars(args).items() if "__" in name}
    given = {**named, "log_level": flags.log_level, "engine.isolation": flags.isolation}
    for item in flags.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise SettingsError(f"--set {item}: write it as --set NAME=VALUE.")
        given[name] = value
    path = flags.config or config_path(os.environ)
    if flags.config and not path.exists():
        raise SettingsError(f"--config: there is no file {path}.")
    return Settings.load(os.environ, flags=given, config=read_config(path))


# The parsers.


def _shared() -> argparse.ArgumentParser:
    """Options that every command takes, before or after its name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting by its name, such as runs.timeout=120 (`doctor` lists them)",
    )
    group.add_argument("--config", type=Path, metavar="FILE", help="config file to read")
    group.add_argument("--isolation", metavar="KIND", help="auto, bubblewrap or gvisor")
    group.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    return parser


def build_parser() -> argparse.ArgumentParser:
    shared = _shared()
    parser = argparse.ArgumentParser(
        prog=NAME,
        description="Python sandboxes for MCP clients. Without a command: serves MCP on stdio.",
        parents=[shared],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {version(NAME)}")
    parser.set_defaults(command=_serve, transport="stdio")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=help, description=help, parents=[shared], allow_abbrev=False
        )
        sub.set_defaults(command=command)
        return sub

    serve = add("serve", _serve, "serve MCP, on stdio or over HTTP")
    serve.add_argument("--transport", choices=("stdio", "http"), default="stdio")
    serve.add_argument("--host", dest="http__host", help="address to listen on (HTTP)")
    serve.add_argument("--port", dest="http__port", type=int, help="port to listen on (HTTP)")

    demo = add("demo", _demo, "run analyses in a sandbox and write a report; needs no key")
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("e2b-agent-mcp-demo"),
        metavar="DIR",
        help="folder of the report and the plots (default: ./e2b-agent-mcp-demo)",
    )

    demo.add_argument(
        "--no-agent", action="store_true", help="without the tasks for an agent, which cost"
    )

    run = add("run", _run, "run Python code in a session")
    run.add_argument("file", nargs="?", metavar="FILE", help="Python file; - or nothing is stdin")
    run.add_argument("-c", dest="code", metavar="CODE", help="code instead of a file")
    run.add_argument("--session", help="session to run in; its variables and files stay")
    run.add_argument("--timeout", dest="runs__timeout", type=float, help="limit in seconds")
    run.add_argument("--json", action="store_true", help="print what the tool run_python returns")

    task = add("task", _task, "have the agent do a task in a session")
    task.add_argument("task", nargs="?", default="", metavar="TASK", help="what to do")
    _add_task_options(task)
    task.add_argument(
        "--continue", dest="task_id", default="", metavar="ID", help="a task to go on with"
    )
    task.add_argument("--new", action="store_true", help="without what the session's tasks know")
    task.add_argument(
        *("--file", "-f"),
        dest="files",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="file to give to the agent; may be repeated",
    )
    task.add_argument(
        *("--package", "-p"),
        dest="packages",
        action="append",
        default=[],
        metavar="NAME",
        help="PyPI requirement to install first; may be repeated",
    )
    task.add_argument(
        "--json", action="store_true", help="print what the tool run_agent_task returns"
    )

    interactive = add("interactive", _interactive, "give the agent tasks one after the other")
    _add_task_options(interactive)

    sessions = add(
        "sessions", _sessions, "list sessions, end one, prune paused ones, or show the spending"
    )
    sessions.add_argument(
        "action", nargs="?", choices=("list", "end", "prune", "spending"), default="list"
    )
    sessions.add_argument("--month", help="spending: of that month (2026-11), not of this one")
    sessions.add_argument("--dry-run", action="store_true", help="prune: only say what would end")
    sessions.add_argument("name", nargs="?", metavar="NAME", help="session to end")
    sessions.add_argument("--json", action="store_true", help="print JSON")

    doctor = add("doctor", _doctor, "show settings and whether sandboxes can run here")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    install = add("install", _install, "enter this server into a client's configuration")
    install.add_argument("client", choices=_clients(), metavar="CLIENT", help=", ".join(_clients()))
    install.add_argument("--print", action="store_true", dest="show", help="change nothing")
    install.add_argument("--file", type=Path, help="configuration file, if not the usual one")

    engine = add("engine", _engine, "run the embedded E2B in the foreground, for any E2B SDK")
    engine.add_argument("--json", action="store_true", help="print one line of JSON, then serve")
    engine.add_argument("--stop", action="store_true", help="end a running one and its sandboxes")
    return parser


def _add_task_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--session", help="session to work in; its variables and files stay")
    parser.add_argument("--model", help="language model, as LiteLLM names it")
    parser.add_argument("--max-steps", dest="agent__max_steps", type=int, help="most steps")
    parser.add_argument(
        "--max-cost", dest="agent__max_cost_usd", type=float, help="most US dollars for one task"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("e2b-agent-mcp-output"),
        metavar="DIR",
        help="folder of the plots (default: ./e2b-agent-mcp-output)",
    )


def _clients() -> list[str]:
    from e2b_agent_mcp.install import CLIENTS

    return list(CLIENTS)


# The commands.


def _serve(args: argparse.Namespace, settings: Settings) -> int:
    from e2b_agent_mcp.server import serve

    serve(
        settings,
        transport=args.transport,
        on_listening=lambda url: print(f"MCP over HTTP: {url}", file=sys.stderr, flush=True),
    )


def _demo(args: argparse.Namespace, settings: Settings) -> int:
    from rich.console import Console

    from e2b_agent_mcp.commands.task import opened
    from e2b_agent_mcp.demo import run_demo
    from e2b_agent_mcp.demo.agent_parts import AgentDemo

    console = Console()

    async def demo() -> Path:
        async with opened(settings) as (manager, tasks):
            agent = None if args.no_agent else AgentDemo(tasks, manager, settings)
            return await run_demo(manager, args.output, console, agent)

    report = anyio.run(demo)
    console.print(f"Report: [bold]{report}[/]  (also report.md and plots/ beside it)")
    return 0


def _run(args: argparse.Namespace, settings: Settings) -> int:
    code = _code(args)
    session = args.session or settings.session

    async def run() -> int:
        async with (
            _manager(settings) as manager,
            manager.lease(
                SessionKey(settings.local_owner, session), on_progress=_progress()
            ) as lease,
        ):
            return await _run_in(lease, code, settings, as_json=args.json)

    return anyio.run(run)


def _code(args: argparse.Namespace) -> str:
    if args.code is not None:
        if args.file is not None:
            raise InvalidArgumentError("run: give FILE or -c CODE, not both.")
        return str(args.code)
    if args.file in (None, "-"):
        return sys.stdin.read()
    try:
        return Path(args.file).read_text("utf-8")
    except OSError as exc:
        raise InvalidArgumentError(f"run: cannot read {args.file}: {exc.strerror}.") from exc


async def _run_in(lease: "Lease", code: str, settings: Settings, *, as_json: bool) -> int:
    for words in filter(None, [lease.lost, lease.warning]):
        print(words, file=sys.stderr)
    if as_json:
        run = await lease.run_code(code, timeout=settings.runs.timeout)
        print(json.dumps(await _structured(lease, run, settings), ensure_ascii=False))
        return _exit_code(run)

    async def out(text: str) -> None:
        print(text, end="", flush=True)

    async def err(text: str) -> None:
        print(text, end="", flush=True, file=sys.stderr)

    run = await lease.run_code(code, timeout=settings.runs.timeout, on_stdout=out, on_stderr=err)
    for result in run.execution.results:
        if result.text is not None:
            print(result.text)
    if run.execution.error is not None:
        print(run.execution.error.traceback, file=sys.stderr)
    if run.note:
        print(run.note, file=sys.stderr)
    return _exit_code(run)


async def _structured(lease: "Lease", run: "Run", settings: Settings) -> Mapping[str, object]:
    from e2b_agent_mcp.rendering import Place, python_result

    place = Place(
        session=lease.session,
        sandbox_id=lease.sandbox_id,
        state=lease.state,
        notes=(lease.lost, lease.warning),
    )
    files = await lease.changed_files()
    rendered = python_result(run, place, files=files, folder=None, limits=settings.outputs)
    return rendered.result.structured_content or {}


def _exit_code(run: "Run") -> int:
    return {"ok": 0, "error": 1, "timeout": 124, "interrupted": 130}[run.status]


def _task(args: argparse.Namespace, settings: Settings) -> int:
    from e2b_agent_mcp.commands.task import TaskOptions, run_task

    if not args.task.strip() and not args.task_id:
        raise InvalidArgumentError("task: say what to do, or --continue a task.")
    request = replace(
        _request(args, settings),
        task=args.task.strip(),
        task_id=args.task_id,
        new=args.new,
        packages=tuple(args.packages),
        files=tuple(str(file.absolute()) for file in args.files),
    )
    return run_task(request, TaskOptions(output=args.output, as_json=args.json), settings)


def _interactive(args: argparse.Namespace, settings: Settings) -> int:
    from e2b_agent_mcp.commands.interactive import converse
    from e2b_agent_mcp.connection import tasks_dir

    history = tasks_dir(settings) / "history"
    return converse(_request(args, settings), args.output, settings, history)


def _request(args: argparse.Namespace, settings: Settings) -> "TaskRequest":
    from e2b_agent_mcp.tasks import TaskRequest

    key = SessionKey(settings.local_owner, args.session or settings.session)
    return TaskRequest(key=key, task="", model=args.model)


def _sessions(args: argparse.Namespace, settings: Settings) -> int:
    if args.action == "end" and not args.name:
        raise InvalidArgumentError("sessions end: name the session.")

    async def end() -> bool:
        async with _manager(settings) as manager:
            return await manager.end_session(SessionKey(settings.local_owner, args.name))

    if args.action == "end":
        ended = anyio.run(end)
        print(json.dumps({"session": args.name, "ended": ended}) if args.json else _ended(ended))
        return 0 if ended else 1
    return _list_sessions(args, settings)


def _ended(ended: bool) -> str:
    return "Ended." if ended else "There is no such session."


def _list_sessions(args: argparse.Namespace, settings: Settings) -> int:
    from e2b_agent_mcp.commands import sessions

    if args.action == "spending":
        report = anyio.run(sessions.spending, settings, args.month)
    elif args.action == "prune":
        report = anyio.run(sessions.prune, settings, args.dry_run)
    else:
        report = anyio.run(sessions.listing, settings)
    if args.json:
        print(json.dumps(report.data))
        return 0
    if report.rows:
        _print_rows(report.rows)
    for line in report.lines:
        print(line)
    return 0


def _doctor(args: argparse.Namespace, settings: Settings) -> int:
    from e2b_agent_mcp.doctor import examine, print_report

    report = anyio.run(partial(examine, settings))
    if args.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        from rich.console import Console

        print_report(report, Console())
    return 1 if report.problems else 0


def _install(args: argparse.Namespace, settings: Settings) -> int:
    from e2b_agent_mcp.install import CLIENTS, Place, install, merged

    client = CLIENTS[args.client]
    path = args.file or client.path(Place(home=Path.home(), project=Path.cwd()))
    if args.show:
        print(f"{path}:", file=sys.stderr)
        print(merged(client, ""), end="")
        return 0
    backup = install(client, path)
    print(f"{client.title} will start {NAME}: {path}")
    if backup:
        print(f"The file as it was: {backup}")
    print("Restart the client. For E2B's cloud, add E2B_API_KEY to the entry's \"env\".")
    return 0


def _engine(args: argparse.Namespace, settings: Settings) -> int:
    from e2b_agent_mcp.connection import engine_options
    from e2b_agent_mcp.engine import EngineAddress, EngineError, find, serve, stop

    # Whoever started it by hand ends it by hand, unless told otherwise.
    if settings.origins.get("engine.idle_exit") == "default":
        settings = replace(settings, engine=replace(settings.engine, idle_exit=NEVER))
    options = engine_options(settings)

    def announce(address: EngineAddress) -> None:
        if args.json:
            print(json.dumps(asdict(address)), flush=True)
        else:
            print(_exports(address), flush=True)

    async def run() -> None:
        if args.stop:
            print("Stopped." if await stop(options) else "No engine is running.")
            return
        running = await find(options)
        if running is None:
            await serve(options, announce)
            return
        print(f"An engine is running already (process {running.pid}).", file=sys.stderr)
        announce(running)

    try:
        options.make_dirs()
        anyio.run(run)
    except EngineError as exc:
        raise EngineUnavailableError(str(exc)) from exc
    return 0


def _exports(address: "EngineAddress") -> str:
    return "\n".join(
        (
            "# Any E2B SDK, with these in its environment, uses the engine on this machine:",
            f"export E2B_API_URL={address.api_url}",
            f"export E2B_SANDBOX_URL={address.sandbox_url}",
            f"export E2B_API_KEY={address.api_key}",
        )
    )


# What they share.


def _manager(settings: Settings) -> "SandboxManager":
    from e2b_agent_mcp.lifecycle import SandboxManager

    return SandboxManager(settings)


def _progress() -> "Progress":
    async def progress(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    return progress


def _print_rows(rows: Sequence[Mapping[str, str]]) -> None:
    """Columns as wide as their longest value, as `ps` prints them."""
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())
