"""The languages a context can have: which program runs one, and how it sets variables.

A language whose program the sandbox lacks is refused by name, with what there is instead.
A program that a user installs at run time counts.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from ..config import GuestConfig
from .channels import Transport

STARTUP = Path(__file__).parent / "startup"
DENO_PREFACE = Path(__file__).parent / "deno.js"

DENO_SETTLE = 0.05  # seconds; deno publishes a result sometimes after it said that it is idle


@dataclass(frozen=True, kw_only=True)
class Language:
    """`command` gives the argv for a connection file; `FileNotFoundError`: no such program.

    `preface` is code that each kernel runs before any other; nobody hears of it. `check` gives the
    argv of a program that reads code and says on stderr what is wrong with it, for a kernel that
    does not.
    """

    name: str
    command: Callable[[GuestConfig, Mapping[str, str], Path], list[str]]
    assign: Callable[[str, str], str]
    remove: Callable[[str], str]
    preface: str = ""
    check: Callable[[Mapping[str, str]], list[str]] | None = None
    settle: float = 0.0
    transport: Transport = "ipc"

    def change_variables(self, before: Mapping[str, str], after: Mapping[str, str]) -> str:
        """The code that makes a kernel's environment `after`; empty when it is that already."""
        changed = [self.assign(k, v) for k, v in after.items() if before.get(k) != v]
        return "\n".join(changed + [self.remove(k) for k in before if k not in after])


def _python(config: GuestConfig, environ: Mapping[str, str], connection: Path) -> list[str]:
    return [str(config.python), str(STARTUP), str(connection)]


def _bash(config: GuestConfig, environ: Mapping[str, str], connection: Path) -> list[str]:
    venv = config.python.parent.parent
    places = [config.site, *venv.glob("lib/python*/site-packages")]
    if not any((place / "bash_kernel").is_dir() for place in places):
        raise FileNotFoundError("the package bash_kernel is not installed")
    return [str(config.python), "-P", "-m", "bash_kernel", "-f", str(connection)]


def _deno(config: GuestConfig, environ: Mapping[str, str], connection: Path) -> list[str]:
    return [_find_deno(environ), "jupyter", "--kernel", "--conn", str(connection)]


def _check_deno(environ: Mapping[str, str]) -> list[str]:
    """It formats the code, for which it has to read all of it and to run nothing."""
    return [_find_deno(environ), "fmt", "--no-config", "--ext", "ts", "-"]


def _find_deno(environ: Mapping[str, str]) -> str:
    deno = which("deno", path=environ.get("PATH"))
    if deno is None:
        raise FileNotFoundError("the program deno is not installed")
    return deno


def _assign_python(name: str, value: str) -> str:
    return f"__import__('os').environ[{name!r}] = {value!r}"


def _remove_python(name: str) -> str:
    return f"__import__('os').environ.pop({name!r}, None)"


def _assign_bash(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _remove_bash(name: str) -> str:
    return f"unset {name}"


def _assign_deno(name: str, value: str) -> str:
    return f"Deno.env.set({json.dumps(name)}, {json.dumps(value)});"


def _remove_deno(name: str) -> str:
    return f"Deno.env.delete({json.dumps(name)});"


PYTHON = Language(name="python", command=_python, assign=_assign_python, remove=_remove_python)
BASH = Language(name="bash", command=_bash, assign=_assign_bash, remove=_remove_bash)
JAVASCRIPT, TYPESCRIPT = (
    Language(
        name=name,
        command=_deno,
        assign=_assign_deno,
        remove=_remove_deno,
        preface=DENO_PREFACE.read_text(),
        check=_check_deno,
        settle=DENO_SETTLE,
        transport="tcp",
    )
    for name in ("javascript", "typescript")
)

LANGUAGES = {language.name: language for language in (PYTHON, BASH, JAVASCRIPT, TYPESCRIPT)}
ALIASES = {"js": "javascript", "ts": "typescript", "py": "python", "python3": "python"}


def find_language(name: str) -> Language | None:
    folded = name.strip().lower()
    return LANGUAGES.get(ALIASES.get(folded, folded))
