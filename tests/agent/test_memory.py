"""The agent's memory as JSON."""

import json

import pytest
from smolagents.memory import ActionStep, TaskStep
from smolagents.monitoring import AgentLogger, LogLevel, Timing
from smolagents.utils import AgentError

from e2b_agent_mcp.agent.memory import LONGEST_MEMORY, dump, load

LOGGER = AgentLogger(level=LogLevel.OFF)


def step(said: str | None, shown: str = "", error: str = "") -> ActionStep:
    return ActionStep(
        step_number=1,
        timing=Timing(0.0),
        model_output=said,
        observations=shown,
        error=AgentError(error, LOGGER) if error else None,
    )


def test_what_is_dumped_and_loaded_says_the_same_to_the_model() -> None:
    steps = [TaskStep(task="Do."), step("I do.", "done"), step("Again.", "", "failed")]
    loaded = load(json.loads(json.dumps(dump(steps, tasks={}))), LOGGER)
    assert [item.to_messages() for item in loaded] == [
        [
            message
            for message in item.to_messages()
            if message.content[0]["text"] != "Observation:\n"
        ]
        for item in steps
    ]


def test_a_step_that_said_nothing_is_left_out() -> None:
    assert dump([TaskStep(task="Do."), step(None)], tasks={}) == ({"task": "Do."},)


def test_a_long_memory_loses_its_oldest_steps_and_no_task() -> None:
    steps = [TaskStep(task="First."), *[step(f"{n}", "x" * 9000) for n in range(10)]]
    steps.append(TaskStep(task="Second."))
    dumped = dump(steps, tasks={})
    assert [entry.get("task") or entry["said"] for entry in dumped] == [
        *("First.", "4", "5", "6", "7", "8", "9", "Second.")
    ]
    assert len(json.dumps(dumped)) < LONGEST_MEMORY + 1000


def test_many_long_tasks_are_forgotten_but_for_the_newest() -> None:
    steps = [TaskStep(task=f"{n}" * 20_000) for n in range(5)]
    dumped = dump([*steps, TaskStep(task="9" * LONGEST_MEMORY), step("last")], tasks={})
    assert [str(entry["task"])[0] for entry in dumped] == ["9"]
    dumped = dump([*steps, step("last")], tasks={})
    assert [str(entry["task"])[0] for entry in dumped] == ["3", "4"]


def test_what_dump_did_not_make_is_refused() -> None:
    with pytest.raises(ValueError, match="neither a task nor a step"):
        load([{"something": "else"}], LOGGER)
