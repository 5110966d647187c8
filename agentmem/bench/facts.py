"""Facts planted in real text, and the questions that ask for them: whether a compressed memory still knows what it read.

A fact is a line of comment among source code. Its question is the line's beginning, so that a small model without instructions can answer:
"The access code of Oslo is Oslo-" and then the code. (With the place written twice the full cache of SmolLM2-135M knows 15 of 16 codes at
3,000 tokens of context; once, 8 of 16.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentmem.bench.texts import TextSource
from agentmem.errors import InvalidInput

PLACES = ("Madrid", "Oslo", "Cairo", "Lima", "Tokyo", "Dublin", "Athens", "Berlin")
LAST_TOKENS = 192  # of text after the last fact: more than what stays as full rows whatever a compressor thinks of it
STRIDE = 3  # from one question's fact to the next: coprime to the number of places, so that questions jump through the context


@dataclass(frozen=True, slots=True)
class Fact:
    """The access code of a place."""

    place: str
    code: str

    @property
    def statement(self) -> str:
        """The line that tells the fact, from the end of the line before to its own."""
        return f"{self.question}{self.code}.\n"

    @property
    def question(self) -> str:
        """The line's beginning; what should follow is the code."""
        return f"\n# The access code of {self.place} is {self.place}-"

    def answered_by(self, reply: str) -> bool:
        """Return whether ``reply`` is the code, and not the beginning of a longer number."""
        return reply.startswith(self.code) and not reply[len(self.code) : len(self.code) + 1].isdigit()


def facts_of(number: int, count: int = len(PLACES)) -> tuple[Fact, ...]:
    """Return the ``count`` facts of context ``number``: other codes in each. Raises InvalidInput for more facts than places."""
    if not 1 <= count <= len(PLACES):
        raise InvalidInput(f"{count} facts were asked for; allowed are 1 to {len(PLACES)}")
    # Four digits that look like nothing in particular: multiples of a prime, modulo another.
    return tuple(Fact(place, str(1000 + 4391 * (number * len(PLACES) + index + 1) % 8999)) for index, place in enumerate(PLACES[:count]))


def planted(text: TextSource, facts: Sequence[Fact], num_tokens: int) -> list[int]:
    """Return ``num_tokens`` token ids of ``text`` with ``facts`` spread evenly over all of it but the end.

    Raises InvalidInput where they do not fit.
    """
    lines = [text.tokenizer.encode(fact.statement, add_special_tokens=False) for fact in facts]
    filler = num_tokens - sum(map(len, lines)) - LAST_TOKENS
    if filler < len(lines):
        least = num_tokens - filler + len(lines)
        raise InvalidInput(f"a context of {num_tokens} tokens is too short for {len(lines)} facts; it takes {least} or more")
    ids: list[int] = []
    for index, line in enumerate(lines):
        ids += text.token_ids(filler * (index + 1) // len(lines) - filler * index // len(lines))
        ids += line
    return ids + text.token_ids(LAST_TOKENS)


def asked(facts: Sequence[Fact], turns: int) -> tuple[Fact, ...]:
    """Return the facts that ``turns`` turns ask for, each once. Raises InvalidInput for more turns than facts."""
    if not 1 <= turns <= len(facts):
        raise InvalidInput(f"{turns} turns with a different question each need {turns} facts; there are {len(facts)}")
    order = sorted(range(len(facts)), key=lambda index: (index * STRIDE % len(facts), index))
    return tuple(facts[index] for index in order[:turns])
