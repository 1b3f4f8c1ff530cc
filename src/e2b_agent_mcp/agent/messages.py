"""The agent's memory as the messages of a chat, with each thing said once.

smolagents repeats every code as a "tool call" after the reply that holds it; that is left out.
Images are costly and sent again with each call, so only the newest ones stay.
"""

import base64
from collections.abc import Sequence
from typing import Any

from smolagents.models import ChatMessage, MessageRole

from e2b_agent_mcp.agent.events import Image
from e2b_agent_mcp.agent.text import cut

STEPS_WITH_IMAGES = 2  # the newest
MOST_IMAGES = 4  # of one step
NEWEST = 3  # messages that stay whole when the others are shortened
SHORTENED = 400  # characters
SHOWN_TYPES = frozenset({"image/png", "image/jpeg"})

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.TOOL_RESPONSE: "user",
}

# Any: the parts of a message, as the chat APIs have them.
Part = dict[str, Any]


def to_messages(
    memory: Sequence[ChatMessage], *, images: bool, shorten: bool = False
) -> list[dict[str, object]]:
    """Neighbours of one role become one message: some services refuse them apart.

    `shorten` cuts all that was shown but the task and the newest, for a model of small context.
    """
    with_images = [index for index, message in enumerate(memory) if _images(message)]
    shown = set(with_images[-STEPS_WITH_IMAGES:]) if images else set()
    merged: list[tuple[str, list[Part]]] = []
    for index, message in enumerate(memory):
        if (role := _ROLES.get(message.role)) is None:
            continue
        parts = _texts(message)
        if shorten and message.role == MessageRole.TOOL_RESPONSE and index < len(memory) - NEWEST:
            parts = [{**part, "text": cut(part["text"], SHORTENED)} for part in parts]
        if index in shown:
            parts += map(_image_part, _images(message)[:MOST_IMAGES])
        if merged and merged[-1][0] == role:
            merged[-1][1].extend(parts)
        elif parts:
            merged.append((role, parts))
    return [{"role": role, "content": _content(parts)} for role, parts in merged]


def has_images(messages: Sequence[dict[str, object]]) -> bool:
    return any(isinstance(message["content"], list) for message in messages)


def _content(parts: list[Part]) -> object:
    """Plain text where there is only text: not every server takes parts."""
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


def _texts(message: ChatMessage) -> list[Part]:
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}]
    return [part for part in message.content or [] if part["type"] == "text" and part["text"]]


def _images(message: ChatMessage) -> list[Image]:
    parts = message.content if isinstance(message.content, list) else []
    found = [part["image"] for part in parts if part["type"] == "image"]
    return [image for image in found if image.mime_type in SHOWN_TYPES]


def _image_part(image: Image) -> Part:
    data = base64.b64encode(image.data).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{image.mime_type};base64,{data}"}}
