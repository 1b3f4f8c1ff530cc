"""The forms of a model's reply, and what is added to its code."""

import json

import pytest

from e2b_agent_mcp.agent.replies import from_json, thought_of, tidy, to_json
from e2b_agent_mcp.agent.variables import showing_variables

CODE = "for n in range(2):\n    print(n)  # counts"
TEXT = f"I count.\n<python>\n{CODE}\n</python>"
OBJECT = {"thought": "I count.", "code": CODE.split("\n")}


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(json.dumps(OBJECT), id="lines"),
        pytest.param(json.dumps({**OBJECT, "code": CODE}), id="one string"),
        pytest.param(
            json.dumps({**OBJECT, "code": ["```python", *CODE.split("\n"), "```"]}),
            id="fence in the code",
        ),
        pytest.param(f"Here it is:\n```json\n{json.dumps(OBJECT, indent=2)}\n```", id="fence"),
        pytest.param(TEXT, id="a server that knows no schemas"),
    ],
)
def test_a_reply_as_json_has_a_text_form(reply: str) -> None:
    assert from_json(reply) == TEXT
    assert thought_of(from_json(reply)) == "I count."


@pytest.mark.parametrize("reply", ["{}", "[1]", '{"thought": "No code', "I cannot.", ""])
def test_a_reply_without_code_stays_as_it_is(reply: str) -> None:
    assert from_json(reply) == tidy(reply) == to_json(reply) == reply


def test_the_model_is_shown_its_own_replies_as_it_wrote_them() -> None:
    assert json.loads(to_json(TEXT)) == OBJECT


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        pytest.param("x = 1", ("x",), id="assignment"),
        pytest.param("a, (b, *c) = d\nx: int = 1\nx += 2", ("a", "b", "c", "x"), id="each form"),
        pytest.param(
            "with open('f') as file:\n    data = file.read()", ("file", "data"), id="block"
        ),
        pytest.param("a = b = c = d = e = f = a = 1", ("c", "d", "e", "f", "a"), id="the newest"),
        pytest.param("x = 1\nx", (), id="ends with an expression"),
        pytest.param("import os\ndef f():\n    inside = 1", (), id="nothing set"),
        pytest.param("x = !ls", (), id="no plain Python"),
        pytest.param("x = (", (), id="broken"),
        pytest.param("# nothing", (), id="empty"),
        pytest.param("\0", (), id="no text"),
    ],
)
def test_variables_that_a_step_sets_are_shown(code: str, shown: tuple[str, ...]) -> None:
    whole = showing_variables(code)
    assert whole.startswith(code)
    told: list[str] = []
    added = whole.removeprefix(code)
    exec(added, {"_agent_shows": lambda *names: told.extend(names)})
    assert tuple(told) == shown
    exec(added, {})  # where code has deleted every name, nothing happens
