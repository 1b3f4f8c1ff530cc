"""What a session lost with its sandbox, in words that a model reads."""


def expired(kept: float) -> str:
    """What is lost with a sandbox that E2B no longer has when its session comes back."""
    return (
        f"The session's earlier sandbox has ended (one is kept {kept:g} s after its last use, "
        "and may fail before). This is a new one: variables, files and installed packages of the "
        "session are gone."
    )


EXPLAIN_CRASH = (
    "The session's earlier sandbox ended while it was in use ({cause}). "
    "This is a new one: variables, files and installed packages of the session are gone."
)
EXPLAIN_STUCK = (
    "The session's earlier sandbox stopped answering after a run was cut short, and was ended. "
    "This is a new one: variables, files and installed packages of the session are gone."
)
EXPLAIN_REPLACED = (
    "The session's earlier sandbox had ended and another server replaced it: "
    "earlier variables, files and installed packages of the session are gone."
)
EXPLAIN_AGED = (
    "The session's earlier sandbox was older than sandboxes.max_age allows, and was ended. "
    "This is a new one: variables, files and installed packages of the session are gone."
)
EXPLAIN_RESTARTED = (
    "Code of an earlier call did not stop, so the interpreter was restarted: "
    "variables of the session are gone, files are kept."
)
EXPLAIN_RESTARTED_ELSEWHERE = (
    "The session's interpreter died or was restarted since the last call: "
    "variables from before are gone, files are kept."
)
EXPLAIN_REBOOTED = (
    "The session's sandbox came back with a fresh interpreter: files are kept, there are no "
    "variables or running programs from before."
)
