"""The queue between a replica and its worker processes: seal jobs, who works on them, and what a worker has to know.

Nothing in it is precious. The replica asks again for jobs that it misses, and results lie beside the blocks: a file that is damaged or
of another format is replaced by an empty one.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from enum import StrEnum
from pathlib import Path

from blake3 import blake3

from agentmem.errors import ConfigError, StorageFailed
from agentmem.stores.database import Database

VERSION = 1
BUSY_SECONDS = 1.0  # how long a call waits for another process's write
KEPT_SECONDS = 3600.0  # how long a job that has ended can be seen

# `lease_until`: a running job may be claimed again after it, a queued one not before it.
_SCHEMA = """
CREATE TABLE place (id INTEGER PRIMARY KEY CHECK (id = 1), text TEXT NOT NULL, digest TEXT NOT NULL) STRICT;
CREATE TABLE workers (
    id TEXT PRIMARY KEY, pid INTEGER NOT NULL, host TEXT NOT NULL, device TEXT NOT NULL, started REAL NOT NULL, heartbeat REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE jobs (
    key TEXT PRIMARY KEY, spec TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL, worker TEXT NOT NULL,
    lease_until REAL NOT NULL, error TEXT NOT NULL, created REAL NOT NULL, changed REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_state ON jobs (state, lease_until);
"""
_ENQUEUE = """
INSERT INTO jobs VALUES (:key, :spec, 'queued', 0, '', 0, '', :now, :now)
ON CONFLICT DO UPDATE SET spec = excluded.spec, state = 'queued', attempts = 0, lease_until = 0, error = '', created = :now, changed = :now
WHERE state IN ('done', 'lost')
"""
_EXPIRED = """
UPDATE jobs SET state = 'parked', changed = :now,
    error = 'worker ' || worker || ' died or hung in it' || CASE error WHEN '' THEN '' ELSE '; before that: ' || error END
WHERE state = 'running' AND lease_until <= :now AND attempts >= :max_attempts
"""
_GLANCE = """
SELECT (SELECT text FROM place) AS place,
    EXISTS (SELECT * FROM jobs WHERE state IN ('queued', 'running') AND lease_until <= ?) AS any_job
"""
_CLAIM = """
UPDATE jobs SET state = 'running', attempts = attempts + 1, worker = :worker, lease_until = :until, changed = :now
WHERE key = (
    SELECT key FROM jobs WHERE state IN ('queued', 'running') AND lease_until <= :now ORDER BY attempts, created, key LIMIT 1
) AND (SELECT text FROM place) = :place RETURNING *
"""
_RELEASE = """
UPDATE jobs SET state = 'queued', attempts = attempts - 1, worker = '', lease_until = 0, changed = ?
WHERE worker = ? AND state = 'running'
"""
_RETRY = """
UPDATE jobs SET state = 'queued', attempts = 0, lease_until = 0, changed = ? WHERE state = 'parked' AND key = coalesce(?, key)
"""
_FAIL = """
UPDATE jobs SET state = ?, error = ?, worker = '', lease_until = ?, changed = ? WHERE key = ? AND worker = ? AND state = 'running'
"""
_PUT_WORKER = """
INSERT INTO workers VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET heartbeat = excluded.heartbeat
"""

log = logging.getLogger(__name__)


class JobState(StrEnum):
    """Where a job is. PARKED waits for an operator; LOST could not read its input and is done anew when it is asked for again."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    PARKED = "parked"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job. Times in seconds since the epoch; ``attempts`` counts the running one; ``error`` is of the last that failed."""

    key: str
    spec: str
    state: JobState
    attempts: int
    worker: str
    lease_until: float
    error: str
    created: float
    changed: float


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker process that has been heard of lately. Times in seconds since the epoch."""

    id: str
    pid: int
    host: str
    device: str
    started: float
    heartbeat: float


class JobStore:
    """Thread safe, and several processes may open the file. Every method is one transaction.

    A method waits at most BUSY_SECONDS for another writer, then raises StorageFailed, as for every other refusal of the disk; the file
    is opened at the first call and opened again after a failure, or when it was replaced. ``owner``: the replica's side, which may
    replace a file that it cannot use.
    """

    def __init__(self, path: Path, *, owner: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._owner = owner
        self._clock = clock
        self._lock = threading.Lock()
        self._open: tuple[Database, int] | None = None  # with the file's inode

    def close(self) -> None:
        """Close the file. A later call opens it again."""
        with self._lock:
            if self._open is not None:
                self._open[0].close()
                self._open = None

    # -- the replica's side

    def announce(self, place: str) -> None:
        """Say whose blocks the jobs are about. Jobs and workers of another place go."""
        with self._write() as connection:
            self._announce(connection, place)

    def enqueue(self, place: str, specs: Mapping[str, str]) -> None:
        """Queue jobs by key. One that is queued, running or parked stays as it is; one that has ended is done anew."""
        now = self._clock()
        with self._write() as connection:
            self._announce(connection, place)
            connection.execute("DELETE FROM jobs WHERE state IN ('done', 'lost') AND changed < ?", (now - KEPT_SECONDS,))
            connection.executemany(_ENQUEUE, [{"key": key, "spec": spec, "now": now} for key, spec in specs.items()])

    def find(self, keys: Collection[str]) -> dict[str, JobRow]:
        """Return the jobs of ``keys`` that are known, in one query that waits for no writer."""
        with self._read() as connection:
            rows = connection.execute("SELECT * FROM jobs WHERE key IN (SELECT value FROM json_each(?))", (json.dumps(list(keys)),))
            return {row["key"]: _job(row) for row in rows}

    def reap(self, lease_seconds: float, max_attempts: int) -> int:
        """Park jobs whose last attempt ended without a word, forget workers that say nothing; return how many workers are left."""
        with self._write() as connection:
            self._reap(connection, lease_seconds, max_attempts)
            return int(connection.execute("SELECT count(*) FROM workers").fetchone()[0])

    # -- the worker's side

    def place(self) -> str:
        """Return what the replica announced. Raises ConfigError when there was nothing, or it was altered."""
        with self._read() as connection:
            row = connection.execute("SELECT text, digest FROM place").fetchone()
        if row is None:
            raise ConfigError(f"no server has asked for workers in {self.path.parent}; one with workers.executor=process does")
        if _digest(row["text"]) != row["digest"]:
            raise ConfigError(f"what the server wrote for its workers into {self.path} was altered; start the server again")
        return str(row["text"])

    def claim(self, worker: WorkerRow, place: str, lease_seconds: float, max_attempts: int) -> JobRow | None:
        """Take the next job for ``worker`` and return it, None when there is none.

        The job with the fewest attempts comes first, so that one that fails does not keep the others. Raises ConfigError once the
        replica has announced another place.
        """
        now = self._clock()
        with self._read() as connection:  # an idle worker looks often, and is in nobody's way
            row = connection.execute(_GLANCE, (now,)).fetchone()
        if row["place"] not in (place, None):  # None: the file is new, and the server will see
            raise ConfigError("the server has another model or other settings than when this worker was started; start it again")
        if not row["any_job"]:
            return None
        with self._write() as connection:
            self._put_worker(connection, worker)
            self._reap(connection, lease_seconds, max_attempts)
            claimed = connection.execute(_CLAIM, {"worker": worker.id, "until": now + lease_seconds, "now": now, "place": place}).fetchone()
        return None if claimed is None else _job(claimed)

    def heartbeat(self, worker: WorkerRow, lease_seconds: float) -> None:
        """Say that ``worker`` lives, and extend the lease of the job that it has."""
        now = self._clock()
        with self._write() as connection:
            self._put_worker(connection, worker)
            connection.execute(
                "UPDATE jobs SET lease_until = ? WHERE worker = ? AND state = 'running'",
                (now + lease_seconds, worker.id),
            )

    def finish(self, key: str, worker_id: str) -> None:
        """Note that the job's result is stored, whoever holds the job by now."""
        with self._write() as connection:
            connection.execute(
                "UPDATE jobs SET state = 'done', worker = ?, error = '', changed = ? WHERE key = ?", (worker_id, self._clock(), key)
            )

    def fail(self, key: str, worker_id: str, error: str, state: JobState, *, pause: float = 0.0) -> None:
        """Note that the attempt failed. ``state`` is what comes next: QUEUED again after ``pause`` seconds, PARKED or LOST.

        Does nothing when another worker holds the job by now.
        """
        now = self._clock()
        with self._write() as connection:
            connection.execute(_FAIL, (state, error, now + pause, now, key, worker_id))

    def leave(self, worker_id: str) -> None:
        """Forget a worker that ends of its own accord; a job that it has goes back to the queue, the attempt not counted."""
        with self._write() as connection:
            connection.execute(_RELEASE, (self._clock(), worker_id))
            connection.execute("DELETE FROM workers WHERE id = ?", (worker_id,))

    # -- to look at, and to help

    def jobs(self, state: JobState | None = None) -> list[JobRow]:
        """Return the jobs, in ``state`` if one is given, the oldest first."""
        with self._read() as connection:
            rows = connection.execute("SELECT * FROM jobs WHERE state = coalesce(?, state) ORDER BY created, key", (state,))
            return [_job(row) for row in rows]

    def workers(self) -> list[WorkerRow]:
        """Return the workers, the oldest first."""
        with self._read() as connection:
            return [WorkerRow(*row) for row in connection.execute("SELECT * FROM workers ORDER BY started, id")]

    def retry(self, key: str | None = None) -> int:
        """Queue a parked job anew, all of them without ``key``, and return how many there were."""
        now = self._clock()
        with self._write() as connection:
            return connection.execute(_RETRY, (now, key)).rowcount

    # -- inside

    def _announce(self, connection: sqlite3.Connection, place: str) -> None:
        row = connection.execute("SELECT text, digest FROM place").fetchone()
        if row is None or tuple(row) != (place, _digest(place)):
            connection.execute("DELETE FROM jobs")
            connection.execute("DELETE FROM workers")
            connection.execute("INSERT OR REPLACE INTO place VALUES (1, ?, ?)", (place, _digest(place)))

    def _put_worker(self, connection: sqlite3.Connection, worker: WorkerRow) -> None:
        connection.execute(_PUT_WORKER, (*astuple(worker)[:-1], self._clock()))

    def _reap(self, connection: sqlite3.Connection, lease_seconds: float, max_attempts: int) -> None:
        now = self._clock()
        connection.execute(_EXPIRED, {"now": now, "max_attempts": max_attempts})
        connection.execute("DELETE FROM workers WHERE heartbeat <= ?", (now - lease_seconds,))

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._reopening(), self._database().read() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._reopening(), self._database().write() as connection:
            yield connection

    @contextmanager
    def _reopening(self) -> Iterator[None]:
        try:
            yield
        except StorageFailed:
            self.close()
            raise

    def _database(self) -> Database:
        with self._lock:
            if self._open is not None and self._open[1] != _inode(self.path):
                self._open[0].close()  # the file was removed or replaced: nobody else sees what we would write
                self._open = None
            if self._open is None:
                self._open = Database(self.path, self._connect, "job queue"), _inode(self.path)
            return self._open[0]

    def _connect(self, path: Path) -> sqlite3.Connection:
        try:
            return _connect(path)
        except _Unusable as error:
            if not self._owner:
                raise StorageFailed(f"the job queue {path} cannot be used: {error}") from error
            log.warning("the job queue %s cannot be used and is replaced by an empty one: %s", path, error)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return _connect(path)


class _Unusable(Exception):
    """The file is damaged, or of another format."""


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, with its folder and tables when they are new. Raises StorageFailed, and _Unusable for what waiting cannot help."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(f"the job queue {path} cannot be opened: {error}") from error
    try:
        _prepare(connection)
    except sqlite3.OperationalError as error:
        connection.close()
        raise StorageFailed(f"the job queue {path} cannot be read: {error}") from error
    except (sqlite3.DatabaseError, _Unusable) as error:
        connection.close()
        raise _Unusable(str(error)) from error
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")  # what a power cut may take is asked for again
    if (found := str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])) != "ok":
        raise _Unusable(found)
    connection.execute("BEGIN IMMEDIATE")  # of two processes that open a new file at once, one makes the tables
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version not in (0, VERSION):
        raise _Unusable(f"it has format version {version}, this agentmem uses {VERSION}")
    if version == 0:
        for statement in filter(str.strip, _SCHEMA.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return -1


def _digest(text: str) -> str:
    return str(blake3(text.encode()).hexdigest())


def _job(row: sqlite3.Row) -> JobRow:
    values = {item.name: row[item.name] for item in fields(JobRow)}
    return JobRow(**(values | {"state": JobState(values["state"])}))
