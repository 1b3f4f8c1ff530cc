"""Options: where they are read, which wins, what is refused."""

from pathlib import Path

import pytest

from e2b_agent_mcp.errors import SettingsError
from e2b_agent_mcp.settings import Secret, Settings, config_path, options, read_config


def test_without_anything_set_every_option_has_its_default() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert set(settings.origins.values()) == {"default"}


def test_a_flag_wins_over_the_environment_and_that_over_the_config_file() -> None:
    environ = {"E2B_AGENT_MCP_SANDBOXES_MAX": "2", "E2B_AGENT_MCP_RUNS_TIMEOUT": "20"}
    config = {"sandboxes": {"max": 3}, "runs": {"timeout": 30, "max_timeout": 40}}
    settings = Settings.load(environ, flags={"sandboxes.max": 1}, config=config)
    assert (settings.sandboxes.max, settings.runs.timeout, settings.runs.max_timeout) == (1, 20, 40)
    assert settings.origins["sandboxes.max"] == "flag"
    assert settings.origins["runs.timeout"] == "environment"
    assert settings.origins["runs.max_timeout"] == "config file"
    assert settings.origins["runs.install_timeout"] == "default"


def test_empty_means_unset() -> None:
    settings = Settings.load({"E2B_API_KEY": "", "E2B_AGENT_MCP_SANDBOXES_MAX": ""})
    assert settings.e2b.api_key is None
    assert settings.sandboxes.max == 20


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_the_proxy_is_read_in_both_spellings(name: str) -> None:
    assert Settings.load({name: "http://proxy:3128"}).e2b.proxy == "http://proxy:3128"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        pytest.param(
            {"E2B_AGENT_MCP_SANDBOXES_MAX": "many"},
            "E2B_AGENT_MCP_SANDBOXES_MAX: expected a number, got 'many'.",
            id="not a number",
        ),
        pytest.param(
            {"E2B_AGENT_MCP_SANDBOXES_IDLE_AFTER": "-1"},
            "E2B_AGENT_MCP_SANDBOXES_IDLE_AFTER: expected a number of at least 0, got '-1'.",
            id="negative",
        ),
        pytest.param(
            {"E2B_AGENT_MCP_SANDBOXES_IDLE_AFTER": "nan"},
            "E2B_AGENT_MCP_SANDBOXES_IDLE_AFTER: expected a number of at least 0, got 'nan'.",
            id="not finite",
        ),
        pytest.param(
            {"E2B_AGENT_MCP_AGENT_MAX_STEPS": "0"},
            "E2B_AGENT_MCP_AGENT_MAX_STEPS: expected a number of at least 1, got '0'.",
            id="no step at all",
        ),
        pytest.param(
            {"E2B_AGENT_MCP_ENGINE_ISOLATION": "docker"},
            "E2B_AGENT_MCP_ENGINE_ISOLATION: expected one of auto, bubblewrap, gvisor, got",
            id="not a choice",
        ),
        pytest.param(
            {"E2B_AGENT_MCP_AGENT_BASE_URL": "localhost:11434/v1"},
            "E2B_AGENT_MCP_AGENT_BASE_URL: expected an address that starts with http:// or "
            "https://. Meaning: ",
            id="no address",
        ),
    ],
)
def test_a_bad_value_is_refused_by_the_name_it_was_given_under(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.load(environ)
    assert refused.value.message.startswith(message)


@pytest.mark.parametrize("source", ["flags", "config"])
def test_an_unknown_option_is_refused(source: str) -> None:
    group: dict[str, object] = {"sandboxes.maximum": 1}
    with pytest.raises(SettingsError, match=r"sandboxes\.maximum"):
        Settings.load({}, **{source: group})  # type: ignore[arg-type]


def test_lists_are_split_as_their_kind_is_usually_written() -> None:
    settings = Settings.load(
        {
            "E2B_AGENT_MCP_FILES_ROOTS": "/data:~/work",
            "E2B_AGENT_MCP_HTTP_TOKENS": "ann=one, bob=two",
        }
    )
    assert settings.files.roots == (Path("/data"), Path.home() / "work")
    assert settings.http.tokens == (Secret("ann=one"), Secret("bob=two"))


def test_no_secret_is_shown() -> None:
    settings = Settings.load({"E2B_API_KEY": "e2b_key", "E2B_AGENT_MCP_HTTP_TOKENS": "ann=token"})
    assert settings.e2b.api_key is not None
    assert settings.e2b.api_key.reveal() == "e2b_key"
    assert "e2b_key" not in repr(settings)
    assert "ann=token" not in repr(settings)


def test_a_secret_that_cannot_be_read_stays_out_of_the_message() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.load({}, config={"http": {"port": "secret-in-the-wrong-place"}})
    assert refused.value.__cause__ is None


def test_every_option_has_a_variable_and_a_meaning() -> None:
    found = list(options())
    assert all(item.env and item.help for item in found)
    assert len({item.env for item in found}) == len(found)
    assert {"E2B_API_KEY", "E2B_AGENT_MCP_SANDBOXES_MAX"} <= {item.env for item in found}


def test_a_missing_config_file_is_empty(tmp_path: Path) -> None:
    assert read_config(tmp_path / "none.toml") == {}


def test_a_broken_config_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("sandboxes = {")
    with pytest.raises(SettingsError, match=r"config\.toml"):
        read_config(path)


def test_the_config_file_is_where_the_user_says(tmp_path: Path) -> None:
    assert config_path({"E2B_AGENT_MCP_CONFIG": "/c.toml"}) == Path("/c.toml")
    assert config_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/e2b-agent-mcp/config.toml")
