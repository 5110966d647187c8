"""What a drafter is, and what it may know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agentmem.registry import Registry
from agentmem.speculation.corpus import Corpus
from agentmem.speculation.tokens import TokenBuffer


class Reader(Protocol):
    """Predicts the tokens of one reply. Engine thread only."""

    def begin(self, tokens: NDArray[np.int32], after: Sequence[int]) -> int | None:
        """Read what is new of ``tokens``, all of the context, and ``after``; return the token that is found likely to follow.

        None where nothing can be read now. ``end`` must follow, whatever comes of it.
        """

    def step(self, token_id: int) -> int:
        """Read one more token and return the next."""

    def end(self) -> None:
        """Forget what was read beyond the context."""


@dataclass(slots=True, eq=False)
class Context:
    """One reply as drafters see it: all ``tokens`` so far, and what its tenant's sessions have called and been told.

    ``readers`` can read on, by the name of the drafter that has them do so. ``notes`` are the drafters' own, by name, for as long as
    the reply lasts.
    """

    tokens: TokenBuffer
    corpus: Corpus | None = None
    readers: Mapping[str, Reader] = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next. ``strength``: on how many tokens of the context in a row the guess rests; 0: on none."""

    token_ids: tuple[int, ...] = ()
    strength: int = 0


class Drafter(Protocol):
    """Proposes tokens to verify. One object for all replies of an engine; engine thread only."""

    def draft(self, context: Context, after: Sequence[int], limit: int) -> Draft:
        """Return up to ``limit`` tokens that may come after the context and ``after``, which are certain to come first.

        Mutates nothing but the drafter's own entry of ``context.notes``. The output stays the same whatever it returns.
        """
        ...


AUTO = "auto"  # whichever pays
DRAFTERS: Registry[type[Drafter]] = Registry("drafter")


def check_drafter(name: str) -> None:
    """Raise InvalidInput, naming the known ones, unless ``name`` is a drafter or ``auto``."""
    if name != AUTO:
        DRAFTERS.get(name)
