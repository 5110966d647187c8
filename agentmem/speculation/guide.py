"""What a grammar says about the next token, as the engine and the drafters see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Guide(Protocol):
    """The state of one reply under its grammar. Engine thread only; it only ever goes forward.

    What comes next is a function of the tokens so far alone: where ``forced`` is not empty it is ``forced()[0]``, else any token of
    ``allowed``. So a draft changes nothing about the output.
    """

    def forced(self) -> Sequence[int]:
        """Return the tokens that the grammar leaves no choice about, the next one first; empty where there is a choice.

        Of what one call returned, the rest stays forced until it has been consumed.
        """

    def allowed(self) -> NDArray[np.int32] | None:
        """Return the tokens that may come next as bits, ``[ceil(vocab / 32)]`` int32, token i being bit i % 32 of word i // 32.

        None: all of them. Valid until the next ``advance``.
        """

    def legal(self, token_ids: Sequence[int]) -> int:
        """Return how many of ``token_ids``, one after the other, the grammar would take. Mutates nothing."""

    def advance(self, token_id: int) -> None:
        """Consume a token. Raises InternalError if it was not allowed."""
