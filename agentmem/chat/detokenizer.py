"""Ids to text, one at a time, without ever showing half a character."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of a growing reply; the pieces together equal ``tokenizer.decode`` of all ids. Special tokens are skipped.

    Except those in ``shown``, id to text: tokenizers count the marks of tool calls as special that are a part of what the model says.

    Not thread safe: one for each reply. A token's text depends on the tokens before it (leading spaces, bytes of a character that
    is split over tokens), so each id is decoded together with the last piece that was complete, and text is held back
    while it ends in a replacement character. The method is the one of TGI, vLLM and ``tokenizers.decoders.DecodeStream``.
    """

    __slots__ = ("_decode", "_ids", "_read", "_shown")

    def __init__(self, tokenizer: PreTrainedTokenizerBase, shown: Mapping[int, str] | None = None) -> None:
        self._decode = _decoder(tokenizer)
        self._shown = shown or {}
        self._ids: list[int] = []  # from the last complete piece on
        self._read = 0  # how many of them have been shown

    def push(self, token_id: int) -> str:
        """Return the text that ``token_id`` completes; "" for special tokens and while a character is incomplete."""
        if token_id in self._shown:
            return self.finish() + self._shown[token_id]
        self._ids.append(token_id)
        shown = self._decode(self._ids[: self._read])
        text = self._decode(self._ids)
        if text.endswith(_INCOMPLETE) or len(text) <= len(shown):
            return ""
        del self._ids[: self._read]
        self._read = len(self._ids)
        return text[len(shown) :]

    def finish(self) -> str:
        """Return what was held back; bytes that never became a character show as U+FFFD. The next push starts anew."""
        shown = self._decode(self._ids[: self._read])
        text = self._decode(self._ids)
        self._ids, self._read = [], 0
        return text[len(shown) :]


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    # The Rust decoder, where there is one, spares the conversions around it: this runs for every token of every session.
    backend = getattr(tokenizer, "backend_tokenizer", None)

    def decode(ids: Sequence[int]) -> str:
        if backend is not None:
            return str(backend.decode(ids, skip_special_tokens=True))
        return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return decode
