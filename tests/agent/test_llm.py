"""How models are asked: repeated, replaced, refused. litellm over HTTP, no sandbox."""

import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from e2b_agent_mcp.agent.choice import choose, keys
from e2b_agent_mcp.agent.llm import Llm, Request
from e2b_agent_mcp.errors import ModelError
from e2b_agent_mcp.settings import AgentSettings
from scripted_llm import KEY, MODEL, Reply, ScriptedLLM

REQUEST = Request(messages=[{"role": "user", "content": "Hello?"}], stop=["END"])


class Asker:
    """An `Llm`, and what it told meanwhile."""

    def __init__(self, settings: AgentSettings, *, silence: float = 20.0) -> None:
        self.retries: list[tuple[str, float, str]] = []
        self.sizes: list[int] = []
        self.llm = Llm(
            choose(settings),
            secrets=keys(settings),
            silence=silence,
            on_text=self._on_text,
            on_retry=self._on_retry,
        )

    async def _on_text(self, characters: int) -> None:
        self.sizes.append(characters)

    async def _on_retry(self, error: ModelError, delay: float, model: str) -> None:
        self.retries.append((error.code, delay, model))


pytestmark = pytest.mark.usefixtures("agent_libraries")


async def test_a_reply_is_streamed_and_counted(llm: ScriptedLLM) -> None:
    llm.script(Reply(text="Hello there END not this", usage=(12, 3)))
    asker = Asker(llm.settings())
    reply = await asker.llm.ask(REQUEST)
    assert (reply.text, reply.complete, reply.model) == ("Hello there ", True, MODEL)
    assert asker.sizes[0] < asker.sizes[-1] == len("Hello there ")
    assert (asker.llm.spent.input_tokens, asker.llm.spent.output_tokens) == (12, 3)
    assert asker.llm.spent.llm_calls == 1


async def test_a_service_that_asks_to_wait_is_asked_again_then(llm: ScriptedLLM) -> None:
    llm.script(Reply(status=429, headers={"retry-after": "0.5"}), "Hello")
    asker = Asker(llm.settings())
    assert (await asker.llm.ask(REQUEST)).text == "Hello"
    assert asker.retries == [("model_rate_limited", 0.5, MODEL)]
    assert llm.times[1] - llm.times[0] >= 0.5


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Reply(status=500), id="500"),
        pytest.param(Reply(status=503), id="503"),
        pytest.param(Reply(status=529), id="529"),
        pytest.param(Reply(text="Hello there", cut=True), id="stream cut off"),
    ],
)
async def test_a_failed_call_is_repeated(llm: ScriptedLLM, failure: Reply) -> None:
    llm.script(failure, "Hello")
    asker = Asker(llm.settings())
    assert (await asker.llm.ask(REQUEST)).text == "Hello"
    assert [code for code, _, _ in asker.retries] == ["model_unavailable"]
    assert asker.llm.spent.llm_calls == 2


async def test_a_silent_model_is_given_up(llm: ScriptedLLM) -> None:
    llm.script(Reply(text="Hello", stall=60), "Hello")
    asker = Asker(llm.settings(), silence=0.5)
    assert (await asker.llm.ask(REQUEST)).text == "Hello"
    await llm.left()


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        pytest.param(Reply(status=400), "model_error", id="400"),
        pytest.param(Reply(status=401), "model_authentication", id="401"),
        pytest.param(Reply(status=402), "model_quota", id="402"),
        pytest.param(Reply(status=403), "model_authentication", id="403"),
        pytest.param(Reply(status=404), "model_not_found", id="404"),
        pytest.param(
            Reply(status=429, error_code="insufficient_quota"), "model_quota", id="no quota"
        ),
        pytest.param(
            Reply(status=400, error="maximum context length", error_code="context_length_exceeded"),
            "context_too_long",
            id="context",
        ),
        pytest.param(
            Reply(status=429, headers={"retry-after": "3600"}), "model_rate_limited", id="an hour"
        ),
    ],
)
async def test_what_waiting_does_not_change_is_refused_at_once(
    llm: ScriptedLLM, failure: Reply, code: str
) -> None:
    llm.script(failure)
    with pytest.raises(ModelError) as refused:
        await Asker(llm.settings()).llm.ask(REQUEST)
    assert refused.value.code == code
    assert "scripted" in refused.value.message
    assert len(llm.requests) == 1


