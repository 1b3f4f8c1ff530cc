"""Arguments that several tools take, and the checks that a JSON schema cannot express.

Every refusal starts with the name of the argument.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, ValidationError

from e2b_agent_mcp.errors import InvalidArgumentError
from e2b_agent_mcp.settings import RunSettings

SessionArgument = Annotated[
    str | None,
    Field(
        description="Name of the session to work in; made on first use. Omit it for the default "
        "one. Variables, files and installed packages stay in a session."
    ),
]
TimeoutArgument = Annotated[
    float | None,
    Field(
        gt=0,
        allow_inf_nan=False,
        description="Seconds it may run; then it is interrupted and variables are kept.",
    ),
]


def check_not_empty(name: str, value: str) -> None:
    if not value.strip():
        raise InvalidArgumentError(f"{name}: is empty.")


def check_timeout(timeout: float | None, runs: RunSettings) -> float:
    """The limit of this run, in seconds."""
    if timeout is not None and timeout > runs.max_timeout:
        raise InvalidArgumentError(
            f"timeout: {timeout:g} s is more than the {runs.max_timeout:g} s allowed.",
            hint="Split the work, or start it in the background and look again later.",
        )
    return runs.timeout if timeout is None else timeout


def check_packages(packages: Sequence[str]) -> list[str]:
    """PyPI requirements; an option of pip is not one."""
    for index, package in enumerate(packages):
        plain = package.strip()
        if not plain or plain.startswith("-") or not plain.isprintable():
            raise InvalidArgumentError(
                f"packages[{index}]: {package[:80]!r} is not a requirement.",
                hint="Give names of PyPI packages, such as 'polars' or 'polars>=1'.",
            )
    return [package.strip() for package in packages]


def explain(error: ValidationError) -> str:
    """One line for each argument that does not fit the tool's schema."""
    return "\n".join(
        f"{'.'.join(map(str, item['loc']))}: "
        + ("is required" if item["type"] == "missing" else item["msg"])
        for item in error.errors(include_url=False, include_input=False)
    )
