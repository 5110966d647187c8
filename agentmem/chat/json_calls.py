"""The call that is a JSON object with a name and arguments, which most formats put between their own marks."""

from __future__ import annotations

import json

from agentmem.chat.json_reading import Closed, Ended, Malformed, Reading, blank, ignore, literal, string, unexpected, value
from agentmem.chat.reply_parts import ReplyParts

_ARGUMENTS = ("arguments", "parameters")  # Llama 3 was trained to write the second, and small models take one for the other


class JsonCall:
    """Reads one call and tells ``parts`` of it. Other keys, such as an id of the model's own, are left out.

    ``stop``: the first character of what closes the call's format; where it stands in the place of the last brace, the brace was forgotten.
    ``bare``: any JSON object in a reply may or may not be a call. It is one when its name is that of a tool, or when arguments
    follow its name at once, and it is given up as soon as it can't be.
    """

    def __init__(self, parts: ReplyParts, *, stop: str = "", bare: bool = False) -> None:
        self._parts = parts
        self._stop = stop
        self._bare = bare
        self._name = ""
        self._has_arguments = False

    def read(self, char: str) -> Reading:
        """Read the object, which starts at ``char``, up to its end."""
        if char != "{":
            raise unexpected(char, "a call's '{'")
        self._parts.begin()
        char = yield from blank((yield))
        while char != "}":
            char = yield from self._member(char)
            char = yield from blank(char)
            if char == ",":
                char = yield from blank((yield))
            elif char and char == self._stop and self._has_arguments:
                self._parts.problems.append(f"call {self._parts.index} is not valid JSON: its last '}}' is missing")
                self._parts.end()
                return char
            elif char != "}":
                raise unexpected(char, "',' or '}'")
        self._parts.end()
        return (yield)

    def _member(self, char: str) -> Reading:
        key: list[str] = []
        yield from string(char, key.append)
        name = decoded("".join(key))
        char = yield from blank((yield))
        if char != ":":
            raise unexpected(char, "':'")
        char = yield from blank((yield))
        if name in _ARGUMENTS:
            return (yield from self._arguments(char))
        if name == "name":
            yield from self._called(char)
        elif self._bare:
            if self._name or name != "type":
                raise Malformed("it is an object of another kind")
            yield from literal(char, '"function"')
        else:
            return (yield from value(char, ignore))
        return (yield)

    def _called(self, char: str) -> Closed:
        text: list[str] = []
        yield from string(char, text.append)
        name = decoded("".join(text))
        if name is None:
            raise Malformed("its name is not valid JSON")
        if self._name and not self._parts.announced:
            raise Malformed("it has two names")
        self._name = name
        if not self._bare or self._parts.knows(name):
            self._parts.announce(name)

    def _arguments(self, char: str) -> Reading:
        if self._has_arguments:
            raise Malformed("it has arguments twice")
        if self._bare and not self._parts.announced:
            self._parts.announce(self._name)
        char = yield from arguments(char, self._parts)
        self._has_arguments = True
        return char


def arguments(char: str, parts: ReplyParts) -> Reading:
    """Read the arguments of a call: any JSON value, as it is written."""
    if char != '"':
        return (yield from value(char, parts.argument))
    text: list[str] = []
    try:
        yield from string(char, text.append)
    except Ended:
        parts.argument("".join(text))
        raise
    # Some models write the object into a string, as OpenAI's API shows it.
    inner = decoded("".join(text))
    parts.argument("".join(text) if inner is None else inner)
    return (yield)


def decoded(text: str) -> str | None:
    """Return the string that the JSON in ``text`` stands for; None if it is not valid, or no text that UTF-8 can hold."""
    try:
        string = str(json.loads(text, strict=False))
        string.encode()
    except ValueError:
        return None
    return string
