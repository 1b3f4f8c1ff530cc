"""Every option of the server: its name, environment variable, default and meaning.

`Settings.load` reads four places once, the first that has a value wins: an explicit flag, the
environment, the config file, the default. An empty string means "not set". Nothing else in the
package reads settings from `os.environ`; `load` takes a mapping, so a test passes a plain dict.

Secrets are `Secret`: they print as `***` wherever they end up by accident.
"""

import getpass
import os
import platform
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from e2b_agent_mcp.errors import SettingsError

Origin = Literal["flag", "environment", "config file", "default"]

PREFIX = "E2B_AGENT_MCP_"


class Secret:
    """A value that must not be shown: `repr` and `str` give `***`, `reveal()` gives the value."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def without_credentials(text: str) -> str:
    """As it may be shown: the address of a proxy or a gateway often holds a password."""
    return re.sub(r"(?<=//)[^/@\s]*@", "***@", text)


# Any: dataclasses.field is typed by its default, which differs for every option.
def option(
    default: Any, help: str, *, env: str = "", least: int = 0, starts: tuple[str, ...] = ()
) -> Any:
    """A dataclass field that `Settings.load` fills; `env` overrides the derived variable name, no
    number is below `least`, and a text starts with one of `starts`."""
    metadata = {"help": help, "env": env, "least": least, "starts": starts}
    return field(default=default, metadata=metadata)


_HTTP = ("http://", "https://")


@dataclass(frozen=True, kw_only=True)
class E2BSettings:
    """Which E2B the sandboxes run on; without a key they run on the embedded engine."""

    api_key: Secret | None = option(
        None,
        "E2B key: sandboxes run in E2B's cloud instead of the embedded engine",
        env="E2B_API_KEY",
    )
    domain: str | None = option(None, "domain of a self-hosted E2B", env="E2B_DOMAIN")
    api_url: str | None = option(
        None, "URL of the E2B control plane", env="E2B_API_URL", starts=_HTTP
    )
    sandbox_url: str | None = option(
        None, "URL of E2B's sandbox traffic", env="E2B_SANDBOX_URL", starts=_HTTP
    )
    proxy: str | None = option(None, "proxy for requests to E2B", env="HTTPS_PROXY")
    template: str | None = option(None, "template that sandboxes are made from")


@dataclass(frozen=True, kw_only=True)
class SandboxSettings:
    """How long sandboxes live and how many there may be. Seconds.

    `idle_after` is the only clock of a sandbox that runs: with every use E2B is told to act so many
    seconds later, and does so by itself, whether or not a process of ours is left.
    """

    idle_after: float = option(
        600.0, "an unused sandbox is ended or paused after so long, in seconds"
    )
    idle_action: Literal["kill", "pause"] = option(
        "kill", "which of the two; a paused sandbox is resumed by its session's next call"
    )
    retention: int = option(604_800.0, "a paused sandbox is ended after so long, in seconds")
    max_age: float = option(
        0.0, "an older sandbox is replaced by a new one between two calls, in seconds; 0: never"
    )
    max: int = option(20, "most sandboxes that run at once")
    max_per_owner: int = option(0, "most of them that one owner may have running; 0: no such limit")
    at_limit: Literal["pause", "refuse"] = option(
        "pause", "one more than that: pause the session longest unused, or refuse"
    )
    warm: int = option(
        0, "sandboxes kept ready for each owner's next sessions; they are billed too"
    )
    create_timeout: float = option(120.0, "longest wait for a new sandbox, in seconds")
    request_timeout: float = option(30.0, "longest wait for one request to E2B, in seconds")

    @property
    def kept(self) -> float:
        """How long an unused session keeps its state."""
        return self.idle_after + (self.retention if self.idle_action == "pause" else 0.0)


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """What sandboxes cost, and what may be spent in a calendar month (UTC), models included."""

    vcpu_second: float | None = option(
        None, "US dollars per vCPU and second; unset: E2B's 0.000014, nothing on this machine"
    )
    gib_second: float | None = option(
        None, "US dollars per GiB of memory and second; unset: E2B's 0.0000045, likewise"
    )
    owner_budget: float | None = option(
        None, "US dollars that one owner may spend in a month; then no new work starts"
    )
    owner_warning: float | None = option(
        None, "US dollars of an owner in a month from which on results warn"
    )
    budget: float | None = option(
        None, "US dollars that all owners may spend in a month; then no new work starts"
    )
    warning: float | None = option(
        None, "US dollars of all owners in a month from which on results warn"
    )


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One execution of code or of a command. Seconds."""

    timeout: float = option(60.0, "default limit of one execution, in seconds")
    max_timeout: float = option(3600.0, "largest limit that a call may ask for, in seconds")
    install_timeout: float = option(300.0, "limit of installing a call's packages, in seconds")


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """What a tool result may hold; clients refuse results over 1 MB."""

    text_limit: int = option(80_000, "characters of text in one result (about 20k tokens)")
    result_limit: int = option(900_000, "bytes of one whole result")
    image_size: int = option(1568, "longest side of an image, in pixels")
    images: int = option(10, "most images in one result")


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """Files that pass between the host and a sandbox."""

    roots: tuple[Path, ...] = option(
        (), "host folders that upload_file and download_file may use (stdio only), ':' between them"
    )
    inline_limit: int = option(100_000, "bytes of a file that download_file returns inline")
    size_limit: int = option(100_000_000, "bytes of the largest file that is moved")


