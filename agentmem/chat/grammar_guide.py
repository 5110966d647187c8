"""One reply's way through its grammar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from agentmem.errors import InternalError

BITS = 32  # of a word of the mask

Mask = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ends:
    """The tokens that end a reply: all of them, and the one to force where nothing else may come."""

    ids: frozenset[int]
    usual: int


class GrammarGuide:
    """The state of one reply under an llguidance grammar; an ``agentmem.speculation.guide.Guide``. One thread at a time.

    ``matcher`` is its own, over a vocabulary of ``parser_vocab`` tokens, which may be more than the model's ``vocab_size``. It never
    sees an end token: whether the reply may end is asked of it, so that all end tokens are alike. ``broken`` is called when the
    matcher fails, before InternalError is raised.
    """

    def __init__(self, matcher: LLMatcher, parser_vocab: int, vocab_size: int, ends: Ends, broken: Callable[[], None]) -> None:
        self._matcher = matcher
        self._bits: Mask = np.zeros(-(-parser_vocab // BITS), np.int32)  # all that the matcher writes
        self._mask: Mask = self._bits[: -(-vocab_size // BITS)]  # what the engine sees of it
        self._beyond = range(vocab_size, min(parser_vocab, self._mask.size * BITS))
        self._ends = ends
        self._broken = broken
        self._queue: tuple[int, ...] = ()
        self._ended = False
        self._looked = False  # whether the queue is known at this place
        self._filled = False  # whether the bits are the matcher's
        self._masked = False  # whether the mask is complete

    def forced(self) -> Sequence[int]:
        """Return the tokens that the grammar leaves no choice about; after an end token none. Raises InternalError if the matcher fails."""
        if not self._looked and not self._ended:
            self._queue = tuple(self._matcher.compute_ff_tokens())
            self._check()
            if not self._queue and self._matcher.is_accepting():
                self._fill()
                self._queue = self._only_end(self._bits)
            self._looked = True
        return self._queue

    def allowed(self) -> Mask:
        """Return the mask, ``[ceil(vocab / 32)]`` int32, valid until the next ``advance``. Raises InternalError if nothing may come."""
        if not self._masked:
            forced = self.forced()
            if forced or self._ended:
                self._mask.fill(0)
                _set(self._mask, forced[:1])
            else:
                self._fill()
                if self._may_end(self._matcher, self._bits):
                    _set(self._mask, self._ends.ids)
                _clear(self._mask, self._beyond)
                if not self._mask.any():
                    raise self._failure("no token may come next")
            self._masked = True
        return self._mask

    def legal(self, token_ids: Sequence[int]) -> int:
        """Return how many of ``token_ids`` the grammar would take, one after the other. Mutates nothing."""
        queue = self.forced()
        for taken, (token, expected) in enumerate(zip(token_ids, queue, strict=False)):
            if token != expected:
                return taken
            if token in self._ends.ids:
                return taken + 1
        if self._ended or len(token_ids) <= len(queue):
            return 0 if self._ended else len(token_ids)
        trial = self._matcher.deep_copy()  # shares what was compiled: a few microseconds
        trial.consume_tokens(list(queue))
        taken = len(queue)
        ahead = trial.compute_ff_tokens() if queue else []
        for token in token_ids[taken:]:
            if not self._takes(trial, token, ahead):
                break
            taken += 1
            if token in self._ends.ids or not trial.consume_token(token):
                break
            ahead = ahead[1:] or trial.compute_ff_tokens()
        return taken

    def advance(self, token_id: int) -> None:
        """Consume a token. Raises InternalError if it was not allowed, or if the matcher fails."""
        forced = self.forced()
        if self._ended or (forced and forced[0] != token_id):
            raise InternalError(
                f"token {token_id} came where the grammar takes {f'token {forced[0]} alone' if forced else 'none any more'}"
            )
        # The matcher is asked first: a token that it refuses would leave it in an error for good.
        if not self._takes(self._matcher, token_id, forced):
            raise InternalError(f"token {token_id} came where the grammar does not take it")
        if token_id in self._ends.ids:
            self._ended, self._queue = True, ()
        else:
            self._matcher.consume_token(token_id)
            self._check()
            self._queue = self._queue[1:]
            self._looked = bool(self._queue)
        self._filled = self._masked = False

    def _takes(self, matcher: LLMatcher, token_id: int, ahead: Sequence[int]) -> bool:
        """Return whether ``token_id`` may come where ``matcher`` is and ``ahead`` is forced."""
        if ahead:
            return token_id == ahead[0]
        if token_id not in self._ends.ids:
            return matcher.validate_tokens([token_id]) == 1
        bits = np.zeros_like(self._bits)
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        return self._may_end(matcher, bits) and token_id in (self._only_end(bits) or self._ends.ids)

    def _may_end(self, matcher: LLMatcher, bits: Mask) -> bool:
        """Return whether an end token may come: the grammar is complete, or names an end token here."""
        return not matcher.is_error() and (matcher.is_accepting() or any(_has(bits, token) for token in self._ends.ids))

    def _only_end(self, bits: Mask) -> tuple[int, ...]:
        """Return the usual end token where ``bits`` has none but end tokens, else nothing."""
        others = int(np.bitwise_count(bits).sum()) - sum(_has(bits, token) for token in self._ends.ids)
        return () if others else (self._ends.usual,)

    def _fill(self) -> None:
        if not self._filled:
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            self._check()
            self._filled = True

    def _check(self) -> None:
        if self._matcher.is_error():
            raise self._failure(self._matcher.get_error())

    def _failure(self, cause: str) -> InternalError:
        self._broken()
        return InternalError(f"the grammar of the reply failed: {plain(cause)}")


def plain(message: str) -> str:
    """Return a message of llguidance without its parser's state."""
    return message.partition("<non-verbose/>")[0].partition("<state>")[0].strip()[:500]


def _has(bits: Mask, token_id: int) -> bool:
    return bool(bits[token_id // BITS] >> (token_id % BITS) & 1)


def _set(bits: Mask, token_ids: Iterable[int]) -> None:
    words = bits.view(np.uint32)
    for token in token_ids:
        words[token // BITS] |= np.uint32(1 << token % BITS)


def _clear(bits: Mask, token_ids: Iterable[int]) -> None:
    words = bits.view(np.uint32)
    for token in token_ids:
        words[token // BITS] &= ~np.uint32(1 << token % BITS)
