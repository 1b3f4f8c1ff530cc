"""Commands that are too long for cli.py: `task` and `interactive`."""
