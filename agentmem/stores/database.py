"""One SQLite connection behind one lock, with transactions and agentmem's errors."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentmem.errors import InvalidInput, StorageFailed
from agentmem.stores.schema import connect


def free_bytes(path: Path) -> str:
    """Say how much room the disk under ``path`` has, for error messages."""
    try:
        return f"{shutil.disk_usage(path).free} bytes free"
    except OSError:
        return "free bytes unknown"


class Database:
    """Thread safe: every transaction takes the lock for as long as it lasts.

    SQLite's and the disk's errors leave as StorageFailed, values that SQLite cannot hold as InvalidInput.
    """

    def __init__(self, path: Path, connect: Callable[[Path], sqlite3.Connection] = connect, name: str = "ledger") -> None:
        self.path = path
        self._name = name
        self._lock = threading.Lock()
        self._connection = connect(path)

    def close(self) -> None:
        """Close the connection; what was committed stays. Closing twice does nothing."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Give the connection for queries that see one state of the database."""
        with self._lock, self._translated():
            yield self._connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Give the connection inside a transaction: committed when the body ends, rolled back when it raises."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                # Also after a COMMIT that failed on a full disk. SQLite may have rolled back on its own by then.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageFailed(f"the {self._name} {self.path} refused: {error} ({free_bytes(self.path.parent)})") from error
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text holds a lone surrogate at character {error.start}; allowed: what UTF-8 can hold") from error
        except OverflowError as error:
            raise InvalidInput(f"a number does not fit 64 bits: {error}") from error
