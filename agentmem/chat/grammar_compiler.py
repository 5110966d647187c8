"""A model's vocabulary as llguidance knows it, and grammars compiled for it."""

from __future__ import annotations

import threading
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from agentmem.chat.grammar_guide import BITS, Ends, plain
from agentmem.errors import InvalidInput, NotImplementedYet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_FORCED = 20_000  # tokens at a grammar's start

# The lexer's states, 1 to 2 kB each, are kept and shared by all replies under a grammar. Verbose errors would quote all of the grammar.
LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


class GrammarCompiler:
    """Compiles grammars for one model. Thread safe; the vocabulary is read on first use, which takes about a second.

    ``model_vocab``: how many logits the model has. ``end_token_ids`` beyond them can't come and are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_token_ids: Collection[int], model_vocab: int) -> None:
        self.model_vocab = model_vocab
        self.vocab_size = max(model_vocab, len(tokenizer))  # llguidance takes no fewer than the tokenizer has
        self._tokenizer = tokenizer
        self._end_ids = frozenset(token for token in end_token_ids if 0 <= token < model_vocab)
        self._lock = threading.Lock()
        self._made: LLTokenizer | None = None

    @property
    def ends(self) -> Ends:
        """The tokens that end a reply, the tokenizer's own being the usual one. Raises InvalidInput when there are none."""
        if not self._end_ids:
            raise InvalidInput("the model has no end token, so a constrained reply could never end")
        own = self._tokenizer.eos_token_id
        return Ends(self._end_ids, own if own in self._end_ids else min(self._end_ids))

    @cached_property
    def special(self) -> dict[str, int]:
        """The added tokens that are no text to llguidance, by what they look like."""
        vocabulary = self._vocabulary()
        added = self._tokenizer.added_tokens_decoder
        return {str(token): index for index, token in added.items() if str(token) and vocabulary.is_special_token(index)}

    def writes(self, text: str) -> bool:
        """Return whether the vocabulary has tokens for all of ``text``; some lack rare bytes."""
        vocabulary = self._vocabulary()
        return vocabulary.decode_bytes(vocabulary.tokenize_str(text)) == text.encode()

    def matcher(self, text: str) -> LLMatcher:
        """Return a matcher of the grammar ``text``; it may be in an error, see ``problem``."""
        return LLMatcher(self._vocabulary(), text, log_level=0, limits=LIMITS)

    def complaint(self, text: str) -> str:
        """Return why the grammar ``text`` can't be compiled, "" if it can."""
        return _first_lines(self.matcher(text).get_error())

    def problem(self, matcher: LLMatcher) -> str:
        """Return what is wrong with ``matcher``, "" if it compiled and takes its first step."""
        if matcher.is_error():
            return _first_lines(matcher.get_error())
        trial = matcher.deep_copy()
        count = 0
        while forced := trial.compute_ff_tokens():
            count += len(forced)
            if count > MAX_FORCED:
                return f"it starts with more than {MAX_FORCED} tokens without a choice"
            trial.consume_tokens(forced)
        bits = np.zeros(-(-self.vocab_size // BITS), np.int32)
        trial.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        error = trial.get_error()
        return "it matches nothing" if error.startswith("NoExtension") else _first_lines(error)

    def _vocabulary(self) -> LLTokenizer:
        with self._lock:
            if self._made is None:
                self._made = self._read()
            return self._made

    def _read(self) -> LLTokenizer:
        from llguidance.hf import from_tokenizer  # noqa: PLC0415 - imports transformers, which this package does without otherwise

        own = self.ends.usual
        ends = [own, *sorted(self._end_ids - {own})]
        try:
            return from_tokenizer(self._tokenizer, n_vocab=self.vocab_size, eos_token=ends)  # type: ignore[arg-type] # it checks the type
        except ValueError as error:
            raise NotImplementedYet(f"constrained decoding with this tokenizer: {error}") from error


def _first_lines(message: str) -> str:
    return plain(message.partition("\n  while processing")[0])
