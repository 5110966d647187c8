from __future__ import annotations

import pytest

from agentmem.bench import texts
from agentmem.bench.texts import MODULES, TextSource, source_of
from agentmem.errors import InvalidInput


class Words:
    """A tokenizer whose tokens are characters."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return list(map(ord, text))

    def decode(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_source(module: str) -> None:
    """All the modules named are Python files of this interpreter."""
    assert len(source_of(module)) > 1000


@pytest.mark.parametrize("module", ["sys", "no_such_module"])
def test_what_has_no_source_is_refused(module: str) -> None:
    """A built-in and an unknown module are named in the error."""
    with pytest.raises(InvalidInput, match=module):
        source_of(module)


def test_no_passage_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passages follow each other through the modules, until the text is used up."""
    monkeypatch.setattr(texts, "MODULES", ("a", "b"))
    monkeypatch.setattr(texts, "source_of", lambda module: module * 3)
    source = TextSource(Words())
    assert ["aa", "abb"] == [source.text(2), source.text(3)]
    with pytest.raises(InvalidInput, match="2 tokens were asked for, 1 are left"):
        source.token_ids(2)
