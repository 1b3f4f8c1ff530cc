"""Loads smolagents and litellm: five seconds of CPU, so in a thread and once, by the first run.
Most of it is litellm's, which an agent that works with its client's model does without. A fifth
more would go to the garbage collector, which finds nothing in what is only just made.

Both read a `.env` file on import, and litellm fetches a price list from the network: neither is
wanted in a server. They look only at the environment, so it is changed around their import; this
and `settings` are the only places that touch it.
"""

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "PYTHON_DOTENV_DISABLED": "1",
}
# One import at a time: the second of two first runs waits for it.
_loading = threading.Lock()
_loaded = False


def load(*, with_litellm: bool = True) -> None:
    """Blocks; call it in a thread. The first call of a model is as quick afterwards as any."""
    global _loaded
    with _loading, _environment(_QUIET), _no_collection():
        import smolagents  # noqa: F401

        if with_litellm and not _loaded:
            _import_litellm()
            asyncio.run(_warm_up())
            _loaded = True


def _import_litellm() -> None:
    import litellm

    litellm.suppress_debug_info = True  # it prints to stdout
    litellm.telemetry = False
    litellm.drop_params = True  # newer models refuse `stop`
    # They log what is said to the model, and a traceback for each failed call that we handle.
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


async def _warm_up() -> None:
    """litellm imports as much again in its first call, which would stall the event loop."""
    import litellm
    import openai

    reply = await litellm.acompletion(
        model="openai/none",
        messages=[{"role": "user", "content": "?"}],
        mock_response="!",
        stream=True,
    )
    async for _ in reply:
        pass
    _ = openai.AsyncOpenAI(api_key="none").chat.completions


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
