"""The two forms of a model's reply: text with tags around its code, and a JSON object by a schema.

The agent's memory holds the text form alone, so a task goes on whichever form its replies have. In
an object code is a list of lines: a small model that writes it as one string forgets the line
breaks, and its comments swallow what follows.

The tags are ours: `<code>` is found in any web page that the agent may write.
"""

import json
import re
from typing import Any

OPENING = "<python>"
CLOSING = "</python>"

# Any: a JSON schema, as the OpenAI API takes it.
REPLY_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "step",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "thought": {"type": "string"},
                "code": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["thought", "code"],
            "additionalProperties": False,
        },
    },
}

_FENCE = re.compile(r"^```[a-z]*\n(.*?)\n?```\s*$", re.DOTALL)


def tidy(text: str) -> str:
    """Nothing after the first code block, and no Markdown fence inside of it."""
    before, opening, rest = text.partition(OPENING)
    if not opening:
        return text
    code = rest.partition(CLOSING)[0].strip("\n")
    fenced = _FENCE.match(code.strip())
    return _joined(before, fenced.group(1) if fenced else code)


def from_json(text: str) -> str:
    """The text form of a reply that should be an object; not every server keeps to the schema."""
    try:
        reply = json.loads(text[text.find("{") : text.rfind("}") + 1])
        thought, code = reply.get("thought", ""), reply["code"]
    except (ValueError, KeyError, AttributeError):
        return tidy(text)
    lines = code if isinstance(code, list) else [code]
    return tidy(_joined(f"{thought}\n", "\n".join(map(str, lines))))


def to_json(text: str) -> str:
    """A reply as the model wrote it, from its text form."""
    before, opening, rest = text.partition(OPENING)
    if not opening:
        return text
    code = rest.partition(CLOSING)[0].strip("\n")
    return json.dumps({"thought": before.strip(), "code": code.split("\n")}, ensure_ascii=False)


def thought_of(text: str) -> str:
    """What a reply in its text form says beside its code."""
    return re.split(rf"{OPENING}|```", text, maxsplit=1)[0].strip()


def _joined(before: str, code: str) -> str:
    return f"{before}{OPENING}\n{code}\n{CLOSING}"
