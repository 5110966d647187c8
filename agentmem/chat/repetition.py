"""How large a regular expression is once its counted repetitions are written out."""

from __future__ import annotations

import re

MAX_EXPANSION = 20_000  # atoms; an automaton of so many states is built within a second

_ATOM = re.compile(
    r"\\[pPxuU]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|\[:\^?\w+:\]|[^\]\\])*\]"  # escapes and classes, whose braces and parentheses don't count
    r"|\{(?P<least>\d+)(?P<open>,(?P<most>\d*))?\}|[()]|.",
    re.DOTALL,
)
_LARK = re.compile(
    r'"(?:\\.|[^"\\\n])*"|(?P<comment>//[^\n]*|#[^\n]*)|/(?P<regex>(?:\\.|[^/\\\n])+)/'
    r"|^[?!]*(?P<name>[A-Za-z_][\w-]*)[^:\n]*:(?!:)"
    r"|\{\s*(?P<least>\d*)\s*,?\s*(?P<most>\d*)\s*\}|~\s*(?P<from>\d+)(?:\s*\.\.\s*(?P<to>\d+))?",
    re.MULTILINE,
)


def expansion(regex: str) -> int:
    """Return how many atoms ``regex`` has when ``x{3}`` is read as ``xxx``; an upper bound, for a malformed one too."""
    totals, last = [0], 0
    for match in _ATOM.finditer(regex):
        if match["least"] is not None:
            count = max(int(number or 0) for number in (match["least"], match["most"]))
            totals[-1] += last * (max(count, 1) - 1)
            last *= max(count, 1)
        elif match[0] == "(":
            totals.append(0)
        elif match[0] == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        else:
            last = 1
            totals[-1] += 1
    return sum(totals)


def lark_expansion(grammar: str) -> int:
    """Return a bound on the atoms of the largest terminal in ``grammar``, a Lark text.

    Terminals may refer to each other, so the counts of all of them are taken to multiply. Rules are not written out by the parser.
    """
    largest, product, in_terminal = 1, 1, False
    for match in _LARK.finditer(grammar):
        if match["name"] is not None:
            in_terminal = match["name"].lstrip("_")[:1].isupper()
        elif match["regex"] is not None:
            largest = max(largest, expansion(match["regex"]))
        elif in_terminal:
            counts = [int(match[group]) for group in ("least", "most", "from", "to") if match[group]]
            product *= max([1, *counts])
    return largest * product
