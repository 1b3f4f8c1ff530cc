"""Where sandboxes come from: the E2B that the settings name, else the embedded engine.

The one place outside the engine that imports it.
"""

from e2b_agent_mcp.lifecycle import E2BParams, Progress
from e2b_agent_mcp.settings import Settings


async def e2b_params(settings: Settings, *, on_progress: Progress | None = None) -> E2BParams:
    """What an E2B client needs; without a key, starts the embedded engine or finds a live one.

    The engine's first start builds its template, which takes minutes: `on_progress` hears of it.
    """
    raise NotImplementedError
