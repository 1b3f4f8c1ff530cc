"""A server that is killed, at every stage of what it does with a sandbox; the next one goes on.

Each round a server process on stdio finds what its predecessor left, does something in the same
sessions, and gets SIGKILL at a chosen moment: the proxy before the engine holds the request that
says so, before the engine has it or after it has answered.
"""

import ast
import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from e2b import SandboxInfo, SandboxQuery

from conftest import client
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.pool import Pool, owned_by
from e2b_agent_mcp.settings import SandboxSettings, Settings
from faults import Exchange, Fault, FaultProxy, Gate, Route, no_faults
from rounds import rounds
from test_stdio import COMMAND, environment

LANES = rounds(few=1, many=2)  # chains of servers, side by side
LIFE = 600  # seconds that an unused sandbox lives
DEADLINE = 400.0  # seconds for one round; a server takes one to start where many others run
LONGEST_LINE = 10_000_000  # bytes
CREATED = 201  # HTTP

Tool = Literal["run_python", "end_session", "list_files"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the server is doing when it is killed."""

    tool: Tool = "run_python"
    fresh: bool = False  # in a session that has no sandbox yet
    route: Route | None = None  # None: any request
    stage: Literal["before", "after"] = "before"
    request: int = 1  # the how manieth of that route


STAGES = [
    *(Stage(fresh=True, route="create", stage=stage) for stage in ("before", "after")),
    *(Stage(fresh=True, route="execute", stage=stage) for stage in ("before", "after")),
    *(Stage(route="execute", stage=stage) for stage in ("before", "after")),
    *(Stage(fresh=True, route="pause", stage=stage) for stage in ("before", "after")),
    *(Stage(tool="end_session", route="kill", stage=stage) for stage in ("before", "after")),
]
LONG_STAGES = [
    *(Stage(route="connect", stage=stage) for stage in ("before", "after")),
    *(Stage(fresh=True, request=request, stage="after") for request in range(1, 9)),
    *(Stage(request=request, stage="after") for request in range(1, 4)),
    *(Stage(tool="list_files", route="rpc", stage=stage) for stage in ("before", "after")),
]
ROUNDS = rounds(few=2, many=210)


@dataclass(eq=False)
class NthRequest:
    """Holds the one request at which the server is killed."""

    stage: Stage
    gate: Gate
    seen: int = 0

    def __call__(self, exchange: Exchange) -> Fault | None:
        if self.stage.route in (None, exchange.route):
            self.seen += 1
            return self.gate if self.seen == self.stage.request else None
        return None


@dataclass(eq=False)
class Session:
    name: str
    done: set[int] = field(default_factory=set)  # numbers of the code whose call was answered
    maybe: set[int] = field(default_factory=set)  # of all code
    may_have_ended: bool = True


class Server:
    """A server process and a client that is nothing but lines of JSON."""

    def __init__(self, process: Process) -> None:
        assert process.stdout is not None
        self._process = process
        self._answers = BufferedByteReceiveStream(process.stdout)
        self._next = 0

    @classmethod
    @asynccontextmanager
    async def start(cls, env: dict[str, str]) -> AsyncIterator["Server"]:
        async with await anyio.open_process(COMMAND, env=env, stderr=None) as process:
            server = cls(process)
            try:
                info = {"name": "test", "version": "1"}
                version = {"protocolVersion": "2025-11-25"}
                await server.request(
                    "initialize", {**version, "capabilities": {}, "clientInfo": info}
                )
                await server.send({"method": "notifications/initialized"})
                yield server
            finally:
                await server.kill()

    async def call(self, tool: Tool, **arguments: object) -> dict[str, Any]:
        result = await self.request("tools/call", {"name": tool, "arguments": arguments})
        assert not result.get("isError"), result
        structured: dict[str, Any] = result["structuredContent"]
        return structured

    async def request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self.begin(method, params)
        while (message := await self._receive()).get("id") != self._next:
            pass
        result: dict[str, Any] = message["result"]
        return result

    async def begin(self, method: str, params: dict[str, Any]) -> None:
        self._next += 1
        await self.send({"id": self._next, "method": method, "params": params})

    async def send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await self._answers.receive_until(b"\n", LONGEST_LINE))
        return message


class Lane:
    """One owner, whose servers follow each other."""

    def __init__(self, engine: EngineAddress, proxy: FaultProxy) -> None:
        user = uuid.uuid4().hex
        self.owner = Settings(owner=user).local_owner
        self._proxy = proxy
        self._e2b = client(engine)
        self._number = 0
        self._sessions = [Session("0")]
        self._env = {
            **environment(proxy.address.api_url, engine.api_key),
            "E2B_AGENT_MCP_OWNER": user,
            "E2B_AGENT_MCP_SANDBOXES_IDLE_AFTER": str(LIFE),
        }

    async def round(self, stage: Stage) -> None:
        # With room for one, the server pauses the session that it has just used.
        room = "1" if stage.route == "pause" else "2"
        if room == "1":
            await self._pass_time()
        env = {**self._env, "E2B_AGENT_MCP_SANDBOXES_MAX": room}
        async with Server.start(env) as server:
            await self._work(server, self._sessions[-1])
            if stage.fresh:
                for session in self._sessions[:-1]:
                    await server.call("end_session", session=session.name)
                self._sessions = [self._sessions[-1], Session(uuid.uuid4().hex)]
            await self._die(server, stage)
        await self._check()

    async def _pass_time(self) -> None:
        """What killed servers left running would hold its place until this can be seen."""
        pool = Pool(SandboxSettings(idle_after=LIFE))
        for item in await self.sandboxes():
            if item.state.value == "running":
                left = int(pool.end_at(0) - pool.surely_unused) - 1
                await self._e2b.AsyncSandbox.set_timeout(item.sandbox_id, left)

    async def _work(self, server: Server, session: Session) -> None:
        """What the predecessor left is there, and so is what this server adds."""
        answer = await server.call("run_python", session=session.name, code=self._code(session))
        assert answer["status"] == "ok", answer
        if answer["sandbox_state"] in ("created", "recreated"):
            assert session.may_have_ended, answer
            session.done.clear()
        ran = ast.literal_eval(answer["stdout"].strip())
        assert session.done < {*ran} <= session.maybe
        assert len(ran) == len({*ran})
        session.done = {*ran}
        session.may_have_ended = False
        assert answer["sandbox_id"] in {item.sandbox_id for item in await self.sandboxes()}

    async def _die(self, server: Server, stage: Stage) -> None:
        session = self._sessions[-1]
        gate = Gate(stage.stage)
        self._proxy.program = NthRequest(stage, gate)
        arguments = {"session": session.name}
        if stage.tool == "run_python":
            arguments["code"] = self._code(session)
        elif stage.tool == "end_session":
            session.may_have_ended = True
        async with anyio.create_task_group() as race:
            race.start_soon(self._answered, server, stage.tool, arguments, gate.reached)
            await gate.reached.wait()
            race.cancel_scope.cancel()
        await server.kill()
        self._proxy.program = no_faults
        gate.opened.set()

    async def _answered(
        self, server: Server, tool: Tool, arguments: dict[str, str], reached: anyio.Event
    ) -> None:
        """A call that sends fewer requests is over before."""
        await server.request("tools/call", {"name": tool, "arguments": arguments})
        reached.set()

    def _code(self, session: Session) -> str:
        self._number += 1
        session.maybe.add(self._number)
        return f"ran = globals().get('ran', []); ran.append({self._number}); print(ran)"

    async def _check(self) -> None:
        """Every sandbox belongs to a session, one to each, and would end by itself."""
        found = await self.sandboxes()
        names = [item.metadata["session"] for item in found]
        assert len(names) == len({*names})
        assert {*names} <= {session.name for session in self._sessions}
        for item in found:
            assert (item.end_at - datetime.now(UTC)).total_seconds() <= LIFE

    async def finish(self) -> None:
        async with Server.start(self._env) as server:
            for session in self._sessions:
                await self._work(server, session)
            await self._check()
            for session in self._sessions:
                await server.call("end_session", session=session.name)
        assert await self.sandboxes() == []

    async def sandboxes(self) -> list[SandboxInfo]:
        """Past the proxy."""
        pages = self._e2b.AsyncSandbox.list(query=SandboxQuery(metadata=owned_by(self.owner)))
        found = []
        while pages.has_next:
            found += await pages.next_items()
        return found


def chosen_stages() -> list[Stage]:
    if len(STAGES) >= ROUNDS:
        return random.sample(STAGES, ROUNDS)
    every = [*STAGES, *LONG_STAGES]
    return [*every, *random.choices(every, k=ROUNDS - len(every))]


@pytest.mark.timeout(rounds(few=600, many=7200))
async def test_a_server_killed_at_any_stage_loses_no_session_and_leaves_no_sandbox(
    engine: EngineAddress,
) -> None:
    left = chosen_stages()
    kills = Counter[Stage]()
    created: list[Exchange] = []

    async def live() -> None:
        async with FaultProxy.serve(engine) as proxy:
            lane = Lane(engine, proxy)
            while left:
                stage = left.pop(0)
                try:
                    with anyio.fail_after(DEADLINE):
                        await lane.round(stage)
                except Exception as exc:
                    exc.add_note(f"killed at {stage}")
                    raise
                kills[stage] += 1
                created.extend(item for item in proxy.asked("create") if item.status == CREATED)
                proxy.log.clear()
            await lane.finish()

    try:
        async with anyio.create_task_group() as lanes:
            for _ in range(LANES):
                lanes.start_soon(live)
    finally:
        print(f"{kills.total()} kills at {len(kills)} stages, {len(created)} sandboxes created")
