"""Static compression of sealed tokens: which stay resident, their hash codes, and lower-precision copies. Knows no sessions, no model.

Importing it fills the registry of compressors.
"""

from agentmem.compression.compressor import Compressor, Observe, SealedSegment, compressors
from agentmem.compression.expected_attention import ExpectedAttention
from agentmem.compression.h2o import HeavyHitters
from agentmem.compression.keydiff import KeyDiff
from agentmem.compression.knorm import KNorm
from agentmem.compression.kvzip import KVzip
from agentmem.compression.random_control import Random
from agentmem.compression.recipe import Recipe, SealJob
from agentmem.compression.sealing import SealedUnitTensors, SealInputMissing, load_unit, run_seal_job
from agentmem.compression.selection import select
from agentmem.compression.snapkv import SnapKV
from agentmem.compression.streaming import Streaming

__all__ = [
    "Compressor",
    "ExpectedAttention",
    "HeavyHitters",
    "KNorm",
    "KVzip",
    "KeyDiff",
    "Observe",
    "Random",
    "Recipe",
    "SealInputMissing",
    "SealJob",
    "SealedSegment",
    "SealedUnitTensors",
    "SnapKV",
    "Streaming",
    "compressors",
    "load_unit",
    "run_seal_job",
    "select",
]
