"""Which model is asked, with which key, at which address."""

import pytest

from e2b_agent_mcp.agent.choice import PROVIDERS, Provider, choose
from e2b_agent_mcp.errors import ModelNotConfiguredError
from e2b_agent_mcp.settings import Settings

URL = "http://127.0.0.1:11434/v1"


def chosen(model: str | None = None, **environ: str) -> list[tuple[str, str | None, str | None]]:
    settings = Settings.load({name.upper(): value for name, value in environ.items()})
    return [
        (item.model, item.api_key.reveal() if item.api_key else None, item.base_url)
        for item in choose(settings.agent, model)
    ]


def test_without_a_key_the_error_names_what_to_set() -> None:
    with pytest.raises(ModelNotConfiguredError) as refused:
        chosen()
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DEEPSEEK_API_KEY", "run_python"):
        assert name in refused.value.hint


@pytest.mark.parametrize(
    "provider", [item for item in PROVIDERS if item.default], ids=lambda item: item.name
)
def test_a_key_alone_chooses_the_providers_model(provider: Provider) -> None:
    assert chosen(**{provider.variable: "k"}) == [(provider.default, "k", None)]


def test_of_several_keys_the_order_decides() -> None:
    assert chosen(deepseek_api_key="d", anthropic_api_key="a")[0][1] == "a"
    assert chosen(deepseek_api_key="d", anthropic_api_key="a", openai_api_key="o")[0][1] == "o"


def test_the_call_wins_over_the_setting_and_that_over_the_keys() -> None:
    environ = {"openai_api_key": "o", "anthropic_api_key": "a"}
    assert chosen("claude-haiku-5-5", **environ) == [("anthropic/claude-haiku-5-5", "a", None)]
    environ["e2b_agent_mcp_agent_model"] = "anthropic/claude-haiku-5-5"
    assert chosen(**environ) == [("anthropic/claude-haiku-5-5", "a", None)]
    assert chosen("gpt-6-luna", **environ) == [("openai/gpt-6-luna", "o", None)]


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        pytest.param("qwen3", "openai/qwen3", id="bare"),
        pytest.param("Qwen/Qwen3-8B", "openai/Qwen/Qwen3-8B", id="with a slash of its own"),
        pytest.param("openai/qwen3", "openai/qwen3", id="prefixed"),
        pytest.param("ollama_chat/qwen3", "ollama_chat/qwen3", id="another way to speak"),
    ],
)
def test_a_server_of_ones_own_needs_two_settings(model: str, asked: str) -> None:
    environ = {"e2b_agent_mcp_agent_base_url": URL, "e2b_agent_mcp_agent_model": model}
    assert chosen(**environ) == [(asked, "none", URL)]


def test_other_services_keep_their_own_address_beside_it() -> None:
    environ = {
        "e2b_agent_mcp_agent_base_url": URL,
        "e2b_agent_mcp_agent_model": "openai/qwen3",
        "e2b_agent_mcp_agent_api_key": "mine",
        "anthropic_api_key": "a",
        "e2b_agent_mcp_agent_fallbacks": "openai/small, anthropic/claude-haiku-5-5",
    }
    assert chosen(**environ) == [
        ("openai/qwen3", "mine", URL),
        ("openai/small", "mine", URL),
        ("anthropic/claude-haiku-5-5", "a", None),
    ]


def test_a_model_whose_key_is_missing_is_refused_by_its_variable() -> None:
    with pytest.raises(ModelNotConfiguredError) as refused:
        chosen("anthropic/claude-haiku-5-5", openai_api_key="o")
    assert refused.value.hint.startswith("Set ANTHROPIC_API_KEY")


def test_a_service_that_we_do_not_know_is_left_to_litellm() -> None:
    assert chosen("bedrock/nova") == [("bedrock/nova", None, None)]


def test_no_key_is_shown() -> None:
    settings = Settings.load({"OPENAI_API_KEY": "secret-key"})
    assert "secret-key" not in repr((choose(settings.agent), settings))
