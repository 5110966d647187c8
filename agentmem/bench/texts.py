"""Real text that every machine has: the source of Python's standard library."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

from agentmem.errors import InvalidInput

# Prose and code in turn, pure Python, together about 400,000 tokens of SmolLM2.
MODULES = (
    "argparse", "heapq", "textwrap", "statistics", "typing", "dataclasses", "fractions", "ast", "shutil", "tarfile", "datetime",
    "smtplib", "optparse", "difflib", "configparser", "subprocess", "zipfile", "inspect", "doctest", "mailbox", "enum", "pathlib",
)  # fmt: skip


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the token ids of ``text``."""

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of ``token_ids``."""


def source_of(module: str) -> str:
    """Return the source of the standard library's ``module``. Raises InvalidInput when it has none that is Python."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise InvalidInput(f"module {module!r} has no Python source here")
    return Path(spec.origin).read_text(encoding="utf-8")


class TextSource:
    """Hands out real text in order, never the same passage twice, so that no prompt is found in a cache by accident."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._stream = self._tokens()

    def _tokens(self) -> Iterator[int]:
        for module in MODULES:
            yield from self.tokenizer.encode(source_of(module), add_special_tokens=False)

    def token_ids(self, count: int) -> list[int]:
        """Return the next ``count`` token ids. Raises InvalidInput when the text is used up."""
        ids = list(islice(self._stream, count))
        if len(ids) < count:
            raise InvalidInput(f"the standard library's text is used up: {count} tokens were asked for, {len(ids)} are left")
        return ids

    def text(self, count: int) -> str:
        """Return the text of the next ``count`` tokens. Raises InvalidInput when it is used up."""
        return self.tokenizer.decode(self.token_ids(count))
