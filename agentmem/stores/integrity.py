"""What must hold in the ledger's tables beyond what SQLite enforces itself."""

from __future__ import annotations

import json
import sqlite3

_GAPS = """
SELECT session, count(*) AS n, min(turn) AS first, max(turn) AS last FROM turns GROUP BY session
HAVING first != 0 OR last != n - 1
"""
_LABELS = """
SELECT s.tenant, s.id, s.labels, s.created_at, json_group_object(l.name, l.value) FILTER (WHERE l.name IS NOT NULL) AS indexed
FROM sessions AS s LEFT JOIN labels AS l
    ON l.session = s.key AND l.tenant = s.tenant AND l.id = s.id AND l.created_at = s.created_at
GROUP BY s.key
"""
_UNREFERENCED = "SELECT hash FROM blocks AS b WHERE NOT EXISTS (SELECT 1 FROM refs AS r WHERE r.hash = b.hash)"
_FOREIGN = """
SELECT b.hash FROM blocks AS b JOIN refs AS r USING (hash) JOIN sessions AS s ON s.key = r.session WHERE s.tenant != b.tenant
"""


def problems(connection: sqlite3.Connection) -> list[str]:
    """Return one sentence for each broken rule, none for a sound ledger."""
    found = [f"sqlite: {row[0]}" for row in connection.execute("PRAGMA quick_check") if row[0] != "ok"]
    found += [f"table {row[0]} has a row without its {row[2]}" for row in connection.execute("PRAGMA foreign_key_check")]
    found += [f"session {row['session']} has {row['n']} turns from {row['first']} to {row['last']}" for row in connection.execute(_GAPS)]
    found += [
        f"session {row['id']!r} is filed under labels {row['indexed']}, its own are {row['labels']}"
        for row in connection.execute(_LABELS)
        if json.loads(row["labels"]) != json.loads(row["indexed"] or "{}")
    ]
    found += [f"block {row['hash'].hex()} has a row that no turn refers to" for row in connection.execute(_UNREFERENCED)]
    found += [f"block {row['hash'].hex()} is referred to by another tenant's session" for row in connection.execute(_FOREIGN)]
    return found
