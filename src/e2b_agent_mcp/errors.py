"""The errors that a caller or operator can act on, and the door where E2B's errors become ours.

    E2BAgentError                      code
    ├── SettingsError                  settings: an option has a value it cannot have
    ├── InvalidArgumentError           invalid_argument: nothing was done
    ├── NotFoundError                  not_found: no such file, session or context
    ├── PathNotAllowedError            path_not_allowed: a host path outside the allowed folders
    ├── TooLargeError                  too_large: over a size limit, which the message names
    ├── MonthlyBudgetError             monthly_budget: what may be spent in a month is spent
    ├── SandboxError                   sandbox_error: E2B refused, reason in the message
    │   ├── AuthenticationError        authentication: the E2B key was rejected
    │   ├── LifeRefusedError           life_refused: longer than the plan lets a sandbox run
    │   ├── SandboxUnavailableError    sandbox_unavailable: none could be created or reached
    │   ├── SandboxLimitError          sandbox_limit: as many as may be are in use
    │   ├── RateLimitError             rate_limited: E2B asks to slow down
    │   ├── SandboxLostError           sandbox_lost: it ended, its variables and files are gone
    │   └── SandboxTimeoutError        sandbox_timeout: E2B did not answer in time
    ├── ModelError                     model_error: the language model refused, reason in it
    │   ├── ModelNotConfiguredError    no_model: no key and no model is set
    │   ├── ModelAuthenticationError   model_authentication: its key was rejected
    │   ├── ModelRateLimitError        model_rate_limited: it asks to slow down
    │   ├── ModelQuotaError            model_quota: the account has no credit or quota left
    │   ├── ModelContextError          context_too_long: the conversation is too long for it
    │   ├── ModelNotFoundError         model_not_found: no such model
    │   └── ModelUnavailableError      model_unavailable: it could not be reached, or failed
    └── EngineUnavailableError         engine_unavailable: the embedded engine cannot run here

Each has a `message` (what happened, what was lost) and a `hint` (what to do next). User code that
fails is a result, never one of these; any other exception is a defect of ours.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class E2BAgentError(Exception):
    """Root of the tree; `code` is stable and part of the tools' contract."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class SettingsError(E2BAgentError):
    code = "settings"


class InvalidArgumentError(E2BAgentError):
    code = "invalid_argument"


class NotFoundError(E2BAgentError):
    code = "not_found"


class PathNotAllowedError(E2BAgentError):
    code = "path_not_allowed"


class TooLargeError(E2BAgentError):
    code = "too_large"


class MonthlyBudgetError(E2BAgentError):
    code = "monthly_budget"


class SandboxError(E2BAgentError):
    """`reached` is False when the request certainly came to no sandbox, so may be sent again;
    `busy` is True when E2B asks to try again later."""

    code = "sandbox_error"
    reached = True
    busy = False


class AuthenticationError(SandboxError):
    code = "authentication"


class LifeRefusedError(SandboxError):
    """A sandbox may not live so long; `longest` is what E2B allows, in seconds, if it said so."""

    code = "life_refused"
    longest: float | None = None


class SandboxUnavailableError(SandboxError):
    code = "sandbox_unavailable"


class SandboxLimitError(SandboxError):
    code = "sandbox_limit"


class RateLimitError(SandboxError):
    code = "rate_limited"
    busy = True


class SandboxLostError(SandboxError):
    code = "sandbox_lost"
    limit: str = ""  # for which the embedded engine killed it; E2B's cloud does not say


class SandboxTimeoutError(SandboxError):
    code = "sandbox_timeout"


class EngineUnavailableError(E2BAgentError):
    code = "engine_unavailable"


class ModelError(E2BAgentError):
    code = "model_error"
    retry_after: float | None = None  # seconds, when the service says
    reached = True  # False: no service got the request


class ModelNotConfiguredError(ModelError):
    code = "no_model"


class ModelAuthenticationError(ModelError):
    code = "model_authentication"


class ModelRateLimitError(ModelError):
    code = "model_rate_limited"


