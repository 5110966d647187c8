"""agentmem: the KV cache as an agent's durable, bounded, inspectable memory."""

__version__ = "0.3.0"
__all__ = ["__version__"]
