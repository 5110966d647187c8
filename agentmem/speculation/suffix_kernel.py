"""Compiled parts of the suffix automaton (Blumer et al. 1985), over arrays that the caller allocates large enough.

``states`` ``[n, 4]`` int32: length of the longest string, suffix link, where it was last seen to end, first edge. ``edges``
``[m, 4]`` int32: state, token, target, the state's next edge. ``table`` int32, a power of two long: hash of (state, token) -> edge,
-1 where it is free. ``counts`` ``[3]`` int64: states, edges, the state of the whole text.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from agentmem.memory.compiled import kept

LENGTH, LINK, END, FIRST = 0, 1, 2, 3
STATE, TOKEN, TARGET, NEXT = 0, 1, 2, 3
N_STATES, N_EDGES, LAST = 0, 1, 2
MOST_SUFFIXES = 32  # of the suffixes that end with each token, so many learn that they do: the longest
SEPARATOR = -1  # what no match goes across


@nb.njit(inline="always")
def _slot(table: Any, edges: Any, state: Any, token: Any) -> Any:  # pragma: no cover - compiled
    """Return where the edge of (state, token) is in the table, or would be."""
    mask = len(table) - 1
    at = ((np.int64(state) * 0x9E3779B1) ^ (np.int64(token) * 0x85EBCA77)) & mask
    while table[at] >= 0 and (edges[table[at], STATE] != state or edges[table[at], TOKEN] != token):
        at = (at + 1) & mask
    return at


@nb.njit
def _add_edge(states: Any, edges: Any, table: Any, counts: Any, state: Any, token: Any, target: Any) -> None:  # pragma: no cover - compiled
    edge = counts[N_EDGES]
    counts[N_EDGES] = edge + 1
    edges[edge, STATE] = state
    edges[edge, TOKEN] = token
    edges[edge, TARGET] = target
    edges[edge, NEXT] = states[state, FIRST]
    states[state, FIRST] = edge
    table[_slot(table, edges, state, token)] = edge


@nb.njit
def _add_state(states: Any, counts: Any, length: Any, link: Any, end: Any) -> Any:  # pragma: no cover - compiled
    state = counts[N_STATES]
    counts[N_STATES] = state + 1
    states[state, LENGTH] = length
    states[state, LINK] = link
    states[state, END] = end
    states[state, FIRST] = -1
    return state


@nb.njit
def _split(states: Any, edges: Any, table: Any, counts: Any, p: Any, token: Any) -> Any:  # pragma: no cover - compiled
    """Return the state of p's longest string and ``token``, taken out of the state it shares with longer strings if need be."""
    q = edges[table[_slot(table, edges, p, token)], TARGET]
    if states[q, LENGTH] == states[p, LENGTH] + 1:
        return q
    clone = _add_state(states, counts, states[p, LENGTH] + 1, states[q, LINK], states[q, END])
    edge = states[q, FIRST]
    while edge >= 0:
        _add_edge(states, edges, table, counts, clone, edges[edge, TOKEN], edges[edge, TARGET])
        edge = edges[edge, NEXT]
    states[q, LINK] = clone
    while p >= 0:
        edge = table[_slot(table, edges, p, token)]
        if edge < 0 or edges[edge, TARGET] != q:
            break
        edges[edge, TARGET] = clone
        p = states[p, LINK]
    return clone


@kept(nogil=True)
def extend(states: Any, edges: Any, table: Any, counts: Any, tokens: Any, start: Any, stop: Any) -> None:  # pragma: no cover - compiled
    """Take in ``tokens[start:stop]``; a SEPARATOR starts another text.

    What is known to end with a token is noted when the next one comes, so that until then a suffix knows its place before this one.
    """
    for i in range(start, stop):
        last = counts[LAST]
        known = last
        for _ in range(MOST_SUFFIXES):
            if known <= 0:
                break
            states[known, END] = i - 1
            known = states[known, LINK]
        token = tokens[i]
        if token == SEPARATOR:
            counts[LAST] = 0
            continue
        if table[_slot(table, edges, last, token)] >= 0:  # after a separator: the text begins like another
            counts[LAST] = _split(states, edges, table, counts, last, token)
            continue
        state = _add_state(states, counts, states[last, LENGTH] + 1, 0, i)
        p = last
        while p >= 0 and table[_slot(table, edges, p, token)] < 0:
            _add_edge(states, edges, table, counts, p, token, state)
            p = states[p, LINK]
        if p >= 0:
            states[state, LINK] = _split(states, edges, table, counts, p, token)
        counts[LAST] = state


@kept(nogil=True)
def follow(states: Any, edges: Any, table: Any, state: Any, length: Any, tokens: Any) -> Any:  # pragma: no cover - compiled
    """Read ``tokens`` from a state with ``length`` tokens matched; return state and length of the longest suffix that is known."""
    for token in tokens:
        edge = table[_slot(table, edges, state, token)]
        while edge < 0 and state > 0:
            state = states[state, LINK]
            length = np.int64(states[state, LENGTH])
            edge = table[_slot(table, edges, state, token)]
        if edge >= 0:
            state = np.int64(edges[edge, TARGET])
            length += 1
    return state, length


@kept(nogil=True)
def rehash(edges: Any, table: Any, n_edges: Any) -> None:  # pragma: no cover - compiled
    """Fill a fresh ``table``."""
    for edge in range(n_edges):
        table[_slot(table, edges, edges[edge, STATE], edges[edge, TOKEN])] = edge
