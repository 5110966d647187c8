"""Durable memory: the ledger of turns in SQLite, the blocks of K and V in files, the archive that joins them."""

from agentmem.stores.archive import Archive
from agentmem.stores.blocks import BlockFiles
from agentmem.stores.ledger import Ledger
from agentmem.stores.mapped import MappedBlock, MappedBlocks
from agentmem.stores.records import (
    ArchiveFormat,
    ArchiveStats,
    BlockHeader,
    BlockRow,
    BlockUnavailable,
    LedgerStats,
    LoadedBlock,
    Page,
    StoredBlock,
    SweepReport,
)
from agentmem.stores.seal_files import SealFiles

__all__ = [
    "Archive",
    "ArchiveFormat",
    "ArchiveStats",
    "BlockFiles",
    "BlockHeader",
    "BlockRow",
    "BlockUnavailable",
    "Ledger",
    "LedgerStats",
    "LoadedBlock",
    "MappedBlock",
    "MappedBlocks",
    "Page",
    "SealFiles",
    "StoredBlock",
    "SweepReport",
]
