"""What one guest is told when it starts, and the variables its processes get.

The environment of a process is built from three layers, the later ones winning: the base
(what the box set, plus the user's own names), the sandbox's variables (given at creation,
delivered by `POST /init`), and the variables of the one request.
"""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from .kills import Kills

USERS = frozenset({"user", "root"})  # one uid in a box: both names mean it

DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(kw_only=True)
class GuestConfig:
    """`python` runs kernels; `site` holds the template's packages (read-only in a box).

    One object per guest, shared: what it holds is read when it is needed.
    """

    home: Path = Path("/home/user")
    user: str = "user"
    python: Path = Path("/home/user/.venv/bin/python")
    site: Path = Path("/opt/e2b/site")
    relay_socket: Path = Path("/run/egress/proxy.sock")
    kills: Kills = Kills()

    @property
    def uid(self) -> int:
        return os.getuid()

    @property
    def gid(self) -> int:
        return os.getgid()

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> None:
        """Every field as an option, so that a guest can also run outside of a box."""
        defaults = cls()
        parser.add_argument("--home", type=Path, default=defaults.home)
        parser.add_argument("--user", default=defaults.user)
        parser.add_argument("--python", type=Path, default=defaults.python)
        parser.add_argument("--site", type=Path, default=defaults.site)
        parser.add_argument("--relay-socket", type=Path, default=defaults.relay_socket)
        parser.add_argument("--kills", type=Kills.from_json, default=defaults.kills)

    @classmethod
    def of(cls, options: Namespace) -> Self:
        config = cls()
        config.learn(options)
        return config

    def learn(self, options: Namespace) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(options, field.name))


class Environment:
    """The variables that commands and kernels start with.

    One object per guest, shared: `set_variables` changes what the *next* process sees.
    """

    def __init__(self) -> None:
        self._base: dict[str, str] = {}
        self._variables: dict[str, str] = {}

    def start_from(self, config: GuestConfig, environ: Mapping[str, str]) -> None:
        names = {
            "HOME": str(config.home),
            "USER": config.user,
            "LOGNAME": config.user,
        }
        self._base = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8"} | dict(environ) | names

    @property
    def variables(self) -> Mapping[str, str]:
        """The sandbox's own variables: the ones its creator gave."""
        return self._variables

    def set_variables(self, variables: Mapping[str, str]) -> None:
        self._variables = dict(variables)

    def build(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a process, `extra` being its request's variables."""
        return {**self._base, **self._variables, **(extra or {})}
