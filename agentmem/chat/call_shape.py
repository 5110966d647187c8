"""How a model writes tool calls, as literal text around names and arguments."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallShape:
    """Calls are written ``open`` call ``separator`` call ... ``close``, a call being ``before_name`` name ``between`` arguments ``after``.

    The arguments are a JSON object. ``separator`` None: each call has an ``open`` and a ``close`` of its own, with ``gap`` between them.
    """

    open: str
    before_name: str
    between: str
    after: str
    close: str
    separator: str | None = None
    gap: str = "\n"
    parallel: bool = True  # whether one reply can hold several calls


HERMES = CallShape("<tool_call>\n", '{"name": "', '", "arguments": ', "}", "\n</tool_call>")
LLAMA3_JSON = CallShape("", '{"name": "', '", "parameters": ', "}", "", parallel=False)
MISTRAL = CallShape("[TOOL_CALLS][", '{"name": "', '", "arguments": ', "}", "]", separator=", ")
MISTRAL_ARGS = CallShape("[TOOL_CALLS]", "", "[ARGS]", "", "", gap="")
