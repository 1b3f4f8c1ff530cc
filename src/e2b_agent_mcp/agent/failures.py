"""What litellm raises, as `ModelError`s: told apart by the HTTP status that the service gave.

litellm's own classes mislead: a refused connection and a missing key are both an
`InternalServerError`, an empty account is a `RateLimitError`. Messages are cut, and keys that are
set never stay in them.
"""

import re
from collections.abc import Sequence

from e2b_agent_mcp.agent.choice import PROVIDERS, Choice
from e2b_agent_mcp.errors import (
    ModelAuthenticationError,
    ModelContextError,
    ModelError,
    ModelNotFoundError,
    ModelQuotaError,
    ModelRateLimitError,
    ModelUnavailableError,
)
from e2b_agent_mcp.settings import Secret, without_credentials

LONGEST_MESSAGE = 400  # characters
SHORTEST_SECRET = 6  # characters; a shorter one would take ordinary words out of messages

_PREFIX = re.compile(r"^(?:litellm\.)?[A-Za-z]+(?:Error|Exception)(?::| -)\s*")
_LOOKS_LIKE_KEY = re.compile(r"\b(?:sk|gsk|xai|AIza)[-_]?[A-Za-z0-9_-]{12,}")
_NO_MONEY = re.compile(r"quota|billing|credit|balance|payment", re.IGNORECASE)
_TOO_LONG = re.compile(r"context (?:length|window)|too long|maximum context|too many tokens", re.I)


def translate(exc: Exception, choice: Choice, secrets: Sequence[Secret]) -> ModelError:
    said = _said(exc, secrets)
    error = _error(exc, choice, said)
    error.retry_after = _retry_after(exc)
    return error


def _error(exc: Exception, choice: Choice, said: str) -> ModelError:
    import litellm

    status = getattr(exc, "status_code", None)
    model = choice.model
    if isinstance(exc, TimeoutError) or status == 408:
        return ModelUnavailableError(f"{model} did not answer in time.", hint=_TRY_AGAIN)
    if isinstance(exc, litellm.ContextWindowExceededError) or (
        status in (400, 413, 422) and _TOO_LONG.search(said)
    ):
        return ModelContextError(
            f"The conversation is too long for {model}: {said}",
            hint="Start afresh with a smaller task, or choose a model with a larger context.",
        )
    if "LLM Provider NOT provided" in said:
        return ModelNotFoundError(
            f"LiteLLM knows no provider for the model {model}.",
            hint="Name it as PROVIDER/MODEL, such as openai/gpt-5.4-mini; for a server of your own "
            "set E2B_AGENT_MCP_AGENT_BASE_URL too.",
        )
    if status in (401, 403):
        return ModelAuthenticationError(
            f"The key for {model} was rejected: {said}", hint=f"Check {_variable(choice)}."
        )
    if status == 402 or (status == 429 and _is_quota(exc, said)):
        return ModelQuotaError(
            f"The account for {model} has no credit or quota left: {said}",
            hint="Add credit, or choose another model.",
        )
    if status == 429:
        return ModelRateLimitError(f"{model} asks to slow down: {said}", hint=_TRY_AGAIN)
    if status == 404:
        return ModelNotFoundError(
            f"There is no model {model} here: {said}", hint="Check the model's name."
        )
    if isinstance(status, int) and status >= 500:
        return _unavailable(exc, choice, said)
    return ModelError(f"{model} refused: {said}")


_TRY_AGAIN = "Try again in a while, or name another model."


def _unavailable(exc: Exception, choice: Choice, said: str) -> ModelUnavailableError:
    if _headers(exc) is None and "onnection" in said:
        where = without_credentials(choice.base_url or "its service")
        error = ModelUnavailableError(
            f"{choice.model} could not be reached at {where}.",
            hint="Check that it runs, the network, and E2B_AGENT_MCP_AGENT_BASE_URL.",
        )
        error.reached = False
        return error
    return ModelUnavailableError(f"{choice.model} failed: {said}", hint=_TRY_AGAIN)


def _variable(choice: Choice) -> str:
    if choice.base_url is not None:
        return "E2B_AGENT_MCP_AGENT_API_KEY"
    prefix = choice.model.partition("/")[0]
    known = {provider.name: provider.variable for provider in PROVIDERS}
    return known.get(prefix, "E2B_AGENT_MCP_AGENT_API_KEY")


def _is_quota(exc: Exception, said: str) -> bool:
    body = getattr(exc, "body", None)
    code = body.get("code") if isinstance(body, dict) else None
    return code == "insufficient_quota" or bool(_NO_MONEY.search(said))


def _said(exc: Exception, secrets: Sequence[Secret]) -> str:
    text = str(getattr(exc, "message", None) or exc)
    while (shorter := _PREFIX.sub("", text)) != text:
        text = shorter
    for secret in secrets:
        if len(secret.reveal()) >= SHORTEST_SECRET:
            text = text.replace(secret.reveal(), "***")
    text = _LOOKS_LIKE_KEY.sub("***", text).strip()
    return text if len(text) <= LONGEST_MESSAGE else text[:LONGEST_MESSAGE] + "…"


def _retry_after(exc: Exception) -> float | None:
    headers = _headers(exc)
    value = headers.get("retry-after", "") if headers is not None else ""
    try:
        return max(0.0, float(value))
    except ValueError:  # absent, or a date
        return None


def _headers(exc: Exception) -> "dict[str, str] | None":
    headers: dict[str, str] | None = getattr(exc, "litellm_response_headers", None)
    return headers
