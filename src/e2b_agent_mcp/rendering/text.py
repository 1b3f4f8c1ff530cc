"""Text from a sandbox as a model should read it: plain, within a limit, and saying what was cut.

Nothing here trusts its input: it may hold terminal codes, halves of surrogate pairs that no JSON
can carry, and 50 MB of anything.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

_TERMINAL_CODE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\][^\x07\x1b]*(?:\x07|\x1b\\)"  # window titles, links
    r"|[@-Z\\-_])"
)


class Section(NamedTuple):
    """One named part of an output; `file` is where the whole of it goes when it is cut."""

    title: str
    text: str
    file: str


def readable(text: str) -> str:
    """Without terminal codes and overwritten lines: of a progress bar, its last state stays."""
    text = _TERMINAL_CODE.sub("", text).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return encodable(text)


def encodable(text: str) -> str:
    """With `?` for half surrogate pairs, which Python strings hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def plain(value: object, *, depth: int = 50) -> object:
    """`value` as JSON can carry it; what is nested deeper than `depth` is left out."""
    match value:
        case None | bool() | int():
            return value
        case str():
            return encodable(value)
        case float():
            return value if math.isfinite(value) else None
        case _ if not depth:
            return None
        case dict():
            return {
                encodable(str(key)): plain(item, depth=depth - 1) for key, item in value.items()
            }
        case list() | tuple():
            return [plain(item, depth=depth - 1) for item in value]
    return encodable(str(value))


def json_size(value: object) -> int:
    """Bytes of `value` in a message."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def shares(sizes: Sequence[int], limit: int) -> list[int]:
    """Splits `limit`: small ones get all they ask for, the others the same."""
    granted = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    for place, index in enumerate(order):
        granted[index] = min(sizes[index], limit // (len(sizes) - place))
        limit -= granted[index]
    return granted


def cut(text: str, limit: int, *, rest: str) -> str:
    """Its head and tail; the words between them say how much is missing and where the rest is."""
    if len(text) <= limit:
        return text
    tail = limit // 2
    gap = f"\n… [{len(text) - limit:,} of {len(text):,} characters cut here; {rest}] …\n"
    return text[: limit - tail] + gap + text[len(text) - tail :]


def fit(
    sections: Sequence[Section], *, characters: int, size: int, folder: str | None
) -> list[str]:
    """The text of each section, together within `characters` and, as JSON, `size` bytes."""
    while True:
        granted = shares([len(section.text) for section in sections], characters)
        texts = [
            cut(section.text, limit, rest=_where(section, folder))
            for section, limit in zip(sections, granted, strict=True)
        ]
        if (total := json_size(texts)) <= size or characters < 100:
            return texts
        characters = min(characters * size // total, characters * 9 // 10)


def _where(section: Section, folder: str | None) -> str:
    return f"all of it: {folder}/{section.file}" if folder else "the rest could not be saved"
