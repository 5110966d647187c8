"""What a tenant's agents have called and been told: a text to draft from that outlives their sessions, bounded in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from agentmem.speculation.automaton import SuffixAutomaton
from agentmem.speculation.suffix_kernel import SEPARATOR
from agentmem.types import TenantId

MAX_TOKENS = 32_768  # of one tenant, about 5 MB
MAX_TENANTS = 32


class Corpus:
    """The latest texts of one tenant. ``version`` grows whenever older ones were dropped, and with them every place in ``automaton``."""

    def __init__(self, max_tokens: int = MAX_TOKENS) -> None:
        self.max_tokens = max_tokens
        self.automaton = SuffixAutomaton()
        self.version = 0

    def add(self, token_ids: Sequence[int]) -> None:
        """Take in a text; of one that is longer than half of what there is room for, the end."""
        text = np.asarray(token_ids[-self.max_tokens // 2 :], np.int32)
        if len(self.automaton.tokens) + len(text) + 1 > self.max_tokens:
            latest = self.automaton.tokens.array[-(self.max_tokens // 2 - 1) :].copy()
            self.automaton = SuffixAutomaton()
            self.automaton.extend(latest)
            self.version += 1
        self.automaton.extend([SEPARATOR])
        self.automaton.extend(text)


class Corpora:
    """One corpus for each tenant; tenants never meet (invariant 9). The least recently used go first. Engine thread only."""

    def __init__(self, max_tenants: int = MAX_TENANTS) -> None:
        self.max_tenants = max_tenants
        self._corpora: OrderedDict[TenantId, Corpus] = OrderedDict()

    def of(self, tenant: TenantId) -> Corpus:
        """Return the tenant's corpus, an empty one if there is none."""
        corpus = self._corpora.setdefault(tenant, Corpus())
        self._corpora.move_to_end(tenant)
        while len(self._corpora) > self.max_tenants:
            self._corpora.popitem(last=False)
        return corpus

    def forget(self, tenant: TenantId) -> None:
        """Drop what is kept of the tenant."""
        self._corpora.pop(tenant, None)
