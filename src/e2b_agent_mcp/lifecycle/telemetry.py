"""Transitions as OpenTelemetry's metrics and spans. The door of its API.

Only the API is used: it does nothing, and costs about a microsecond a call, until whoever runs the
process installs an SDK. Spans are made when they are over, as children of the caller's span, which
for a tool call is the MCP SDK's. Metrics have attributes of few values; sandboxes, owners and
sessions are named on spans alone.

    counter    e2b_agent_mcp.sandbox.transitions      transition, outcome
    histogram  e2b_agent_mcp.sandbox.create.duration  outcome
    histogram  e2b_agent_mcp.lease.wait.duration      outcome: what became of the session's sandbox
    histogram  e2b_agent_mcp.lease.duration
    histogram  e2b_agent_mcp.run.duration             outcome: its status, or the error's code
    spans      sandbox.create, sandbox.resume, sandbox.lease, sandbox.run
"""

import time
from importlib.metadata import version
from typing import NamedTuple

from opentelemetry import metrics, trace
from opentelemetry.trace import Status, StatusCode

from e2b_agent_mcp.lifecycle.transitions import ANSWERS, Kind, Transition, shown

SCOPE = "e2b_agent_mcp"
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

# What is no failure of the sandbox: user code that fails is a result.
_FINE = {
    *("", "created", "reused", "resumed", "recreated"),
    *("ok", "error", "timeout", "interrupted", "cancelled"),
}


class _Measured(NamedTuple):
    """A transition that took time: `span` is "" where a metric is enough."""

    histogram: str
    help: str
    span: str = ""


_MEASURED: dict[Kind, _Measured] = {
    "created": _Measured("sandbox.create.duration", "Creating a sandbox", "sandbox.create"),
    "not_created": _Measured("sandbox.create.duration", "Creating a sandbox", "sandbox.create"),
    "resumed": _Measured("sandbox.resume.duration", "Resuming a sandbox", "sandbox.resume"),
    "leased": _Measured("lease.wait.duration", "Waiting for a lease"),
    "released": _Measured("lease.duration", "Exclusive use of a sandbox", "sandbox.lease"),
    "run_ended": _Measured("run.duration", "Code or a command in a sandbox", "sandbox.run"),
}


class Telemetry:
    """An observer of transitions; uses the providers that the process has set."""

    def __init__(self) -> None:
        release = version("e2b-agent-mcp")
        self._tracer = trace.get_tracer(SCOPE, release)
        meter = metrics.get_meter(SCOPE, release)
        self._transitions = meter.create_counter(
            f"{SCOPE}.sandbox.transitions", "{transition}", "What happened to sandboxes"
        )
        self._histograms = {
            measured.histogram: meter.create_histogram(
                f"{SCOPE}.{measured.histogram}",
                "s",
                measured.help,
                explicit_bucket_boundaries_advisory=_SECONDS,
            )
            for measured in _MEASURED.values()
        }

    def observe(self, told: Transition) -> None:
        outcome = {"outcome": told.outcome} if told.outcome else {}
        if told.kind not in ANSWERS:
            self._transitions.add(1, {"transition": told.kind, **outcome})
        measured = _MEASURED.get(told.kind)
        if measured is None or told.took is None:
            return
        self._histograms[measured.histogram].record(told.took, outcome)
        if measured.span:
            self._trace(measured.span, told, told.took)

    def _trace(self, name: str, told: Transition, took: float) -> None:
        now = time.time_ns()
        span = self._tracer.start_span(name, start_time=now - int(took * 1e9))
        if span.is_recording():
            span.set_attributes(_attributes(told))
            if told.outcome not in _FINE:
                span.set_attribute("error.type", told.outcome)
                span.set_status(Status(StatusCode.ERROR))
        span.end(now)


def _attributes(told: Transition) -> dict[str, str]:
    found = {"sandbox.id": told.sandbox_id, "outcome": told.outcome}
    if told.key is not None:
        found |= {"owner": told.key.owner, "session": shown(told.key.name)}
    return {f"{SCOPE}.{name}": value for name, value in found.items() if value}