class ModelQuotaError(ModelError):
    code = "model_quota"


class ModelContextError(ModelError):
    code = "context_too_long"


class ModelNotFoundError(ModelError):
    code = "model_not_found"


class ModelUnavailableError(ModelError):
    code = "model_unavailable"


@contextmanager
def sandbox_errors(doing: str) -> Iterator[None]:
    """Translates what the E2B SDK and its HTTP client raise into `SandboxError`s.

    `doing` completes "While …": "creating a sandbox". The SDK raises outside its own tree: two
    classes derive from `Exception`, connection failures are raw httpx or RPC errors, a gateway's
    non-JSON answer surfaces as `JSONDecodeError`, an empty one as a bare `Exception`.
    """
    try:
        yield
    except E2BAgentError:
        raise
    except Exception as exc:
        translated = _transport_error(exc, doing) or _sdk_error(exc, doing)
        if translated is None:
            raise
        raise translated from exc


# httpx and e2b are imported only when something failed: together they cost over a second.
def _transport_error(exc: Exception, doing: str) -> SandboxError | None:
    import connectrpc.errors
    import httpx

    if isinstance(exc, (httpx.TimeoutException, TimeoutError)):
        return _no_answer(doing)
    if isinstance(exc, json.JSONDecodeError):
        return _gateway_failed(doing, "its answer is not JSON")
    if isinstance(exc, connectrpc.errors.ConnectError):
        return _unreachable(exc.__cause__ or exc, doing)
    if not isinstance(exc, (httpx.HTTPError, OSError)):
        return None
    return _unreachable(exc, doing)


def _unreachable(exc: BaseException, doing: str) -> SandboxError:
    import httpx

    error = SandboxUnavailableError(
        f"E2B could not be reached while {doing} ({type(exc).__name__}).",
        hint="Check the network, HTTPS_PROXY, E2B_DOMAIN and E2B_API_URL, then try again.",
    )
    # Below the RPCs, `ConnectionError` stands for a connection that did not come about.
    error.reached = not isinstance(exc, (httpx.ConnectError, ConnectionError))
    return error


def _gateway_failed(doing: str, how: str) -> SandboxError:
    return SandboxUnavailableError(
        f"A gateway or proxy before E2B failed while {doing}: {how}.",
        hint="Wait a moment and try again; check E2B_API_URL and HTTPS_PROXY.",
    )


def _sdk_error(exc: Exception, doing: str) -> E2BAgentError | None:
    import e2b

    if isinstance(exc, e2b.AuthenticationException):
        return AuthenticationError(
            f"E2B rejected the API key while {doing}.",
            hint="Set E2B_API_KEY to a valid key (https://e2b.dev/dashboard), "
            "or unset it to use the embedded engine.",
        )
    if isinstance(exc, e2b.RateLimitException):
        return _too_many(str(exc), doing)
    if isinstance(exc, (e2b.SandboxNotRunningException, e2b.SandboxNotFoundException)):
        return _lost(str(exc), doing)
    if isinstance(exc, e2b.TimeoutException):
        unreachable = isinstance(exc, e2b.SandboxUnreachableException)
        return _sdk_timeout(str(exc), doing, unreachable=unreachable)
    if isinstance(exc, (e2b.NotFoundException, e2b.FileNotFoundException)):
        return NotFoundError(f"Not found while {doing}: {exc}")
    if isinstance(exc, e2b.InvalidArgumentException):
        return InvalidArgumentError(f"Refused while {doing}: {exc}")
    if isinstance(exc, e2b.NotEnoughSpaceException):
        return SandboxError(
            f"The sandbox's disk is full while {doing}.", hint="Delete files in the sandbox."
        )
    if isinstance(exc, e2b.ServiceBusyException):
        busy = SandboxUnavailableError(
            f"E2B is busy: it could not place a sandbox while {doing}.",
            hint="Wait a moment and try again.",
        )
        busy.busy = True
        return busy
    if isinstance(exc, e2b.SandboxException):
        return _refused(exc.status_code, str(exc), doing)
    # The SDK has no class for an answer without a body or a stream without an end.
    if type(exc) is Exception:
        return SandboxUnavailableError(
            f"E2B's answer was incomplete while {doing}: {exc}",
            hint="Wait a moment and try again.",
        )
    return None


