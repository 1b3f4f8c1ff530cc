"""`python -m e2b_agent_mcp` is the command `e2b-agent-mcp`."""

import sys

from e2b_agent_mcp.cli import main

if __name__ == "__main__":
    sys.exit(main())
