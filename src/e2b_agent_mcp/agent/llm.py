"""Asks language models through litellm: streams, repeats, falls back, counts.

Contract of `Llm.ask`: it can be cancelled at any moment, which closes the connection. It repeats
what is worth repeating (too many requests, unreachable, a stream that broke) after the time that
the service asks for, then goes on to the next model, and raises the first model's `ModelError` when
all have failed. Every call is counted, also one that broke off: what was sent has been paid for,
unless the service refused it or was never reached.

litellm's and the OpenAI client's own retries are off: they sleep uncounted and unseen.

The model of the caller's client is asked through `AskClient`, once: a client that does not answer
is not there. What that costs is not known.
"""

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio

from e2b_agent_mcp.agent.budget import Price, add
from e2b_agent_mcp.agent.choice import CLIENT, Choice
from e2b_agent_mcp.agent.events import Usage
from e2b_agent_mcp.agent.failures import translate
from e2b_agent_mcp.errors import ModelError, ModelRateLimitError, ModelUnavailableError
from e2b_agent_mcp.settings import Secret

logger = logging.getLogger(__name__)

TRIES = 4  # of one model
FIRST_DELAY = 1.0  # seconds; doubled with each try
LONGEST_DELAY = 60.0  # seconds; a service that asks for more is given up
PATIENCE = 15.0  # seconds that are waited when another model could be asked instead
OLLAMA_CONTEXT = 16_384  # tokens; its default of 4096 cuts off the system prompt
CHARACTERS_PER_TOKEN = 4  # where the service does not count
IMAGE_TOKENS = 1000

T = TypeVar("T")
Message = Mapping[str, object]
OnText = Callable[[int], Awaitable[None]]  # characters of the reply so far
OnRetry = Callable[[ModelError, float, str], Awaitable[None]]  # why, seconds until, whom


@dataclass(frozen=True, kw_only=True)
class Reply:
    text: str
    complete: bool  # False: it reached the limit of its length
    model: str
    usage: Usage


@dataclass(frozen=True, kw_only=True)
class Request:
    messages: Sequence[Message]
    stop: Sequence[str] = ()
    longest: int | None = None  # tokens of the reply
    # Any: what the model's service understands beyond that, as litellm names it.
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ClientReply:
    """What the model of the caller's client said."""

    text: str
    complete: bool
    model: str  # the client's name for it


AskClient = Callable[[Request], Awaitable[ClientReply]]


