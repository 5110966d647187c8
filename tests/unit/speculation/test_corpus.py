from __future__ import annotations

from agentmem.speculation.corpus import Corpora, Corpus
from agentmem.speculation.port import Context
from agentmem.speculation.suffix import SuffixDrafter
from agentmem.speculation.tokens import TokenBuffer
from agentmem.types import TenantId

RESULT = [*range(100, 140)]


def drafted(context: list[int], corpus: Corpus) -> tuple[int, ...]:
    return SuffixDrafter().draft(Context(TokenBuffer(context), corpus), [], 5).token_ids


def test_what_one_session_was_told_another_can_draft() -> None:
    """A result that is in no context of the session itself is found in its tenant's corpus, and not beyond its end."""
    corpus = Corpus()
    corpus.add(RESULT)
    corpus.add([*range(200, 220)])

    assert (103, 104, 105, 106, 107) == drafted([1, 2, 101, 102], corpus)
    assert (139,) == drafted([137, 138], corpus)
    assert () == drafted([1, 2, 3], corpus)


def test_of_equal_matches_the_sessions_own_counts() -> None:
    """What followed in this very session is the better guess."""
    corpus = Corpus()
    corpus.add(RESULT)

    assert (7, 1, 101, 102, 7) == drafted([101, 102, 7, 1, 101, 102], corpus)


def test_tenants_never_meet() -> None:
    """One tenant's texts are no draft of another's (invariant 9); what is forgotten is gone."""
    corpora = Corpora(max_tenants=2)
    corpora.of(TenantId("a")).add(RESULT)

    assert () == drafted([101, 102], corpora.of(TenantId("b")))
    assert (103, 104, 105, 106, 107) == drafted([101, 102], corpora.of(TenantId("a")))
    corpora.forget(TenantId("a"))
    assert () == drafted([101, 102], corpora.of(TenantId("a")))


def test_the_least_recently_used_tenant_goes_first() -> None:
    """More tenants than there is room for push out the one that was away longest."""
    corpora = Corpora(max_tenants=2)
    corpora.of(TenantId("a")).add(RESULT)
    for name in ("b", "a", "c"):
        corpora.of(TenantId(name))

    assert (103, 104, 105, 106, 107) == drafted([101, 102], corpora.of(TenantId("a")))


def test_memory_is_bounded_and_places_survive_a_cut() -> None:
    """Old texts make room for new ones; a reply that drafted before the cut drafts rightly after it."""
    corpus = Corpus(max_tokens=100)
    drafter, context = SuffixDrafter(), Context(TokenBuffer([101, 102]), corpus)
    corpus.add(RESULT)
    assert 103 == drafter.draft(context, [], 5).token_ids[0]
    for start in range(1000, 2000, 30):
        corpus.add([*range(start, start + 30)])
        assert len(corpus.automaton.tokens) <= 100
    assert corpus.version > 0
    assert () == drafter.draft(context, [], 5).token_ids
    corpus.add(RESULT)
    assert 103 == drafter.draft(context, [], 5).token_ids[0]


def test_of_a_text_too_long_the_end_is_kept() -> None:
    """A result longer than the corpus does not empty it."""
    corpus = Corpus(max_tokens=100)
    corpus.add([*range(1000)])

    assert (997, 998, 999) == drafted([995, 996], corpus)
