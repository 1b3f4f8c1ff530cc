"""What the agent sends into the sandbox. Nothing here is imported on the host."""