@dataclass(frozen=True, kw_only=True)
class HttpSettings:
    """Serving over streamable HTTP."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8000, "port to listen on")
    tokens: tuple[Secret, ...] = option(
        (),
        "bearer tokens that may call, as name=token, ',' between them; required off loopback",
    )
    allowed_hosts: tuple[str, ...] = option(
        (), "further Host header values to accept, ',' between them"
    )


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The embedded engine, used when no E2B key is set."""

    state_dir: Path | None = option(None, "folder of sandbox files and records")
    cache_dir: Path | None = option(None, "folder of the template (about 1 GB)")
    runtime_dir: Path | None = option(None, "private folder of sockets and the engine's address")
    idle_exit: float = option(900.0, "the engine ends itself after so long unused, in seconds")
    port: int = option(0, "port that the engine listens on; 0 is any free one")
    retention: int = option(
        2_592_000, "the engine removes a paused sandbox after so long, in seconds"
    )
    isolation: Literal["auto", "bubblewrap", "gvisor"] = option(
        "auto", "how sandboxes are isolated: auto is bubblewrap; gvisor needs runsc and root"
    )
    bubblewrap: Path | None = option(None, "bubblewrap program to use")
    memory_mb: int = option(2048, "memory of one sandbox, in MiB")
    cpu_count: int = option(2, "processors of one sandbox")
    disk_mb: int = option(4096, "disk of one sandbox, in MiB")
    max_files: int = option(250_000, "files and folders of one sandbox")
    max_processes: int = option(512, "processes of one sandbox")
    network: Literal["public", "none"] = option(
        "public", "what sandboxes may reach; the package index is open with either"
    )
    network_allow: tuple[str, ...] = option(
        (),
        "the only names, *.names, addresses and networks that sandboxes may reach beside the "
        "package index, ',' between them",
    )
    zygote: bool = option(True, "fork sandboxes from a process that has the packages in memory")
    spares: int = option(1, "sandboxes booted ahead, so that creating one is instant")