class Llm:
    """The models of one run, and what asking them has cost so far."""

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        secrets: Sequence[Secret],
        silence: float,
        on_text: OnText,
        on_retry: OnRetry,
        client: AskClient | None = None,
    ) -> None:
        self.spent = Usage()
        self.dollars = 0.0  # as far as prices are known; `spent` has none once one is not
        self.model = choices[0].model
        self._choices = choices
        self._secrets = secrets
        self._silence = silence
        self._on_text = on_text
        self._on_retry = on_retry
        self._client = client

    @property
    def price(self) -> Price | None:
        """Of the dearest model that may be asked, as far as prices are known."""
        known = (price(choice.model) for choice in self._choices)
        return max(filter(None, known), key=lambda found: found.output, default=None)

    async def ask(self, request: Request) -> Reply:
        first: ModelError | None = None
        for number, choice in enumerate(self._choices):
            following = self._choices[number + 1].model if number + 1 < len(self._choices) else ""
            try:
                if choice.model == CLIENT:
                    return await self._ask_client(request)
                return await self._ask(choice, request, following)
            except ModelError as exc:
                logger.info("model failed: %s: %s", choice.model, exc.code)
                first = first or exc
                if following:
                    await self._on_retry(exc, 0.0, following)
        assert first is not None
        raise first

    async def _ask(self, choice: Choice, request: Request, following: str) -> Reply:
        for trial in range(TRIES):
            try:
                return await self._call(choice, request)
            except (ModelRateLimitError, ModelUnavailableError) as exc:
                delay = _delay(exc, trial)
                if trial == TRIES - 1 or delay > (PATIENCE if following else LONGEST_DELAY):
                    raise
                await self._on_retry(exc, delay, choice.model)
            await anyio.sleep(delay)
        raise AssertionError("unreachable")

    async def _ask_client(self, request: Request) -> Reply:
        assert self._client is not None
        said = ""
        try:
            with anyio.fail_after(self._silence):
                reply = await self._client(request)
            said = reply.text
        except TimeoutError:
            raise ModelUnavailableError(
                f"The model of your client did not answer within {self._silence:g} s. It can be "
                "asked only while the client waits in run_agent_task or get_agent_task.",
                hint="run_agent_task with this task_id goes on.",
            ) from None
        finally:
            tokens = -(-len(said) // CHARACTERS_PER_TOKEN)
            usage = Usage(
                llm_calls=1,
                input_tokens=estimate(request.messages),
                output_tokens=tokens,
                cost_usd=None,
            )
            self.spent = add(self.spent, usage)
        self.model = f"{CLIENT}/{reply.model}"
        return Reply(text=said, complete=reply.complete, model=self.model, usage=usage)

    async def _call(self, choice: Choice, request: Request) -> Reply:
        received = _Received()
        charged = True
        try:
            # Any: litellm's streams and chunks have no useful type.
            stream: Any = await self._bounded(choice, lambda: _open(choice, request))
            async with aclosing(stream):
                while chunk := await self._bounded(choice, lambda: anext(stream, None)):
                    received.add(chunk)
                    await self._on_text(received.size)
                    # Asked for more, litellm would put the reply together, price it and log it.
                    if received.is_whole:
                        break
        except ModelError as exc:
            # What broke off is a `ModelUnavailableError`; the others refuse.
            begun = exc.reached and isinstance(exc, ModelUnavailableError)
            charged = begun or received.size > 0
            raise
        finally:
            usage = received.usage(choice.model, request) if charged else Usage(llm_calls=1)
            self.spent = add(self.spent, usage)
            self.dollars += usage.cost_usd or 0.0
        self.model = choice.model
        complete = received.finish != "length"
        return Reply(text=received.text, complete=complete, model=choice.model, usage=usage)

    async def _bounded(self, choice: Choice, call: Callable[[], Awaitable[T]]) -> T:
        try:
            with anyio.fail_after(self._silence):
                return await call()
        except Exception as exc:  # litellm lets through whatever a service's module raises
            raise translate(exc, choice, self._secrets) from None


# Any: see `_call`.
async def _open(choice: Choice, request: Request) -> Any:
    import litellm

    options = dict(request.options)
    if request.longest is not None:
        options["max_tokens"] = request.longest
    if choice.model.startswith("ollama"):
        options["num_ctx"] = OLLAMA_CONTEXT
    return await litellm.acompletion(
        model=choice.model,
        messages=list(request.messages),
        stop=list(request.stop) or None,
        stream=True,
        stream_options={"include_usage": True},
        api_key=choice.api_key.reveal() if choice.api_key is not None else None,
        api_base=choice.base_url,
        drop_params=True,
        max_retries=0,
        num_retries=0,
        **options,
    )


@dataclass
class _Received:
    """What has come of one reply."""

    pieces: list[str] = field(default_factory=list)
    size: int = 0  # characters, with those of a thought that is not shown
    finish: str = ""
    counted: Any = None  # the service's own count

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_whole(self) -> bool:
        """The count comes after everything else, where the service counts at all."""
        return bool(self.finish) and self.counted is not None

    def add(self, chunk: Any) -> None:
        self.counted = getattr(chunk, "usage", None) or self.counted
        for choice in chunk.choices[:1]:
            self.finish = choice.finish_reason or self.finish
            piece = choice.delta.content or ""
            hidden = getattr(choice.delta, "reasoning_content", None) or ""
            self.pieces.append(piece)
            self.size += len(piece) + len(hidden)

    def usage(self, model: str, request: Request) -> Usage:
        if self.counted is not None:
            given, taken = self.counted.prompt_tokens, self.counted.completion_tokens
        else:
            given, taken = estimate(request.messages), -(-self.size // CHARACTERS_PER_TOKEN)
        known = price(model)
        cost = None if known is None else known.of(given, taken, cached=self._cached)
        return Usage(llm_calls=1, input_tokens=given, output_tokens=taken, cost_usd=cost)

    @property
    def _cached(self) -> int:
        details = getattr(self.counted, "prompt_tokens_details", None)
        return getattr(details, "cached_tokens", None) or 0


def estimate(messages: Sequence[Message]) -> int:
    """Tokens of a prompt, roughly; counting them exactly takes a tokenizer of each model."""
    tokens = 0
    for message in messages:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            text = part["type"] == "text"
            tokens += len(str(part["text"])) // CHARACTERS_PER_TOKEN if text else IMAGE_TOKENS
    return tokens + 4 * len(messages)


def price(model: str) -> Price | None:
    """From litellm's own list; None for a model that it does not know."""
    entry = _entry(model)
    given, taken = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if given is None or taken is None:
        return None
    return Price(input=given, output=taken, cached=entry.get("cache_read_input_token_cost", given))


def sees(model: str) -> bool:
    """Whether the model takes images, as far as litellm knows."""
    return bool(_entry(model).get("supports_vision"))


# Any: the entries' values are of many types.
def _entry(model: str) -> Mapping[str, Any]:
    """litellm's own look-up may ask a server over the network, in the middle of the event loop."""
    if model == CLIENT:
        return {}
    import litellm

    provider, _, name = model.partition("/")
    entry: Mapping[str, Any] = litellm.model_cost.get(model) or {}
    if not entry:
        entry = litellm.model_cost.get(name) or {}
        if entry.get("litellm_provider") != provider:
            return {}
    return entry


def _delay(error: ModelError, trial: int) -> float:
    if error.retry_after is not None:
        return error.retry_after
    return FIRST_DELAY * 2.0**trial * random.uniform(0.5, 1.0)  # noqa: S311
