"""Replies parsed by the tokenizer's own ``response_template``.

That is the inverse of a chat template: a declarative description, in tokenizer_config.json, of where a model's thinking, text and
calls stand in what it generates (https://huggingface.co/docs/transformers/chat_response_parsing). transformers reads it since 5.13; few
models have one yet. It covers formats that our table doesn't (Qwen 3.5's XML, Gemma 4's), but it gives calls as values, not as they were
written, piece by piece. That is why the table is asked first: what was streamed must be what is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from agentmem.chat.markup import REFUSALS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINKING = ("reasoning_content", "thinking")  # the second in early templates


def parse_response(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], prompt: str, tools: Sequence[dict[str, Any]]
) -> tuple[str, list[tuple[str, str]]] | None:
    """Return the text of a reply, thinking first, and its calls, each a name and arguments as JSON; None if it has no calls.

    ``prompt``: what opened the reply. None also without a ``response_template``, and when it can't make sense of the reply.
    """
    if getattr(tokenizer, "response_template", None) is None or not token_ids:
        return None
    try:
        parsed = tokenizer.parse_response(list(token_ids), prefix=prompt, tools=list(tools))
        calls = [_call(call["function"]) for call in parsed.get("tool_calls") or ()]
        texts = [str(parsed[key]) for key in (*_THINKING, "content") if parsed.get(key)]
    except (*REFUSALS, RecursionError):  # the template may be wrong, and the reply may be anything
        return None
    return ("\n\n".join(texts), calls) if calls else None


def _call(function: dict[str, Any]) -> tuple[str, str]:
    name, arguments = function["name"], function.get("arguments", {})
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    if not isinstance(name, str) or not name:
        raise ValueError("a call has no name")
    (name + written).encode()  # a ValueError, too, for lone surrogates
    return name, written