@dataclass(frozen=True, kw_only=True)
class AgentSettings:
    """The agent's model, and what one task may spend. Seconds; 0 means no limit, but for steps."""

    model: str | None = option(
        None,
        "model of the agent, as LiteLLM names it, or client for the MCP client's own; without it, "
        "chosen by the first key set",
    )
    fallbacks: tuple[str, ...] = option(
        (), "models to ask when that one fails, in order, ',' between them"
    )
    base_url: str | None = option(
        None,
        "OpenAI-compatible server of the model (Ollama, llama.cpp, vLLM, a gateway)",
        starts=_HTTP,
    )
    api_key: Secret | None = option(None, "key for the model or its base_url")
    openai_key: Secret | None = option(None, "key of OpenAI", env="OPENAI_API_KEY")
    anthropic_key: Secret | None = option(None, "key of Anthropic", env="ANTHROPIC_API_KEY")
    deepseek_key: Secret | None = option(None, "key of DeepSeek", env="DEEPSEEK_API_KEY")
    gemini_key: Secret | None = option(None, "key of Google Gemini", env="GEMINI_API_KEY")
    groq_key: Secret | None = option(None, "key of Groq", env="GROQ_API_KEY")
    mistral_key: Secret | None = option(None, "key of Mistral", env="MISTRAL_API_KEY")
    moonshot_key: Secret | None = option(None, "key of Moonshot", env="MOONSHOT_API_KEY")
    openrouter_key: Secret | None = option(None, "key of OpenRouter", env="OPENROUTER_API_KEY")
    xai_key: Secret | None = option(None, "key of xAI", env="XAI_API_KEY")
    max_steps: int = option(20, "most steps of one task", least=1)
    max_tokens: int = option(500_000, "most LLM tokens of one task, in and out together")
    max_cost_usd: float = option(1.0, "most US dollars of one task, where the price is known")
    timeout: float = option(1800.0, "limit of one whole task, in seconds")
    sandbox_seconds: float = option(1200.0, "limit of all code of one task, in seconds")
    step_timeout: float = option(120.0, "limit of one step's code, in seconds")
    request_timeout: float = option(120.0, "longest silence of the model, in seconds")
    wait: float = option(45.0, "seconds after which a call hands back the task and lets it go on")
    vision: Literal["auto", "on", "off"] = option(
        "auto", "whether plots are shown to the model; auto: where LiteLLM knows that it sees"
    )
    replies: Literal["text", "json"] = option(
        "text", "form of the model's replies; json by a schema helps small local models"
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All options; build with `Settings.load`, or directly for a program of your own."""

    e2b: E2BSettings = field(default_factory=E2BSettings)
    sandboxes: SandboxSettings = field(default_factory=SandboxSettings)
    costs: CostSettings = field(default_factory=CostSettings)
    runs: RunSettings = field(default_factory=RunSettings)
    outputs: OutputSettings = field(default_factory=OutputSettings)
    files: FileSettings = field(default_factory=FileSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    session: str = option("default", "session of a stdio call that names none")
    owner: str = option(
        "", "owner of the sessions of stdio clients and the shell; empty: user and host name"
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "warning", "lowest level that is logged, on stderr"
    )
    origins: Mapping[str, Origin] = field(default_factory=dict, compare=False, repr=False)

    @property
    def local_owner(self) -> str:
        """Who owns sessions without a network in between: unique per user and machine, because
        several machines may share one E2B key. The ':' keeps it apart from every token's name."""
        return f"local:{self.owner or f'{_user_name()}@{platform.node()}'}"

    @classmethod
    def from_process(cls) -> "Settings":
        """From the environment and the config file of this process."""
        return cls.load(os.environ, config=read_config(config_path(os.environ)))

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str],
        *,
        flags: Mapping[str, object] | None = None,
        config: Mapping[str, object] | None = None,
    ) -> "Settings":
        """Reads flags (`group.option` names), environment and config (a parsed TOML document).

        Raises `SettingsError` that names the option, its source and what it accepts.
        """
        return _load(environ, flags or {}, _flatten(config or {}))


@dataclass(frozen=True, slots=True)
class Option:
    """One option as documentation and `doctor` see it."""

    name: str
    env: str
    help: str
    default: object
    kind: Any  # a type or typing form; there is no narrower common type
    least: int  # of a number
    starts: tuple[str, ...]  # of a text


def options() -> Iterator[Option]:
    """All options in the order of their declaration; `name` is `group.option`."""
    for group in fields(Settings):
        if group.name == "origins":
            continue
        if "help" in group.metadata:
            yield _option(Settings, group, group.name)
            continue
        cls = _group_class(group)
        for item in fields(cls):
            yield _option(cls, item, f"{group.name}.{item.name}")


def read_config(path: Path) -> Mapping[str, object]:
    """The config file as a mapping; a missing file is empty, a broken one is a `SettingsError`."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise SettingsError(f"Cannot read the config file {path}: {exc}") from exc


def config_path(environ: Mapping[str, str]) -> Path:
    """`$E2B_AGENT_MCP_CONFIG`, else `e2b-agent-mcp/config.toml` in the user's config folder."""
    explicit = environ.get(f"{PREFIX}CONFIG")
    if explicit:
        return Path(explicit)
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return Path(home) / "e2b-agent-mcp" / "config.toml"


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user that no table names
        return str(os.getuid())


