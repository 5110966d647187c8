"""Durable memory: the ledger of turns in SQLite, the blocks of K and V in files, the archive that joins them."""

from agentmem.stores.archive import Archive
from agentmem.stores.blocks import BlockFiles
from agentmem.stores.ledger import Ledger
from agentmem.stores.records import (
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

__all__ = [
    "Archive",
    "ArchiveStats",
    "BlockFiles",
    "BlockHeader",
    "BlockRow",
    "BlockUnavailable",
    "Ledger",
    "LedgerStats",
    "LoadedBlock",
    "Page",
    "StoredBlock",
    "SweepReport",
]
