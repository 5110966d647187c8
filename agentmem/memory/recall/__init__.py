"""Dynamic recall (DESIGN 9): finding, at decode time, the archived tokens that a query attends to.

Importing it fills the registry of recall methods.
"""

from agentmem.memory.recall.lsh import LshRecall
from agentmem.memory.recall.none import NoRecall
from agentmem.memory.recall.oracle import Oracle
from agentmem.memory.recall.pages import PageRecall
from agentmem.memory.recall.port import Found, Recallable, Recaller, recallers
from agentmem.memory.recall.sample import SampleRecall
from agentmem.memory.recall.state import RecallState

__all__ = [
    "Found",
    "LshRecall",
    "NoRecall",
    "Oracle",
    "PageRecall",
    "RecallState",
    "Recallable",
    "Recaller",
    "SampleRecall",
    "recallers",
]
