"""Which model the agent asks, and with which key. Pure; the ids are litellm's.

The order: the call's own model, the setting, else the first provider whose key is set. `base_url`
and `api_key` of the settings belong to the provider of the configured model (without one, to any
OpenAI-compatible server); other providers keep their own address and key.

The model "client" is the one that the caller's MCP client works with, where the client lends it
(MCP sampling): asked for by that name, or the last resort when no key is set.
"""

from dataclasses import dataclass, field

from e2b_agent_mcp.errors import ModelNotConfiguredError
from e2b_agent_mcp.settings import AgentSettings, Secret


@dataclass(frozen=True, kw_only=True)
class Provider:
    """A service with a key of its own in the settings."""

    name: str  # the prefix of its models
    variable: str
    default: str = ""
    families: tuple[str, ...] = ()  # beginnings of its models' names, given without the prefix


# In the order in which a key decides.
PROVIDERS = (
    Provider(
        name="openai",
        variable="OPENAI_API_KEY",
        default="openai/gpt-5.4-mini",
        families=("gpt-", "chatgpt-", "o1", "o3", "o4"),
    ),
    Provider(
        name="anthropic",
        variable="ANTHROPIC_API_KEY",
        default="anthropic/claude-sonnet-5-5",
        families=("claude-",),
    ),
    Provider(
        name="deepseek",
        variable="DEEPSEEK_API_KEY",
        default="deepseek/deepseek-v4-flash",
        families=("deepseek-",),
    ),
    Provider(
        name="gemini",
        variable="GEMINI_API_KEY",
        default="gemini/gemini-3.5-flash",
        families=("gemini-",),
    ),
    Provider(name="groq", variable="GROQ_API_KEY", default="groq/openai/gpt-oss-120b"),
    Provider(name="mistral", variable="MISTRAL_API_KEY", default="mistral/codestral-latest"),
    Provider(name="moonshot", variable="MOONSHOT_API_KEY", default="moonshot/kimi-k2.6"),
    # It sells the models of others: which one is the user's choice.
    Provider(name="openrouter", variable="OPENROUTER_API_KEY"),
    Provider(name="xai", variable="XAI_API_KEY", default="xai/grok-code-fast-1"),
)
_BY_NAME = {provider.name: provider for provider in PROVIDERS}

CLIENT = "client"  # the model of the caller's client

NO_KEY = "none"  # local servers want none, and the OpenAI client wants one


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One model as it is asked."""

    model: str
    api_key: Secret | None = field(default=None, repr=False)
    base_url: str | None = None


def choose(
    settings: AgentSettings, model: str | None = None, *, client: bool = False
) -> tuple[Choice, ...]:
    """The model and then its fallbacks; raises `ModelNotConfiguredError` when none can be asked.

    `client`: whether the caller's client lends its model.
    """
    first = model or settings.model or _default(settings, client)
    if first == CLIENT and not client:
        raise ModelNotConfiguredError(
            "Your client does not lend its language model (MCP sampling).", hint=_WHAT_TO_SET
        )
    others = (name for name in settings.fallbacks if name != CLIENT or client)
    return tuple(_choice(settings, name) for name in dict.fromkeys((first, *others)))


def keys(settings: AgentSettings) -> tuple[Secret, ...]:
    """Every key that is set, to be kept out of messages."""
    found = [settings.api_key, *(_key(settings, provider) for provider in PROVIDERS)]
    return tuple(key for key in found if key is not None)


_WHAT_TO_SET = (
    f"Set one of {', '.join(provider.variable for provider in PROVIDERS[:3])} (or "
    "E2B_AGENT_MCP_AGENT_MODEL and, for a server of your own, E2B_AGENT_MCP_AGENT_BASE_URL). "
    "run_python needs no model."
)


def _default(settings: AgentSettings, client: bool) -> str:
    for provider in PROVIDERS:
        if provider.default and _key(settings, provider) is not None:
            return provider.default
    if client:
        return CLIENT
    raise ModelNotConfiguredError(
        "No language model is configured for the agent.", hint=_WHAT_TO_SET
    )


def _choice(settings: AgentSettings, name: str) -> Choice:
    if name == CLIENT:
        return Choice(model=CLIENT)
    provider = _provider(settings, name)
    prefix = f"{provider}/" if provider else ""
    model = name if name.startswith(prefix) else prefix + name
    base_url, api_key = None, None
    if provider == _configured_provider(settings):
        base_url, api_key = settings.base_url, settings.api_key
    known = _BY_NAME.get(provider)
    if known is not None and api_key is None:
        api_key = _key(settings, known)
    if api_key is None and base_url is not None:
        api_key = Secret(NO_KEY)
    if known is not None and api_key is None:
        raise ModelNotConfiguredError(
            f"No key is set for the model {model}.",
            hint=f"Set {known.variable}, or name a model whose key is set. run_python needs none.",
        )
    return Choice(model=model, api_key=api_key, base_url=base_url)


def _configured_provider(settings: AgentSettings) -> str:
    return _provider(settings, settings.model) if settings.model else "openai"


def _provider(settings: AgentSettings, model: str) -> str:
    """The part before the first slash; of a bare name, the one that is known for it."""
    prefix, slash, _ = model.partition("/")
    if slash and (prefix in _BY_NAME or prefix in _OTHERS or settings.base_url is None):
        return prefix
    if settings.base_url is not None:
        return "openai"
    families = ((family, item.name) for item in PROVIDERS for family in item.families)
    return next((name for family, name in families if model.startswith(family)), "")


# Prefixes of litellm's that take a base_url; another one before a slash is part of a model's name.
_OTHERS = frozenset(
    {
        *("ollama", "ollama_chat", "hosted_vllm", "lm_studio", "llamafile", "litellm_proxy"),
        *("azure", "azure_ai", "huggingface", "databricks", "nvidia_nim", "together_ai"),
    }
)


def _key(settings: AgentSettings, provider: Provider) -> Secret | None:
    key: Secret | None = getattr(settings, f"{provider.name}_key")
    return key
