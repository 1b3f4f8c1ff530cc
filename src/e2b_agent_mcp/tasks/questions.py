"""What a task asks of its client while it goes on, such as an answer of the client's own model.

A question is open until it is answered or whoever asked gives up. Its key is never used again: a
late answer, or one to a key that was never given out, is ignored.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(eq=False)
class Question(Generic[Asked, Answer]):
    asked: Asked
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    closed: anyio.Event = field(default_factory=anyio.Event)
    taken: bool = False  # somebody is about to answer it
    _result: Answer | Exception | None = None

    def answer(self, answer: Answer | Exception) -> None:
        """An exception is raised where the question was asked."""
        if not self.closed.is_set():
            self._result = answer
            self.closed.set()

    @contextmanager
    def being_answered(self) -> Iterator[None]:
        self.taken = True
        try:
            yield
        finally:
            self.taken = False

    async def result(self) -> Answer:
        await self.closed.wait()
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result


class Questions(Generic[Asked, Answer]):
    def __init__(self) -> None:
        self._asked: dict[str, Question[Asked, Answer]] = {}
        self._news = anyio.Event()

    @property
    def open(self) -> tuple[Question[Asked, Answer], ...]:
        return tuple(item for item in self._asked.values() if not item.closed.is_set())

    async def ask(self, asked: Asked) -> Answer:
        question = Question[Asked, Answer](asked)
        self._asked[question.key] = question
        self.wake()
        try:
            return await question.result()
        finally:
            question.closed.set()
            del self._asked[question.key]

    def next(self) -> Question[Asked, Answer] | None:
        """The oldest one that nobody is about to answer."""
        return next((item for item in self.open if not item.taken), None)

    def find(self, key: str) -> Question[Asked, Answer] | None:
        return next((item for item in self.open if item.key == key), None)

    async def news(self) -> None:
        """Waits for the next question, or for `wake`."""
        await self._news.wait()

    def wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()
