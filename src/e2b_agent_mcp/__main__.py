"""`python -m e2b_agent_mcp` is the command `e2b-agent-mcp`."""

from e2b_agent_mcp.cli import run_command_line

if __name__ == "__main__":
    run_command_line()
