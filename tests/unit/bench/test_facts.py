from __future__ import annotations

import itertools

import pytest

from agentmem.bench.facts import LAST_TOKENS, PLACES, Fact, asked, facts_of, planted
from agentmem.errors import InvalidInput


class Letters:
    """A tokenizer whose tokens are characters."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return list(map(ord, text))

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))


class Filler:
    """Text of one letter, as much as is asked for."""

    def __init__(self) -> None:
        self.tokenizer = Letters()

    def token_ids(self, count: int) -> list[int]:
        return [ord("x")] * count


@pytest.mark.parametrize(
    ("reply", "answered"), [("4817.\n", True), ("4817", True), ("48170", False), ("481", False), (" 4817", False), ("", False)]
)
def test_an_answer_is_the_code_and_no_other_number(reply: str, answered: bool) -> None:
    """The reply must begin with the code, and the number end there."""
    assert answered is Fact("Oslo", "4817").answered_by(reply)


def test_the_question_is_the_beginning_of_the_fact() -> None:
    """What a model should say after the question is what the text said."""
    fact = Fact("Oslo", "4817")
    assert ("\n# The access code of Oslo is Oslo-", "4817.\n") == (fact.question, fact.statement.removeprefix(fact.question))


def test_codes_have_four_digits_and_differ() -> None:
    """No two facts of several contexts share a code, so that none is answered by remembering another context."""
    codes = [fact.code for number in range(20) for fact in facts_of(number)]
    assert (160, {4}) == (len(set(codes)), set(map(len, codes)))
    assert facts_of(3) == facts_of(3)


@pytest.mark.parametrize("count", [0, 9])
def test_there_are_as_many_facts_as_places(count: int) -> None:
    """More facts than places, or none, is refused with the limits."""
    with pytest.raises(InvalidInput, match=f"{count} facts.*1 to 8"):
        facts_of(0, count)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_facts_lie_evenly_and_the_length_is_exact(count: int) -> None:
    """Each fact is there once, in order, after equally long passages, and the end of the context is free of them."""
    facts = facts_of(0, count)
    ids = planted(Filler(), facts, 1500)
    text = Letters().decode(ids)
    starts = [text.index(fact.statement) for fact in facts]
    ends = [0, *(start + len(fact.statement) for start, fact in zip(starts, facts, strict=True))]
    gaps = [start - end for start, end in zip(starts, ends, strict=False)]
    assert 1500 == len(ids)
    assert max(gaps) - min(gaps) <= 1
    assert LAST_TOKENS == 1500 - ends[-1]


def test_a_context_too_short_for_its_facts_names_the_length_it_takes() -> None:
    """The length that the error names is just enough."""
    facts = facts_of(0, 2)
    least = LAST_TOKENS + sum(len(fact.statement) for fact in facts) + 2
    with pytest.raises(InvalidInput, match=f"takes {least} or more"):
        planted(Filler(), facts, least - 1)
    assert least == len(planted(Filler(), facts, least))


def test_every_turn_asks_for_another_fact_and_jumps() -> None:
    """Questions are about different facts, and not in the order in which they were read."""
    facts = facts_of(0)
    for turns in range(1, len(PLACES) + 1):
        assert turns == len(set(asked(facts, turns)))
    order = [facts.index(fact) for fact in asked(facts, 5)]
    assert all(abs(one - two) > 1 for one, two in itertools.pairwise(order))


@pytest.mark.parametrize("turns", [0, 4])
def test_no_fact_is_asked_for_twice(turns: int) -> None:
    """More turns than facts are refused."""
    with pytest.raises(InvalidInput, match="there are 3"):
        asked(facts_of(0, 3), turns)
