"""Dynamic recall (DESIGN 9): finding, at decode time, the archived tokens that a query attends to. Importing it registers the methods."""

from agentmem.memory.recall import lsh, none, oracle
from agentmem.memory.recall.port import recallers

__all__ = ["lsh", "none", "oracle", "recallers"]
