"""Client of the agentmem service."""