# Any: the class of a settings group; a group's `default_factory` is its class.
def _group_class(group: "Field[Any]") -> Any:
    return group.default_factory


def _option(cls: Any, item: "Field[Any]", name: str) -> Option:
    env = item.metadata["env"] or PREFIX + name.replace(".", "_").upper()
    kind = get_type_hints(cls)[item.name]
    metadata = item.metadata
    least, starts = metadata["least"], metadata["starts"]
    return Option(name, env, metadata["help"], item.default, kind, least, starts)


def _flatten(config: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{name}": item for name, item in value.items()})
        else:
            flat[key] = value
    return flat


def _load(
    environ: Mapping[str, str], flags: Mapping[str, object], config: Mapping[str, object]
) -> Settings:
    known = {item.name: item for item in options()}
    for source, names in (("flag", flags), ("config file", config)):
        if unknown := sorted(set(names) - set(known)):
            raise SettingsError(f"Unknown option in the {source}: {', '.join(unknown)}")
    groups: dict[str, dict[str, object]] = {}
    origins: dict[str, Origin] = {}
    for name, item in known.items():
        value, origin = _find(item, environ, flags, config)
        origins[name] = origin
        if origin != "default":
            group, _, leaf = name.rpartition(".")
            groups.setdefault(group, {})[leaf] = _parse(item, value, origin)
    return _build(groups, origins)


def _find(
    item: Option,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    config: Mapping[str, object],
) -> tuple[object, Origin]:
    if flags.get(item.name) not in (None, ""):
        return flags[item.name], "flag"
    # Proxies are commonly set in lower case.
    value = environ.get(item.env) or (environ.get(item.env.lower()) if "PROXY" in item.env else "")
    if value:
        return value, "environment"
    if config.get(item.name) not in (None, ""):
        return config[item.name], "config file"
    return item.default, "default"


def _build(groups: Mapping[str, Mapping[str, Any]], origins: Mapping[str, Origin]) -> Settings:
    values: dict[str, Any] = dict(groups.get("", {}))
    for group in fields(Settings):
        if group.name in groups:
            values[group.name] = _group_class(group)(**groups[group.name])
    return Settings(**values, origins=origins)


def _parse(item: Option, value: object, origin: Origin) -> object:
    where = item.env if origin == "environment" else f"{item.name} ({origin})"
    try:
        if item.starts and not str(value).lower().startswith(item.starts):
            raise ValueError(f"expected an address that starts with {' or '.join(item.starts)}")
        return _convert(item.kind, value, item.least)
    except ValueError as exc:
        # A secret's value stays out of the message.
        raise SettingsError(f"{where}: {exc}. Meaning: {item.help}.") from None


def _convert(kind: Any, value: object, least: int = 0) -> object:
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        parts = value if isinstance(value, (list, tuple)) else _split(item, str(value))
        return tuple(_convert(item, part) for part in parts)
    if get_origin(kind) is Literal:
        return _choice(get_args(kind), str(value).lower())
    if type(None) in get_args(kind):
        return _convert(next(arg for arg in get_args(kind) if arg is not type(None)), value)
    if kind in (int, float):
        return _number(kind, value, least)
    if kind is Path:
        return Path(str(value)).expanduser()
    if isinstance(value, kind):
        return value
    return kind(str(value))


def _split(item: Any, value: str) -> list[str]:
    separator = os.pathsep if item is Path else ","
    return [part.strip() for part in value.split(separator) if part.strip()]


def _choice(choices: tuple[str, ...], value: str) -> str:
    if value not in choices:
        raise ValueError(f"expected one of {', '.join(choices)}, got {value!r}")
    return value


def _number(kind: type[int] | type[float], value: object, least: int) -> float:
    try:
        number = kind(str(value))
    except ValueError:
        raise ValueError(f"expected a number, got {value!r}") from None
    if not least <= number < float("inf"):
        raise ValueError(f"expected a number of at least {least}, got {value!r}")
    return number
