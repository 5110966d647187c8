"""From weights to spans of text: whole words, inside a turn, never twice."""

from __future__ import annotations

import pytest
import torch
from support.replica import END, START, byte_tokenizer, encode

from agentmem.chat import Chat
from agentmem.sessions.spans import MAX_TOKENS, MAX_WORD, Memory, spans_of
from agentmem.views import RecalledSpan


def memory_of(*turns: str) -> tuple[Memory, str]:
    """Return a memory of ``turns``, one token for each byte, and all their text with a character for each token."""
    tokens = [encode(turn) for turn in turns]
    flat = [token for turn in tokens for token in turn]
    text = "".join(turns).replace(START, "\0").replace(END, "\0")
    return Memory(flat, [len(turn) for turn in tokens]), text


def find(turns: tuple[str, ...], weighted: dict[str, float], k: int = 5) -> list[RecalledSpan]:
    """Return the spans where the first character of each word in ``weighted`` has its weight."""
    memory, text = memory_of(*turns)
    weights = torch.zeros(len(memory.tokens))
    for word, weight in weighted.items():
        weights[text.index(word)] = weight
    return spans_of(memory, weights, Chat(byte_tokenizer()), k)


def test_spans_are_whole_words_heaviest_first() -> None:
    """Each peak becomes the words around it, with its turn, its place and its weight; the heaviest comes first."""
    turns = ("a prelude here. ", "the quick brown fox. ", "jumps over the lazy dogs.")
    spans = find(turns, {"fox": 0.2, "lazy": 0.5, "prelude": 0.1})

    assert [(2, 0.5), (1, 0.2), (0, 0.1)] == [(span.turn_index, pytest.approx(span.weight)) for span in spans]
    assert "lazy" in spans[0].text
    assert "fox." in spans[1].text
    for span in spans:
        assert span.text == "".join(turns)[span.first_token : span.first_token + span.n_tokens].strip()


def test_k_bounds_the_number() -> None:
    """No more than ``k`` spans, the highest peaks."""
    turns = ("one two three four five six seven eight nine ten eleven twelve thirteen",)
    spans = find(turns, {"two": 0.1, "thirteen": 0.4, "seven": 0.2}, k=2)
    assert [0.4, 0.2] == [pytest.approx(span.weight) for span in spans]


def test_no_span_leaves_its_turn_or_passes_a_special_token() -> None:
    """A weight at the edge of a turn or of a message stays there, however high the other side is."""
    spans = find((f"{START}user\nalpha{END}\n{START}assistant\nbeta{END}", "gamma delta"), {"beta": 0.4, "gamma": 0.3, "alpha": 0.2})

    assert ["assistant\nbeta", "gamma", "user\nalpha"] == [" ".join(span.text.split(" ")[:1]) for span in spans]
    assert [0, 1, 0] == [span.turn_index for span in spans]


def test_no_token_is_in_two_spans() -> None:
    """Even where all weights are equal the spans are disjoint, short, and their weights sum to at most 1."""
    memory, _ = memory_of("word " * 40, "x" * 100)
    spans = spans_of(memory, torch.full((300,), 1 / 300), Chat(byte_tokenizer()), 1000)
    taken = [token for span in spans for token in range(span.first_token, span.first_token + span.n_tokens)]

    assert len(taken) == len(set(taken))
    assert 1.0 >= sum(span.weight for span in spans) - 1e-6
    assert max(span.n_tokens for span in spans) <= MAX_TOKENS + 2 * MAX_WORD


def test_what_is_not_text_is_left_out() -> None:
    """White space alone is no span, and without weights there is none."""
    assert [] == find(("a   \n\n     b",), {"\n": 1.0})[1:]
    assert [] == find(("abc",), {})


def test_characters_of_several_tokens_are_whole() -> None:
    """A weight in the middle of a character gives the whole of it, and text without spaces is cut somewhere."""
    text = "\u65e5\u672c\u8a9e" * 20
    memory = Memory(encode(text), [len(encode(text))])
    weights = torch.zeros(len(memory.tokens))
    weights[91] = 1.0
    (span,) = spans_of(memory, weights, Chat(byte_tokenizer()), 3)
    assert span.text in text
    assert span.n_tokens <= MAX_TOKENS
