"""A suffix automaton: of everything that a text ends with, the longest part that stood in it before, and where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agentmem.speculation import suffix_kernel as kernel
from agentmem.speculation.tokens import TokenBuffer

Place = tuple[int, int]  # a state, and how many tokens of it are matched


class SuffixAutomaton:
    """Grows with a text, in constant time a token (Blumer et al. 1985); about 150 bytes a token. Not thread safe."""

    def __init__(self) -> None:
        self.tokens = TokenBuffer()
        self._states = np.empty((0, 4), np.int32)
        self._edges = np.empty((0, 4), np.int32)
        self._table = np.empty(0, np.int32)
        self._counts = np.array([1, 0, 0], np.int64)
        self._make_room(64)
        self._states[0] = (0, -1, -1, -1)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return self._states.nbytes + self._edges.nbytes + self._table.nbytes

    def extend(self, token_ids: Sequence[int] | NDArray[np.int32]) -> None:
        """Take in ``token_ids``, a ``SEPARATOR`` between texts that have nothing to do with each other."""
        start = len(self.tokens)
        self.tokens.extend(token_ids)  # type: ignore[arg-type] # an array will do as well
        self._make_room(len(self.tokens))
        kernel.extend(self._states, self._edges, self._table, self._counts, self.tokens.array, start, len(self.tokens))

    def end(self) -> Place:
        """Return the place of the whole text, or of what came after the last separator."""
        last = int(self._counts[kernel.LAST])
        return last, int(self._states[last, kernel.LENGTH])

    def follow(self, place: Place, token_ids: Sequence[int] | NDArray[np.int32]) -> Place:
        """Return the place of the longest known suffix of what ``place`` matches and ``token_ids`` after it."""
        state, length = kernel.follow(self._states, self._edges, self._table, *place, np.asarray(token_ids, np.int32))
        return int(state), int(length)

    def before(self, place: Place) -> Place:
        """Return the place of the longest suffix that stood elsewhere too."""
        link = max(0, int(self._states[place[0], kernel.LINK]))
        return link, int(self._states[link, kernel.LENGTH])

    def next_index(self, place: Place) -> int:
        """Return the index in ``tokens`` of what followed the latest sight of ``place``."""
        return int(self._states[place[0], kernel.END]) + 1

    def _make_room(self, n_tokens: int) -> None:
        """See to it that ``n_tokens`` fit: at most 2 states and 3 edges for each."""
        if 2 * n_tokens + 2 <= len(self._states):
            return
        n_states, n_edges = (int(self._counts[at]) for at in (kernel.N_STATES, kernel.N_EDGES))
        room = max(2 * n_tokens + 2, 2 * len(self._states))
        self._states = np.concatenate([self._states[:n_states], np.empty((room - n_states, 4), np.int32)])
        self._edges = np.concatenate([self._edges[:n_edges], np.empty((room // 2 * 3 - n_edges, 4), np.int32)])
        self._table = np.full(1 << int(2 * len(self._edges) - 1).bit_length(), -1, np.int32)
        kernel.rehash(self._edges, self._table, n_edges)
