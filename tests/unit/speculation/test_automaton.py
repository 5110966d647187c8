from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agentmem.speculation.automaton import SuffixAutomaton
from agentmem.speculation.suffix_kernel import SEPARATOR

texts = st.lists(st.integers(0, 3), max_size=50)


def grown(pieces: list[list[int]]) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    for piece in pieces:
        automaton.extend(piece)
    return automaton


def longest_known(text: list[int], after: list[int]) -> tuple[int, int]:
    """Return the length of the longest suffix of both that stands in ``text``, not as its own end, and where its latest place ends."""
    whole = text + after
    for length in range(len(whole) - (not after), 0, -1):
        for end in range(len(text) - (not after), length - 1, -1):
            if text[end - length : end] == whole[-length:]:
                return length, end
    return 0, 0


@settings(max_examples=200, deadline=None)
@given(st.lists(texts, max_size=4), st.lists(st.integers(0, 3), max_size=5))
def test_the_longest_suffix_seen_before_is_found(pieces: list[list[int]], after: list[int]) -> None:
    """However the text came in, it is the one that looking everywhere finds; without anything after it, at its latest place."""
    automaton, text = grown(pieces), [token for piece in pieces for token in piece]
    place = automaton.follow(automaton.end(), after) if after else automaton.before(automaton.end())
    length, end = longest_known(text, after)

    assert length == place[1]
    if length and not after:
        assert end == automaton.next_index(place)


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, min_size=1, max_size=5), st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_no_match_goes_across_a_separator(pieces: list[list[int]], query: list[int]) -> None:
    """Of several texts, what is matched lies in one of them."""
    automaton = grown([[*piece, SEPARATOR] for piece in pieces])
    state, length = automaton.follow((0, 0), query)
    known = max(n for n in range(len(query) + 1) if any(_holds(piece, query[len(query) - n :]) for piece in pieces))

    assert known == length
    if length:
        end = automaton.next_index((state, length))
        assert query[len(query) - length :] == automaton.tokens.array[end - length : end].tolist()


def _holds(text: list[int], part: list[int]) -> bool:
    return any(text[at : at + len(part)] == part for at in range(len(text) - len(part) + 1))


def test_its_memory_is_linear() -> None:
    """Every token costs a few hundred bytes at most, however much the text repeats itself."""
    automaton = grown([[n % 7 for n in range(5000)], [*range(5000)], [3] * 5000])

    assert automaton.nbytes < 15_000 * 400
