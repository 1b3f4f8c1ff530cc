"""The agent's memory as JSON, to go on with it in a later run or another process.

What the model said and was shown is kept, without images; what a run costs and how long it took is
not. It is shortened from its beginning, so that a session of many tasks stays within a prompt.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smolagents.memory import ActionStep, MemoryStep, TaskStep
from smolagents.monitoring import AgentLogger, Timing
from smolagents.utils import AgentError

LONGEST_MEMORY = 60_000  # characters, about 15k tokens

Entry = dict[str, object]


def dump(steps: Iterable[MemoryStep], *, tasks: Mapping[str, str]) -> tuple[Entry, ...]:
    """`tasks` gives a prompt's task alone: what was in the sandbox then is no news later."""
    return _shortened([entry for step in steps if (entry := _entry(step, tasks)) is not None])


def load(entries: Sequence[Entry], logger: AgentLogger) -> list[TaskStep | ActionStep]:
    """Raises `ValueError` for what `dump` did not make."""
    return [_step(entry, logger) for entry in entries]


def _entry(step: MemoryStep, tasks: Mapping[str, str]) -> Entry | None:
    if isinstance(step, TaskStep):
        return {"task": tasks.get(step.task, step.task)}
    if isinstance(step, ActionStep) and step.model_output is not None:
        return {
            "said": str(step.model_output),
            "shown": step.observations or "",
            "error": str(step.error) if step.error is not None else "",
        }
    return None


def _step(entry: Entry, logger: AgentLogger) -> TaskStep | ActionStep:
    if "task" in entry:
        return TaskStep(task=str(entry["task"]))
    # Any: smolagents has no types.
    values: dict[str, Any] = {name: str(entry.get(name) or "") for name in ("said", "shown")}
    if not values["said"]:
        raise ValueError("an entry of the memory is neither a task nor a step")
    return ActionStep(
        step_number=0,
        timing=Timing(start_time=0.0, end_time=0.0),
        model_output=values["said"],
        observations=values["shown"] or None,
        error=AgentError(str(entry["error"]), logger) if entry.get("error") else None,
    )


def _shortened(entries: list[Entry]) -> tuple[Entry, ...]:
    """Drops the oldest steps, then the oldest tasks: they explain what came after. The newest task
    stays, however long it is."""
    newest = max((n for n, entry in enumerate(entries) if "task" in entry), default=None)
    order = sorted(range(len(entries)), key=lambda n: ("task" in entries[n], n))
    size = sum(map(_size, entries))
    dropped = set()
    for n in order:
        if size > LONGEST_MEMORY and n != newest:
            size -= _size(entries[n])
            dropped.add(n)
    return tuple(entry for n, entry in enumerate(entries) if n not in dropped)


def _size(entry: Entry) -> int:
    return len(json.dumps(entry))