def _too_many(text: str, doing: str) -> SandboxError:
    """E2B has one status for too many requests and for too many sandboxes; the words differ."""
    if any(word in text for word in ("concurrent", "maximum number", "max_sandboxes")):
        return SandboxLimitError(
            f"E2B refused while {doing}: {text}",
            hint="End sessions that are no longer needed, or take a larger E2B plan.",
        )
    return _rate_limited(doing)


def _sdk_timeout(text: str, doing: str, *, unreachable: bool) -> SandboxError:
    """E2B's timeouts also stand for a sandbox that is gone and for every other 502, told apart by
    their words alone."""
    if "was not found" in text or "was killed" in text:
        return _lost(text, doing)
    if "port is not open" in text:
        return SandboxError(
            f"The sandbox runs, but its service did not answer while {doing}.",
            hint="If it never does, the template lacks the code interpreter: "
            "unset E2B_AGENT_MCP_E2B_TEMPLATE, or build it from code-interpreter-v1.",
        )
    if unreachable or "likely due to sandbox timeout" in text:
        return _gateway_failed(doing, "it did not reach the sandbox")
    return _no_answer(doing)


def _refused(status: int | None, text: str, doing: str) -> SandboxError:
    if status is None:
        return _refused_by_sandbox(text, doing)
    if status in (500, 502, 504):
        return SandboxUnavailableError(
            f"E2B failed while {doing}: {text}", hint="Wait a moment and try again."
        )
    if status == 400 and "timeout" in text.lower():
        return _life_refused(text, doing)
    hint = ""
    if status == 405 or (status == 404 and "template" not in text.lower()):
        hint = "This E2B server may be older than the installed SDK: update it."
    return SandboxError(f"E2B refused while {doing}: {text}", hint=hint)


_UNITS = {"second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0}


def _life_refused(text: str, doing: str) -> LifeRefusedError:
    error = LifeRefusedError(
        f"E2B refused while {doing}: {text}",
        hint="Lower E2B_AGENT_MCP_SANDBOXES_IDLE_AFTER to what the E2B plan allows.",
    )
    if found := re.search(r"(\d+) ?(second|minute|hour|day)", text):
        error.longest = int(found[1]) * _UNITS[found[2]]
    return error


def _refused_by_sandbox(text: str, doing: str) -> SandboxError:
    """What a sandbox's services say, or a gateway before them, is told apart by the text alone."""
    status = re.match(r"\d{3}\b", text)
    if status is not None and status[0] == "429":
        return _rate_limited(doing)
    if status is not None and status[0] in ("502", "503", "504"):
        return _gateway_failed(doing, text)
    if "could not be decoded" in text or "invalid content-type" in text:
        return _gateway_failed(doing, "its answer is not E2B's")
    return SandboxError(
        f"The sandbox failed while {doing}: {text}",
        hint="Try again; if it fails again, end the session to get a new sandbox.",
    )


def _rate_limited(doing: str) -> SandboxError:
    return RateLimitError(
        f"E2B refused for now while {doing}: too many requests.",
        hint="Wait a moment and try again.",
    )


def _no_answer(doing: str) -> SandboxTimeoutError:
    return SandboxTimeoutError(
        f"E2B did not answer in time while {doing}.",
        hint="Wait a moment and try again; check the network and any proxy.",
    )


def _lost(text: str, doing: str) -> SandboxLostError:
    error = SandboxLostError(
        f"The sandbox ended while {doing}; its variables and files are gone.",
        hint="Run the code again: a new sandbox is created.",
    )
    # E2B's proxy says so of a sandbox that it has no address of.
    error.reached = "was not found" not in text
    if limit := re.search(r"was not found: killed: ([^:]+)", text):
        error.limit = limit[1]
    return error
