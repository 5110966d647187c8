"""Lark text of replies with tool calls, in llguidance's dialect (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentmem.chat.call_shape import CallShape
from agentmem.chat.subschemas import rebased

MAX_CALLS = 16  # of one reply; without a bound a small model may call forever

Piece = str | int  # text, or the id of a special token


class Literals:
    """Turns literal text into Lark. ``special``: the tokens that are no text of their own for the grammar, by what they look like."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self.special = dict(special)
        longest_first = sorted(self.special, key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def pieces(self, text: str) -> list[Piece]:
        """Return ``text`` cut at its special tokens, without empty pieces."""
        pieces: list[Piece] = []
        end = 0
        for match in self._token.finditer(text):
            pieces += [text[end : match.start()], self.special[match[0]]]
            end = match.end()
        return [piece for piece in (*pieces, text[end:]) if piece != ""]


def lark(pieces: Sequence[Piece]) -> str:
    """Return the Lark expression of ``pieces`` one after the other."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece  # one lexeme, so that names of which one starts another need no choice before their end
        else:
            joined.append(piece)
    return " ".join(f"<[{piece}]>" if isinstance(piece, int) else json.dumps(piece) for piece in joined) or '""'


def call_schema(shape: CallShape, name: str, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Return the JSON schema of a whole call in ``shape``, ``arguments`` being that of its arguments; None if its calls are not JSON."""
    text = f"{shape.before_name}{_written(shape, name)}{shape.between}null{shape.after}"
    try:
        call = json.loads(text)
    except ValueError:
        return None
    holes = [key for key, value in call.items() if value is None] if isinstance(call, dict) else []
    if len(holes) != 1 or json.dumps(call, ensure_ascii=False) != text:
        return None
    arguments = rebased(arguments, f"/properties/{holes[0]}")
    properties = {key: arguments if key == holes[0] else {"const": value} for key, value in call.items()}
    return {"type": "object", "properties": properties, "required": list(call), "additionalProperties": False}


def _written(shape: CallShape, name: str) -> str:
    return json.dumps(name, ensure_ascii=False)[1:-1] if shape.before_name.endswith('"') else name


class CallGrammar:
    """The Lark of calls in one shape to some tools. ``names``: of the tools; tool i has its arguments from a grammar ``args_i``.

    ``end_ids``: tokens that end a reply. ``most``: how many calls a reply may hold.
    """

    def __init__(self, shape: CallShape, names: Sequence[str], literals: Literals, end_ids: Collection[int], *, most: int) -> None:
        self._shape = shape
        self._names = names
        self._literals = literals
        self._end_ids = end_ids
        self._most = most
        # What opens a call among text is its first token or, where that is text, all up to the next special token.
        opening = literals.pieces(shape.open.strip())
        self._trigger: Piece = opening[0] if opening else ""
        start = opening[0] if opening and isinstance(opening[0], str) else self._text_of(self._trigger)
        self._rest = literals.pieces(shape.open.lstrip()[len(start) :])

    def calls_only(self) -> str:
        """Return the grammar of calls and nothing else."""
        return f"start: calls\n{self._rules()}"

    def format_or_calls(self) -> str:
        """Return the grammar of what a grammar ``format`` takes, or calls."""
        return f"start: @format | calls\n{self._rules()}"

    def text_or_calls(self) -> str:
        """Return the grammar of any text, which calls may follow; where it opens one, a call must follow."""
        if isinstance(self._trigger, int):
            start = f"start: {self._text()} (<[{self._trigger}]> begun)?\n"
        else:
            # A lazy lexeme ends where its pattern first matches, so nothing gets past the opening text.
            start = f"start: {self._marks()} (CHUNK | opened begun)?\nopened[lazy]: ANY {lark([self._trigger])}\n"
        return start + self._text_rules() + self._rules()

    def text_only(self) -> str:
        """Return the grammar of any text that opens no call."""
        return f"start: {self._text()}\n{self._text_rules()}"

    def _text(self) -> str:
        return f"{self._marks()} CHUNK?"

    def _marks(self) -> str:
        # Two chunks side by side could hold the halves of what opens a call; between them there is always a special token.
        others = sorted(set(self._literals.special.values()) - {self._trigger, *self._end_ids})
        return f"(CHUNK? <[{','.join(map(str, others))}]>)*" if others else ""

    def _text_rules(self) -> str:
        opening = lark([self._text_of(self._trigger)])  # a special token must not be spelled out either
        return f"CHUNK: /(?s:.+)/ & ~OPENING\nOPENING: ANY {opening} ANY\nANY: /(?s:.*)/\n"

    def _text_of(self, piece: Piece) -> str:
        return next(text for text, token in self._literals.special.items() if token == piece) if isinstance(piece, int) else piece

    def _rules(self) -> str:
        """Return the rules ``calls`` and ``begun``, calls after what triggers them."""
        shape, pieces = self._shape, self._literals.pieces
        opening, closing = lark(pieces(shape.open)), lark(pieces(shape.close))
        if shape.separator is None:
            again = f"{lark(pieces(shape.gap + shape.open))} call {closing}"
            rest = f"call {closing} {self._more(again)}"
        else:
            rest = f"call {self._more(f'{lark(pieces(shape.separator))} call')} {closing}"
        tools = "\n".join(
            f"tool_{index}: {self._call(name)} @args_{index} {lark(pieces(shape.after))}" for index, name in enumerate(self._names)
        )
        choice = " | ".join(f"tool_{index}" for index in range(len(self._names)))
        return f"calls: {opening} rest\nbegun: {lark(self._rest)} rest\nrest: {rest}\ncall: {choice}\n{tools}\n"

    def _more(self, again: str) -> str:
        return f"({again}){{0,{self._most - 1}}}" if self._most > 1 else ""

    def _call(self, name: str) -> str:
        before = self._literals.pieces(self._shape.before_name)
        return lark([*before, _written(self._shape, name), *self._literals.pieces(self._shape.between)])
