"""Decoding with random logits under a grammar, and schemas to do it with."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from agentmem.chat.grammar import Grammar
from agentmem.speculation.guide import Guide

Bits = NDArray[np.bool_]


class RandomModel:
    """A model of uniform logits that likes to close what it has opened, so that its replies end."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.ends = tuple(ends)
        self.vocab_size = vocab_size
        self._closers = np.zeros(vocab_size, bool)
        for token, index in tokenizer.get_vocab().items():
            self._closers[index] = any(char in token for char in '"]},') or index in self.ends

    def allowed(self, guide: Guide) -> Bits:
        """Return which tokens may come, ``[vocab]`` bool."""
        mask = guide.allowed()
        assert mask is not None
        assert (-(-self.vocab_size // 32),) == mask.shape
        return np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)[: self.vocab_size]

    def reply(self, grammar: Grammar, seed: int, limit: int = 2000) -> list[int]:
        """Return a reply under ``grammar``, its end token last."""
        random = np.random.default_rng(seed)
        guide = grammar.guide()
        reply: list[int] = []
        while len(reply) < limit:
            forced = guide.forced()
            if forced:
                token = forced[0]
            else:
                allowed = self.allowed(guide)
                closing = allowed & self._closers
                choices = closing if closing.any() and random.random() < 0.4 else allowed
                token = int(random.choice(np.flatnonzero(choices)))
            guide.advance(token)
            reply.append(token)
            if token in self.ends:
                return reply
        raise AssertionError(f"no end after {limit} tokens: {self.text(reply)[-200:]!r}")

    def text(self, reply: Sequence[int]) -> str:
        """Return the text of ``reply``, end tokens left out."""
        return str(self.tokenizer.decode([token for token in reply if token not in self.ends], clean_up_tokenization_spaces=False))

    def ids(self, text: str) -> list[int]:
        """Return the tokens of ``text``."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))


class Ladder:
    """A grammar of token 5, then any of 6 and 7, again and again; asking it takes a millisecond."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def forced(self) -> Sequence[int]:
        time.sleep(0.001)
        return () if len(self.taken) % 2 else (5,)

    def allowed(self) -> NDArray[np.int32]:
        return np.array([1 << 6 | 1 << 7], np.int32)

    def legal(self, token_ids: Sequence[int]) -> int:
        return len(token_ids)

    def advance(self, token_id: int) -> None:
        self.taken.append(token_id)


def hermes_calls(text: str) -> list[tuple[str, Any]]:
    """Return the names and arguments of a reply in the HERMES shape that is calls alone; raise ValueError for anything else."""
    calls = []
    for block in text.removesuffix("\n</tool_call>").split("\n</tool_call>\n"):
        if not block.startswith("<tool_call>\n"):
            raise ValueError(f"no call: {block!r}")
        call = json.loads(block.removeprefix("<tool_call>\n"))
        if list(call) != ["name", "arguments"]:
            raise ValueError(f"odd members: {block!r}")
        calls.append((call["name"], call["arguments"]))
    return calls


NAMES = st.sampled_from(["a", "b", "name", "some key", 'q"uote', "größe", "line\nbreak", "x-1"])
PATTERNS = st.sampled_from(["^[a-c]{1,4}$", "^(yes|no)$", "[0-9]", "^x"])
# SmolLM2 has no token for the first byte of characters beyond U+3FFFF.
WRITABLE = st.text(st.characters(max_codepoint=0x2FFFF, exclude_categories=["Cc", "Cs"]) | st.sampled_from('\n\t"\\/'), max_size=6)
CONSTANTS = st.none() | st.booleans() | st.integers(-1000, 1000) | WRITABLE


def _range(kind: str, low: str, high: str, least: int, most: int) -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(least, most), st.integers(0, most - least))
    return bounds.map(lambda pair: {"type": kind, low: pair[0], high: pair[0] + pair[1]})


SCALARS = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "integer"}, {"type": "number"}, {"type": ["integer", "null"]}]),
    _range("integer", "minimum", "maximum", -1000, 1000),
    _range("number", "minimum", "maximum", -10, 10),
    _range("string", "minLength", "maxLength", 0, 8),
    st.integers(1, 10).map(lambda step: {"type": "integer", "multipleOf": step}),
    PATTERNS.map(lambda pattern: {"type": "string", "pattern": pattern, "maxLength": 8}),
    st.sampled_from(["date", "uuid", "ipv4", "time"]).map(lambda name: {"type": "string", "format": name}),
    st.lists(CONSTANTS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    CONSTANTS.map(lambda value: {"const": value}),
)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Draw a schema of an object with some properties required, and others perhaps allowed."""
    properties = draw(st.dictionaries(NAMES, inner, max_size=4))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    more = draw(st.sampled_from([False, False, {"type": "integer"}]))
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": more}


def _compound(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        objects(inner),
        st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda parts: {"type": "array", "items": parts[0], "minItems": parts[1], "maxItems": parts[1] + parts[2]}
        ),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
    )


SCHEMAS = objects(st.recursive(SCALARS, _compound, max_leaves=5))  # of objects, small ones, that random replies get through