async def test_an_unreachable_server_is_named(
    llm: ScriptedLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e2b_agent_mcp.agent.llm.FIRST_DELAY", 0.01)
    settings = llm.settings(base_url="http://127.0.0.1:9/v1")
    with pytest.raises(ModelError) as refused:
        await Asker(settings).llm.ask(REQUEST)
    assert refused.value.code == "model_unavailable"
    assert refused.value.message == (f"{MODEL} could not be reached at http://127.0.0.1:9/v1.")


async def test_the_next_model_is_asked_when_one_fails(llm: ScriptedLLM) -> None:
    llm.script(Reply(status=401), "From the second")
    asker = Asker(llm.settings(fallbacks=("openai/second",)))
    reply = await asker.llm.ask(REQUEST)
    assert (reply.text, reply.model) == ("From the second", "openai/second")
    assert [request["model"] for request in llm.requests] == ["scripted", "second"]
    assert asker.retries == [("model_authentication", 0.0, "openai/second")]


async def test_a_long_wait_is_left_for_the_next_model(llm: ScriptedLLM) -> None:
    llm.script(Reply(status=429, headers={"retry-after": "50"}), "From the second")
    asker = Asker(llm.settings(fallbacks=("openai/second",)))
    with anyio.fail_after(10):
        assert (await asker.llm.ask(REQUEST)).model == "openai/second"


async def test_when_all_models_fail_the_first_one_says_why(llm: ScriptedLLM) -> None:
    llm.script(Reply(status=401), Reply(status=404))
    with pytest.raises(ModelError) as refused:
        await Asker(llm.settings(fallbacks=("openai/second",))).llm.ask(REQUEST)
    assert refused.value.code == "model_authentication"


async def test_what_was_refused_or_never_arrived_is_a_call_but_costs_nothing(
    llm: ScriptedLLM,
) -> None:
    llm.script(Reply(status=429, headers={"retry-after": "0"}), Reply(status=401))
    asker = Asker(llm.settings(model="openai/gpt-6-luna"))
    with pytest.raises(ModelError):
        await asker.llm.ask(REQUEST)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        away = Asker(llm.settings(base_url=url, fallbacks=("openai/scripted",)))
        llm.script("Hello")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e2b_agent_mcp.agent.llm.TRIES", 1)
        with pytest.raises(ModelError):
            await away.llm.ask(REQUEST)
    llm.forget()
    assert (asker.llm.spent.llm_calls, away.llm.spent.llm_calls) == (2, 1)
    assert (asker.llm.spent.input_tokens, away.llm.spent.input_tokens) == (0, 0)
    assert (asker.llm.spent.cost_usd, asker.llm.dollars) == (0.0, 0.0)


async def test_a_model_without_a_provider_is_told_how_to_be_named() -> None:
    with pytest.raises(ModelError) as refused:
        await Asker(AgentSettings(model="nobody/anything")).llm.ask(REQUEST)
    assert refused.value.code == "model_not_found"
    assert "PROVIDER/MODEL" in refused.value.hint


async def test_the_key_stays_out_of_the_message(llm: ScriptedLLM) -> None:
    llm.script(Reply(status=401, error=f"Bad key {KEY}, not like sk-proj-0123456789abcdef"))
    with pytest.raises(ModelError) as refused:
        await Asker(llm.settings()).llm.ask(REQUEST)
    assert "Bad key ***, not like ***" in str(refused.value)
    assert refused.value.hint == "Check E2B_AGENT_MCP_AGENT_API_KEY."
    assert refused.value.__cause__ is None


async def test_a_call_that_was_cancelled_is_counted(llm: ScriptedLLM) -> None:
    llm.script(Reply(text="Hello there", stall=60))
    asker = Asker(llm.settings())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asker.llm.ask, REQUEST)
        await llm.asked()
        tasks.cancel_scope.cancel()
    assert asker.llm.spent.llm_calls == 1
    assert asker.llm.spent.input_tokens > 0


async def test_a_known_model_has_a_price_and_cached_tokens_cost_less(llm: ScriptedLLM) -> None:
    llm.script(Reply(text="Hello", usage=(1_000_000, 1_000_000)))
    asker = Asker(llm.settings(model="openai/gpt-6-luna"))
    await asker.llm.ask(REQUEST)
    assert asker.llm.spent.cost_usd == pytest.approx(0.6)
    assert asker.llm.price is not None
    assert asker.llm.price.of(100, 0, cached=100) < asker.llm.price.of(100, 0, cached=0)


# Loading


LOADED_QUIETLY = """
import os, sys
from e2b_agent_mcp.agent.libraries import load
asked = []
network = {"socket.connect", "socket.getaddrinfo"}
sys.addaudithook(lambda event, _: asked.append(event) if event in network else None)
before = dict(os.environ)
load()
assert dict(os.environ) == before
print("FROM_DOTENV" in os.environ, asked)
"""


def test_loading_prints_nothing_asks_nobody_and_reads_no_env_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("FROM_DOTENV=1\n")
    done = subprocess.run(
        [sys.executable, "-c", LOADED_QUIETLY], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False []\n", "")


def test_the_server_starts_without_the_libraries() -> None:
    code = (
        "import sys, e2b_agent_mcp.agent, e2b_agent_mcp.server; "
        "print({'litellm', 'smolagents', 'openai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("set()\n", 0)
