"""What the engine raises.

EngineError
├── IsolationUnavailable   no box can be made on this host; the message names the remedy
├── TemplateError          the read-only environment could not be built
├── StartError             the engine did not come up; carries the end of its log
├── LaunchError            one box did not come up
└── Refusal                a request that the control plane answers with a status
    ├── InvalidRequest     400
    ├── SandboxNotFound    404
    ├── SnapshotNotFound   404
    ├── TemplateNotFound   404
    ├── Conflict           409
    ├── KeyReused          422
    ├── TooManySandboxes   429
    ├── NotSupported       501
    ├── Busy               503
    └── LaunchRefused      500
"""

from __future__ import annotations


class EngineError(Exception):
    """The embedded engine cannot do what was asked; the message is for a person."""


class IsolationUnavailable(EngineError):
    pass


class TemplateError(EngineError):
    pass


class StartError(EngineError):
    pass


class LaunchError(EngineError):
    pass


class Refusal(EngineError):
    """Answered to the client as E2B's error body; every message may leave the host."""

    status = 400

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidRequest(Refusal):
    pass


class SandboxNotFound(Refusal):
    status = 404

    def __init__(self, sandbox_id: str, reason: str = "") -> None:
        """`reason`: for which limit it was killed, if that is why it is gone."""
        said = f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it"
        self.reason = reason
        super().__init__(f"{said}: killed: {reason}" if reason else said)


class SnapshotNotFound(Refusal):
    status = 404

    def __init__(self, reference: str) -> None:
        super().__init__(f"Snapshot '{reference[:100]}' not found")


class TemplateNotFound(Refusal):
    status = 404


class Conflict(Refusal):
    status = 409


class Busy(Refusal):
    """Nothing was changed."""

    status = 503


class KeyReused(Refusal):
    status = 422


class TooManySandboxes(Refusal):
    status = 429


class NotSupported(Refusal):
    status = 501


class LaunchRefused(Refusal):
    status = 500
