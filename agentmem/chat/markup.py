"""Text to ids, such that nobody but the template can write a control token."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import TemplateError

from agentmem.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

# What a template raises when it refuses its input: its own raise_exception, or whatever its expressions run into.
REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


class Markup:
    """Marks control tokens in what callers sent, and encodes renderings so that marked ones stay text. Thread safe.

    A message with ``<|im_end|>`` in it must not end its turn. Before rendering, each control token in callers' strings is replaced
    by a mark that nobody can guess; the template works on real contents otherwise, so whatever it does to them (stripping,
    splitting, JSON) is its own. After rendering, a mark becomes its token's text again, cut in two for the tokenizer, so
    that it is never seen whole.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._controls = control_tokens(tokenizer)
        self._control = re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")
        self._index = {text: index for index, text in enumerate(self._controls)}
        self._nonce = f"M{secrets.token_hex(8)}x"
        self._mark = re.compile(rf"{self._nonce}(\d+)z")
        self.sentinel = f"S{secrets.token_hex(8)}z"
        eos = tokenizer.eos_token
        self._anchor = eos if eos in self._controls and len(self._ids(eos)) == 1 else ""

    def mark(self, value: T) -> T:
        """Return ``value``, a string or JSON value, with the control tokens in its strings (keys too) replaced by marks."""
        marked: Any = value
        if isinstance(value, str):
            marked = self._control.sub(lambda match: f"{self._nonce}{self._index[match[0]]}z", value)
        elif isinstance(value, dict):
            marked = {self.mark(key): self.mark(item) for key, item in value.items()}
        elif isinstance(value, list):
            marked = [self.mark(item) for item in value]
        return marked  # type: ignore[no-any-return]

    def unmark(self, text: str) -> str:
        """Return ``text`` with the marks replaced by what they stand for."""
        return self._mark.sub(lambda match: self._controls[int(match[1])], text)

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Return the ids of ``text``, a rendering with marks. ``start``: nothing precedes it.

        Raises InvalidInput for a lone surrogate, which UTF-8 cannot hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the text holds a lone surrogate, {text[error.start]!r}") from error
        first, *others = self._pieces(text)
        ids = self._ids(first) if start else self._following(first)
        for piece in filter(None, others):
            ids += self._following(piece)
        return ids

    def _pieces(self, text: str) -> list[str]:
        texts_and_marks = self._mark.split(text)
        pieces = [texts_and_marks[0]]
        for mark, after in zip(texts_and_marks[1::2], texts_and_marks[2::2], strict=True):
            head, *rest = self._cut(self._controls[int(mark)])
            pieces[-1] += head
            pieces += (*rest, after)
        return pieces

    def _cut(self, text: str) -> list[str]:
        """Cut ``text`` until no piece contains a control token."""
        match = self._control.search(text)
        if match is None:
            return [text]
        return [text[: match.start() + 1], *self._cut(text[match.start() + 1 :])]

    def _following(self, text: str) -> list[int]:
        # Some tokenizers put a space before the first word of a text; after a control token they don't.
        return self._ids(self._anchor + text)[1:] if self._anchor else self._ids(text)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the tokens that give a conversation its structure, longest first.

    These are the special tokens, and of the other added tokens those that the template writes around a plain conversation.
    A token of one character could not be told from text, so it is none.
    """
    added = tokenizer.added_tokens_decoder.values()
    written = _plain_conversation(tokenizer)
    controls = {str(token) for token in added if token.special or str(token) in written}
    return tuple(sorted((text for text in controls if len(text) > 1 and not text.isspace()), key=lambda text: (-len(text), text)))


def _plain_conversation(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        return ""
    messages = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except REFUSALS:  # a template this odd still has its special tokens
        return ""
