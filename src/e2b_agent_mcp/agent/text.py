"""Output of a sandbox as the model is shown it: plain, within a limit, and marked as data."""

import re

_TERMINAL_CODE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|\][^\x07\x1b]*(?:\x07|\x1b\\)"  # window titles, links
    r"|[@-Z\\-_])"
)


def readable(text: str) -> str:
    """Without terminal codes and overwritten lines, and with only what UTF-8 can say."""
    text = _TERMINAL_CODE.sub("", text).replace("\r\n", "\n")
    text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return text.encode("utf-8", "replace").decode()


def cut(text: str, limit: int) -> str:
    """Its head and tail, and how much is missing between them."""
    if len(text) <= limit:
        return text
    tail = limit // 2
    gap = f"\n… [{len(text) - limit:,} of {len(text):,} characters cut; print less] …\n"
    return text[: limit - tail] + gap + text[len(text) - tail :]


def quoted(text: str) -> str:
    """As data between tags, which the text itself cannot close."""
    inside = re.sub(r"<(/?)(?=output\b)", r"<\1 ", text, flags=re.IGNORECASE)
    return f"<output>\n{inside}\n</output>"
