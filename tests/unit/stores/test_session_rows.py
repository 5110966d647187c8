"""Pages of sessions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.stores import OTHER, TENANT, session

from agentmem.errors import InvalidInput
from agentmem.stores import Ledger, session_rows
from agentmem.stores.schema import connect
from agentmem.types import SessionRecord, TenantId


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Return an empty ledger."""
    ledger = Ledger(tmp_path / "meta.sqlite")
    yield ledger
    ledger.close()


def pages(ledger: Ledger, labels: dict[str, str], page_size: int, tenant: TenantId = TENANT) -> list[list[str]]:
    """Return the ids on all pages."""
    found, token = [], ""
    while True:
        page = ledger.list_sessions(tenant, labels=labels, page_size=page_size, page_token=token)
        found.append([record.id for record in page.records])
        token = page.next_token
        if not token:
            return found


def test_newest_first_then_by_id(ledger: Ledger) -> None:
    """Pages follow each other newest first, by id where the time is equal, and end with an empty token."""
    for name, created_at in (("b", 1.0), ("c", 2.0), ("a", 1.0), ("d", 2.0)):
        ledger.create_session(session(name, created_at=created_at), [])
    assert [["c", "d"], ["a", "b"]] == pages(ledger, {}, 2)
    assert [["c", "d", "a"], ["b"]] == pages(ledger, {}, 3)


def test_other_tenants_are_not_listed(ledger: Ledger) -> None:
    """A tenant sees its own sessions, with labels or without."""
    ledger.create_session(session("ours", labels={"x": "1"}), [])
    ledger.create_session(session("theirs", tenant=OTHER, labels={"x": "1"}), [])
    assert [[["ours"]]] * 2 == [pages(ledger, labels, 10) for labels in ({}, {"x": "1"})]


def test_all_labels_must_match(ledger: Ledger) -> None:
    """A session is listed when it carries every label asked for with that value."""
    for name, labels in (("a", {"x": "1", "y": "1"}), ("b", {"x": "1", "y": "2"}), ("c", {"x": "1"})):
        ledger.create_session(session(name, labels=labels), [])
    asked = ({"x": "1"}, {"x": "1", "y": "2"}, {"y": "1", "x": "1"}, {"x": "2"}, {"x": "1", "z": "1"})
    assert [[["a", "b", "c"]], [["b"]], [["a"]], [[]], [[]]] == [pages(ledger, labels, 10) for labels in asked]


def test_updated_labels_count(ledger: Ledger) -> None:
    """After an update a session is found under its new labels, in its old place."""
    ledger.create_session(session("a", labels={"x": "1"}, created_at=1.0), [])
    ledger.create_session(session("b", labels={"x": "2"}, created_at=2.0), [])
    ledger.update_session(session("a", labels={"x": "2"}, created_at=9.0))
    assert [[[]], [["b", "a"]]] == [pages(ledger, {"x": value}, 10) for value in "12"]
    assert [] == ledger.integrity()


@pytest.mark.parametrize("page_size", [0, -1, 1001])
def test_wrong_page_size_is_refused(ledger: Ledger, page_size: int) -> None:
    """The error names the range."""
    with pytest.raises(InvalidInput, match="1 to 1000"):
        ledger.list_sessions(TENANT, labels={}, page_size=page_size, page_token="")


def test_wrong_token_is_refused(ledger: Ledger) -> None:
    """A token that no list call gave is InvalidInput."""
    with pytest.raises(InvalidInput, match="page_token"):
        ledger.list_sessions(TENANT, labels={}, page_size=1, page_token="made up")


RECORDS = st.lists(
    st.builds(
        session,
        st.text("abc", min_size=1, max_size=3),
        created_at=st.sampled_from([0.0, 0.1, 1e9]),
        labels=st.dictionaries(st.sampled_from("xy"), st.sampled_from("12")),
    ),
    max_size=12,
    unique_by=lambda record: record.id,
)


@settings(max_examples=40)
@given(RECORDS, st.dictionaries(st.sampled_from("xy"), st.sampled_from("12")), st.integers(1, 4))
def test_pages_equal_a_sorted_list(records: list[SessionRecord], labels: dict[str, str], page_size: int) -> None:
    """All pages together are the matching sessions in order, each once, whatever the page size."""
    connection = connect(Path(":memory:"))
    for record in records:
        session_rows.insert(connection, record)
    found: list[str] = []
    token, more = "", True
    while more:
        page = session_rows.page(connection, TENANT, labels=labels, page_size=page_size, page_token=token, now=0.0)
        found += [record.id for record in page.records]
        token, more = page.next_token, bool(page.next_token)
    connection.close()
    matching = [record for record in records if labels.items() <= record.labels.items()]
    assert [record.id for record in sorted(matching, key=lambda record: (-record.created_at, record.id))] == found


def plan(connection: sqlite3.Connection, query: str) -> str:
    """Return how SQLite runs ``query``."""
    values = dict.fromkeys(("tenant", "created_at", "id", "now", "limit", "name", "value", "others"), "")
    return "; ".join(row["detail"] for row in connection.execute("EXPLAIN QUERY PLAN " + query, values))


def test_pages_are_index_ranges() -> None:
    """Neither page query scans or sorts: its cost does not grow with the number of sessions."""
    connection = connect(Path(":memory:"))
    plans = [plan(connection, query) for query in (session_rows._PAGE, session_rows._PAGE_BY_LABEL)]
    connection.close()
    assert "SEARCH sessions USING INDEX sessions_in_order (tenant=? AND created_at<?)" in plans[0]
    assert "SEARCH l USING PRIMARY KEY (tenant=? AND name=? AND value=? AND created_at<?)" in plans[1]
    assert not any("TEMP B-TREE" in text for text in plans)
