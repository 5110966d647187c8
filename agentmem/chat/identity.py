"""What token ids and renderings mean, as hashes that are stable over processes and machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Left behind by earlier calls that padded or truncated; they don't change what an id means.
_CALL_STATE = ("padding", "truncation")


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the blake3 of the tokenizer's full serialised state and of the names of its special tokens, as hex."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        added = {str(index): repr(token) for index, token in tokenizer.added_tokens_decoder.items()}
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab(), "added": added}
    else:
        state = {key: value for key, value in json.loads(backend.to_str()).items() if key not in _CALL_STATE}
    return _digest({"state": state, "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()}})


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the blake3 of the chat template's text (of all of them, if there are several), or "" when there is none."""
    template = tokenizer.chat_template
    return "" if template is None else _digest(template)


def _digest(value: object) -> str:
    return blake3(json.dumps(value, sort_keys=True).encode()).hexdigest()
