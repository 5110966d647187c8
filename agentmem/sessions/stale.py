"""The memory that a session goes on with for a while after messages were forgotten: the old one, with holes where they were."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentmem.engine.run import EngineRequest
from agentmem.memory.hashing import Chain
from agentmem.memory.pool import KVPool
from agentmem.memory.segment import Branch
from agentmem.types import Fidelity

NOWHERE = -1  # place of a token that the old memory does not have


@dataclass(slots=True, eq=False)
class Stale:
    """Old positions, new tokens. Event loop only; ``branch`` is idle while nobody writes, and may be spilled like any other.

    ``tokens`` stand on the branch's positions and beyond it, 0 in a hole. ``places`` has for each token of the session its position here,
    or NOWHERE.
    """

    branch: Branch
    tokens: list[int]
    places: list[int]

    @property
    def holes(self) -> tuple[range, ...]:
        """Positions of the branch that no token of the session has any more, as ranges in order."""
        kept = [-1, *sorted(place for place in self.places if place != NOWHERE), len(self.tokens)]
        return tuple(range(a + 1, b) for a, b in itertools.pairwise(kept) if b > a + 1)

    def request(self, plain: EngineRequest, added: Sequence[int]) -> EngineRequest:
        """Return a request that reads ``added`` after this memory; where it is away, ``plain`` is done, which needs none.

        Its chain names no block: what is computed here is no K or V that anybody else may find.
        """
        root = self.branch.root
        return replace(
            plain,
            chain=Chain(plain.chain.root, sys.maxsize, [*self.tokens, *added]),
            branch=self.branch,
            computed_before=0,
            fidelity=Fidelity.RECALL,
            memory=root.compact.sealed if root is not None and root.compact is not None else None,
            holes=self.holes,
            instead=plain,
        )

    def grow(self, branch: Branch, tokens: Sequence[int]) -> list[int]:
        """Take over what a run has made of this memory; return the tokens that it has added."""
        added = list(tokens[len(self.tokens) :])
        self.places += range(len(self.tokens), len(tokens))
        self.branch, self.tokens = branch, list(tokens)
        return added


def stale_of(branch: Branch, before: Sequence[int], places: Sequence[int], after: Sequence[int]) -> Stale:
    """Return the memory of a session whose tokens ``before`` stand in ``branch``, and which has the tokens ``after`` from now on.

    ``places`` has for each of these its position in ``before``, or NOWHERE. Tokens that the branch does not have yet leave no hole.
    """
    tokens = [0] * branch.length
    moved = []
    for place, token in zip(places, after, strict=True):
        if place >= branch.length:
            moved.append(len(tokens))
            tokens.append(token)
        else:
            moved.append(place)
            if place != NOWHERE:
                tokens[place] = before[place]
    return Stale(branch, tokens, moved)


def cut(pool: KVPool, branch: Branch, length: int) -> None:
    """Leave the first ``length`` tokens of ``branch`` at most. Engine thread."""
    if branch.alive:
        pool.truncate(branch, min(branch.length, length))
