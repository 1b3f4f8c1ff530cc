"""Metrics and spans as an OpenTelemetry SDK receives them, in memory."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from e2b_agent_mcp import create_server
from e2b_agent_mcp.engine import EngineAddress
from e2b_agent_mcp.lifecycle.telemetry import Telemetry
from e2b_agent_mcp.lifecycle.transitions import Transition
from e2b_agent_mcp.pool import SessionKey
from e2b_agent_mcp.settings import E2BSettings, EngineSettings, Secret, Settings

pytestmark = pytest.mark.anyio

NAMES = "e2b_agent_mcp."


@pytest.fixture(scope="session")
def sdk() -> Iterator[tuple[InMemoryMetricReader, InMemorySpanExporter]]:
    """A process has one SDK, for good."""
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    yield reader, exporter
    tracers.shutdown()
    meters.shutdown()


@pytest.fixture
def reader(sdk: tuple[InMemoryMetricReader, InMemorySpanExporter]) -> InMemoryMetricReader:
    return sdk[0]


@pytest.fixture
def exporter(sdk: tuple[InMemoryMetricReader, InMemorySpanExporter]) -> InMemorySpanExporter:
    sdk[1].clear()
    return sdk[1]


@pytest.fixture
async def client(
    engine: EngineAddress, exporter: InMemorySpanExporter, tmp_path: Path
) -> AsyncIterator[Client]:
    settings = Settings(
        e2b=E2BSettings(
            api_key=Secret(engine.api_key), api_url=engine.api_url, sandbox_url=engine.sandbox_url
        ),
        engine=EngineSettings(state_dir=tmp_path),
        owner=uuid.uuid4().hex,
        session="analysis",
    )
    async with Client(create_server(settings)) as client:
        yield client
        await client.call_tool("end_session", {})


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    """The points of each metric of ours. Any: the SDK's kinds of points."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name.removeprefix(NAMES): list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name.startswith(NAMES)
    }


def counted(reader: InMemoryMetricReader) -> dict[str, int]:
    """How often each transition was counted, with its outcome."""
    found = {}
    for point in points(reader).get("sandbox.transitions", []):
        attributes = dict(point.attributes)
        assert attributes.keys() <= {"transition", "outcome"}
        name = " ".join(filter(None, [attributes["transition"], attributes.get("outcome", "")]))
        found[name] = point.value
    return found


def since(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    found = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in found.items() if count}


def ours(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name.startswith("sandbox.")]


async def test_what_happens_to_sandboxes_is_counted_and_measured(
    client: Client, reader: InMemoryMetricReader
) -> None:
    before = counted(reader)
    await client.call_tool("run_python", {"code": "1 / 0"})
    await client.call_tool("run_python", {"code": "while True: pass", "timeout": 0.2})
    await client.call_tool("end_session", {})
    assert since(before, counted(reader)) == {
        "creating": 1,
        "created": 1,
        "leased created": 1,
        "leased reused": 1,
        "released": 2,
        "run_started": 2,
        "run_ended error": 1,
        "run_ended timeout": 1,
        "killed": 1,
    }
    measured = points(reader)
    assert {point.attributes["outcome"] for point in measured["run.duration"]} >= {
        "error",
        "timeout",
    }
    for name in ("sandbox.create.duration", "lease.wait.duration", "lease.duration"):
        assert sum(point.count for point in measured[name]) > 0
        assert all(point.min >= 0 for point in measured[name])


async def test_a_tool_call_has_a_span_for_each_part_and_no_secret(
    client: Client, exporter: InMemorySpanExporter
) -> None:
    await client.call_tool("run_python", {"code": "secret = 'swordfish'; secret"})
    spans = {span.name: span for span in ours(exporter)}
    assert spans.keys() == {"sandbox.create", "sandbox.run", "sandbox.lease"}
    run, lease = spans["sandbox.run"], spans["sandbox.lease"]
    assert run.attributes is not None
    sandbox_id = run.attributes["e2b_agent_mcp.sandbox.id"]
    assert dict(run.attributes) == {
        "e2b_agent_mcp.sandbox.id": sandbox_id,
        "e2b_agent_mcp.owner": run.attributes["e2b_agent_mcp.owner"],
        "e2b_agent_mcp.session": "analysis",
        "e2b_agent_mcp.outcome": "ok",
    }
    assert run.status.status_code is StatusCode.UNSET
    assert lease.start_time is not None
    assert run.start_time is not None
    assert run.end_time is not None
    assert lease.end_time is not None
    assert lease.start_time <= run.start_time < run.end_time <= lease.end_time
    # All belong to the span that the MCP SDK has of the call.
    (call,) = [
        span
        for span in exporter.get_finished_spans()
        if span.context is not None
        and run.parent is not None
        and span.context.span_id == run.parent.span_id
    ]
    assert call.name.startswith("tools/call")
    assert {span.parent.span_id for span in spans.values() if span.parent} == {call.context.span_id}
    assert "swordfish" not in "".join(span.to_json() for span in exporter.get_finished_spans())


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        pytest.param("error", StatusCode.UNSET, id="user code failed"),
        pytest.param("sandbox_lost", StatusCode.ERROR, id="the sandbox failed"),
    ],
)
def test_a_failure_of_ours_is_an_error_and_one_of_the_code_is_not(
    exporter: InMemorySpanExporter, outcome: str, status: StatusCode
) -> None:
    telemetry = Telemetry()
    key = SessionKey("me", "s-" + "0123456789abcdef" * 2)
    telemetry.observe(Transition(kind="run_ended", key=key, outcome=outcome, took=2.5))
    (span,) = ours(exporter)
    assert span.status.status_code is status
    attributes = dict(span.attributes or {})
    assert attributes.get("error.type") == (outcome if status is StatusCode.ERROR else None)
    assert key.name not in str(attributes)
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == 2_500_000_000


UNDER_AN_SDK = """
import sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
trace.set_tracer_provider(provider)
from e2b_agent_mcp.cli import run_command_line
run_command_line()
"""


def test_a_command_that_ends_has_sent_its_spans(engine: EngineAddress, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_AN_SDK, "run", "-c", "6 * 7"],
        env={
            **os.environ,
            "E2B_API_KEY": engine.api_key,
            "E2B_API_URL": engine.api_url,
            "E2B_SANDBOX_URL": engine.sandbox_url,
            "E2B_AGENT_MCP_ENGINE_STATE_DIR": str(tmp_path),
            "E2B_AGENT_MCP_OWNER": uuid.uuid4().hex,
            "E2B_AGENT_MCP_SANDBOXES_IDLE_AFTER": "5",
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.stdout == "42\n"
    names = {json.loads(text)["name"] for text in documents(done.stderr)}
    # The others are those of E2B's HTTP client.
    assert names > {"sandbox.create", "sandbox.lease", "sandbox.run"}
    assert engine.api_key not in done.stderr


def documents(text: str) -> Iterator[str]:
    """Each JSON object of the console exporter's output."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        _, end = decoder.raw_decode(text, start)
        yield text[start:end]
        start = text.find("{", end)
