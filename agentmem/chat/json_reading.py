"""JSON read one character at a time, by coroutines: each is sent the next character, "" at the end of the text.

``char`` is the character that a reader starts at. A ``Reading`` returns the first one that it has no use for; what ends by itself (a
string, a literal) is a ``Closed`` and takes none beyond its end. Readers give what they accept to ``take``, character by character, so
whoever listens has everything up to the one that breaks the JSON. Nothing recurses: depth is the model's choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator

Reading = Generator[None, str, str]
Closed = Generator[None, str, None]
Take = Callable[[str], object]

_BLANK = frozenset(" \t\n\r")
_CLOSERS = {"{": "}", "[": "]"}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_NUMERIC = frozenset("-+.eE0123456789")
_WORDS = {word[0]: word for word in ("true", "false", "null")}


class Malformed(Exception):
    """The text breaks off from what it should be; the message says where, for a person."""


class Ended(Malformed):
    """The text ended before what it should be was complete."""


def unexpected(char: str, wanted: str) -> Malformed:
    """Return the error for ``char`` in the place of ``wanted``."""
    return Malformed(f"{char!r} in the place of {wanted}") if char else Ended(f"the text ends before {wanted}")


def ignore(_char: str) -> None:
    """Take a character and do nothing with it."""


def blank(char: str, take: Take = ignore) -> Reading:
    """Read whitespace, if there is any."""
    while char in _BLANK:
        take(char)
        char = yield
    return char


def literal(char: str, text: str) -> Closed:
    """Read ``text``. Raises Malformed for any other."""
    for position, wanted in enumerate(text):
        if position:
            char = yield
        if char != wanted:
            raise unexpected(char, repr(text))


def string(char: str, take: Take) -> Closed:
    """Read a string. Raises Malformed when none starts here, Ended when it does not end.

    Where it ends is all that counts: models leave newlines and backslashes unescaped, and whoever reads the text may make sense of it.
    """
    if char != '"':
        raise unexpected(char, "a string")
    take(char)
    escaped = False
    while True:
        char = yield
        if not char:
            raise unexpected(char, "the end of a string")
        take(char)
        if char == '"' and not escaped:
            return
        escaped = char == "\\" and not escaped


def value(char: str, take: Take) -> Reading:
    """Read any JSON value. Raises Malformed at the first character that cannot belong to one."""
    closers: list[str] = []
    while True:
        opened = char in _CLOSERS
        if opened:
            closers.append(_CLOSERS[char])
            take(char)
            char = yield from blank((yield), take)
        elif char == '"':
            yield from string(char, take)
            char = yield
        else:
            char = yield from _scalar(char, take)
        if opened and char != closers[-1]:
            char = yield from _to_value(char, closers[-1], take)
            continue
        char, ended = yield from _after_value(char, closers, take)
        if ended:
            return char


def _after_value(char: str, closers: list[str], take: Take) -> Generator[None, str, tuple[str, bool]]:
    """Read what follows a value up to the next one; return whether there is none because ``closers`` are all closed."""
    while closers:
        char = yield from blank(char, take)
        if char == ",":
            take(char)
            char = yield from blank((yield), take)
            char = yield from _to_value(char, closers[-1], take)
            return char, False
        if char != closers[-1]:
            raise unexpected(char, f"',' or {closers[-1]!r}")
        closers.pop()
        take(char)
        char = yield
    return char, True


def _to_value(char: str, closer: str, take: Take) -> Reading:
    """Read up to the next value within ``closer``: in an object, its key and the colon."""
    if closer == "}":
        yield from string(char, take)
        char = yield from blank((yield), take)
        if char != ":":
            raise unexpected(char, "':'")
        take(char)
        char = yield from blank((yield), take)
    return char


def _scalar(char: str, take: Take) -> Reading:
    text = ""
    if char in _WORDS:
        for wanted in _WORDS[char]:
            if char != wanted:
                raise unexpected(char, f"a JSON value, after {text!r}")
            take(char)
            text += char
            char = yield
        return char
    while char in _NUMERIC:
        take(char)
        text += char
        char = yield
    if not _NUMBER.fullmatch(text):
        raise unexpected(char, f"a JSON value, after {text!r}" if text else "a JSON value")
    return char
