"""The room in one result, shared by everything that wants to be in it."""

from dataclasses import dataclass, field
from typing import NamedTuple

KEPT_LIMIT = 100_000_000  # bytes, of one result


class Kept(NamedTuple):
    """What a result has no room for; `path` is where the result says that it is."""

    path: str
    content: bytes


@dataclass
class Room:
    """What is left of a result's bytes, what had to be kept out of it, and the words about that."""

    session: str
    left: int
    folder: str | None
    images: int = 0  # met so far, sent or not
    kept: list[Kept] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def keep(self, name: str, content: bytes, words: str) -> None:
        """Has `content` written into the sandbox, and says so; `words` may be empty."""
        if self.folder is None or self._kept_bytes + len(content) > KEPT_LIMIT:
            self.words.append(f"{words or name}, could not be saved")
            return
        path = f"{self.folder}/{name}"
        self.kept.append(Kept(path, content))
        if words:
            self.words.append(f"{words}: {path}")

    @property
    def _kept_bytes(self) -> int:
        return sum(len(item.content) for item in self.kept)
