"""What a run became, as a tool result: text, images and links for the model, data for programs.

Pure: nothing is read or written. What does not fit is handed back as `Rendered.kept` together with
the paths that the text names, for the caller to write into the sandbox; when that fails, it renders
again with `folder=None`. No result exceeds `outputs.result_limit`, whatever the sandbox sent.
"""

from e2b_agent_mcp.rendering.agent import task_result
from e2b_agent_mcp.rendering.execution import Place, Rendered, command_result, python_result
from e2b_agent_mcp.rendering.plain import answer, failure, file_entry, file_link, sandbox_uri
from e2b_agent_mcp.rendering.results import or_failure
from e2b_agent_mcp.rendering.room import Kept
from e2b_agent_mcp.rendering.text import encodable, readable

__all__ = [
    "Kept",
    "Place",
    "Rendered",
    "answer",
    "command_result",
    "encodable",
    "failure",
    "file_entry",
    "file_link",
    "or_failure",
    "python_result",
    "readable",
    "sandbox_uri",
    "task_result",
]
