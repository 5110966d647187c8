from __future__ import annotations

import json

import numpy as np
import pytest
from support.grammars import RandomModel
from transformers import PreTrainedTokenizerBase

from agentmem.chat import grammar_compiler
from agentmem.chat.call_shape import HERMES
from agentmem.chat.grammar import Grammar, Grammars
from agentmem.errors import InternalError
from agentmem.output import FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.speculation.guide import Guide
from agentmem.types import ToolSpec

ENDS = (0, 2)
TOOL = ToolSpec(
    "f",
    "",
    '{"type": "object", "properties": {"kind": {"enum": ["red", "ready", "blue"]}, "n": {"type": "integer"}}, "required": ["kind"]}',
)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> RandomModel:
    return RandomModel(tokenizer, ENDS, len(tokenizer))


@pytest.fixture(scope="module")
def grammars(model: RandomModel) -> Grammars:
    return Grammars(model.tokenizer, ENDS, model.vocab_size)


def _regex(grammars: Grammars, text: str) -> Grammar:
    grammar = grammars.compile(OutputSpec(response_format=ResponseFormat(FormatKind.REGEX, text)), [], HERMES)
    assert grammar is not None
    return grammar


def _lark(grammars: Grammars, text: str) -> Grammar:
    grammar = grammars.compile(OutputSpec(response_format=ResponseFormat(FormatKind.LARK, text)), [], HERMES)
    assert grammar is not None
    return grammar


def _call(grammars: Grammars) -> Grammar:
    grammar = grammars.compile(OutputSpec(ToolChoice(ToolMode.REQUIRED, parallel=False)), [TOOL], HERMES)
    assert grammar is not None
    return grammar


def _only(model: RandomModel, guide: Guide) -> list[int]:
    return [int(token) for token in np.flatnonzero(model.allowed(guide))]


def test_forced_tokens_stay_forced_until_consumed(grammars: Grammars, model: RandomModel) -> None:
    """What was forced at once is forced one by one as well, in the same tokens, and is all that is allowed."""
    guide = _call(grammars).guide()
    forced = tuple(guide.forced())
    assert '<tool_call>\n{"name": "f", "arguments": {"kind": "' == model.tokenizer.decode(forced)
    for place, token in enumerate(forced):
        assert forced[place:] == tuple(guide.forced())
        assert [token] == _only(model, guide)
        guide.advance(token)
    assert not guide.forced()


@pytest.mark.parametrize("seed", range(10))
def test_a_draft_is_taken_as_single_tokens_are(grammars: Grammars, model: RandomModel, seed: int) -> None:
    """From anywhere in a reply, the rest of it is legal as one draft, and asking changes nothing."""
    grammar = _call(grammars)
    reply = model.reply(grammar, seed)
    guide = grammar.guide()
    for place, token in enumerate(reply):
        assert len(reply) - place == guide.legal(reply[place:])
        assert len(reply) - place == guide.legal([*reply[place:], 5])
        guide.advance(token)
    assert [] == list(guide.forced())


def test_a_draft_ends_at_what_is_not_allowed(grammars: Grammars, model: RandomModel) -> None:
    """``legal`` counts up to the first token that the mask, or what is forced, leaves out."""
    guide = _call(grammars).guide()
    reply = model.ids('<tool_call>\n{"name": "f", "arguments": {"kind": "green"')
    taken = guide.legal(reply)
    assert '<tool_call>\n{"name": "f", "arguments": {"kind": "' == model.tokenizer.decode(reply[:taken])
    assert 0 == guide.legal([])
    assert 0 == guide.legal(model.ids("x"))
    assert 1 == guide.legal([reply[0], reply[0]])


def test_a_draft_keeps_to_forced_tokens(grammars: Grammars, model: RandomModel) -> None:
    """The same text in other tokens than the forced ones is no legal draft: what is forced must not depend on who drafts."""
    guide = _call(grammars).guide()
    first, second = model.tokenizer.decode(guide.forced()[1:2])[:2]
    assert 1 == guide.legal([guide.forced()[0], *model.ids(first), *model.ids(second)])
    other = _regex(grammars, "(yes|no), surely").guide()
    yes, letters = model.ids("yes"), [token for letter in ", surely" for token in model.ids(letter)]
    assert 1 == other.legal([*yes, *letters[1:]])
    assert len(yes) + len(model.ids(", surely")) == other.legal([*yes, *model.ids(", surely")])


def test_a_complete_reply_forces_the_usual_end(grammars: Grammars, model: RandomModel) -> None:
    """Where nothing but an end may come, the tokenizer's own end token is forced, alone."""
    guide = _regex(grammars, "ab").guide()
    for token in guide.forced():
        guide.advance(token)
    assert [2] == list(guide.forced())
    assert [2] == _only(model, guide)
    assert (1, 0) == (guide.legal([2, 2]), guide.legal([0]))
    guide.advance(2)
    assert ([], [], 0) == (list(guide.forced()), _only(model, guide), guide.legal([2]))
    with pytest.raises(InternalError, match="none any more"):
        guide.advance(2)


def test_without_the_tokenizers_own_end_the_smallest_is_forced(model: RandomModel) -> None:
    """A model whose end tokens are others is given the smallest of them; ids beyond its logits don't count."""
    grammars = Grammars(model.tokenizer, [7, 5, 10**9, -1], model.vocab_size)
    guide = _regex(grammars, "ab").guide()
    for token in guide.forced():
        guide.advance(token)
    assert [5] == list(guide.forced())


def test_where_a_reply_may_end_all_ends_are_allowed(grammars: Grammars, model: RandomModel) -> None:
    """Every end token's bit is set where the grammar is complete but may go on, none elsewhere; each is then accepted."""
    grammar = _regex(grammars, "[0-9]{2,4}")
    for end in ENDS:
        guide = grammar.guide()
        guide.advance(model.ids("1")[0])
        assert not model.allowed(guide)[list(ENDS)].any()
        assert 0 == guide.legal([end])
        with pytest.raises(InternalError, match="does not take it"):
            guide.advance(end)
        guide.advance(model.ids("2")[0])
        assert model.allowed(guide)[list(ENDS)].all()
        assert 1 == guide.legal([end, end])
        guide.advance(end)
        assert not guide.forced()


def test_a_grammar_may_name_an_end_token_itself(grammars: Grammars, model: RandomModel) -> None:
    """An end token in a caller's grammar ends the reply there, whatever it says comes next."""
    guide = _lark(grammars, 'start: "ab" (<|im_end|> | "c" <|im_end|> "d")').guide()
    assert 2 == guide.legal([*model.ids("ab"), 2, 2])
    guide.advance(model.ids("ab")[0])
    assert sorted((*ENDS, *model.ids("c"))) == _only(model, guide)
    guide.advance(model.ids("c")[0])
    assert 2 == guide.forced()[0]
    guide.advance(2)
    assert not guide.forced()


def test_the_mask_has_the_logits_width(model: RandomModel) -> None:
    """One bit for each logit, in whole words; a model may have more logits or fewer than its tokenizer has tokens."""
    for width in (len(model.tokenizer) + 77, 3001):
        guide = _lark(Grammars(model.tokenizer, ENDS, width), "start: <[*]>+").guide()
        mask = guide.allowed()
        assert mask is not None
        assert (np.dtype(np.int32), (-(-width // 32),)) == (mask.dtype, mask.shape)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        assert not bits[width:].any()
        assert bits[3:3000].all()


@pytest.mark.parametrize("wrong", ["x", "<|im_end|>"])
def test_a_token_that_was_not_allowed_is_a_bug(grammars: Grammars, model: RandomModel, wrong: str) -> None:
    """Consuming anything but what is forced, or what the mask allows, is an InternalError, after which the guide goes on as it was."""
    guide = _call(grammars).guide()
    with pytest.raises(InternalError, match="alone"):
        guide.advance(model.ids(wrong)[0])
    while forced := guide.forced():
        guide.advance(forced[0])
    with pytest.raises(InternalError, match="does not take it"):
        guide.advance(model.ids(wrong)[0])
    guide.advance(model.ids("red")[0])


def test_guides_of_one_grammar_are_independent(grammars: Grammars, model: RandomModel) -> None:
    """Two replies under a grammar don't see each other."""
    grammar = _regex(grammars, "[ab]{3}x")
    one, other = grammar.guide(), grammar.guide()
    one.advance(model.ids("a")[0])
    before = model.allowed(one)
    other.advance(model.ids("ba")[0])
    assert (before == model.allowed(one)).all()
    assert (before != model.allowed(other)).any()


def test_a_failing_parser_says_why_and_the_next_reply_works(model: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that are hit within a reply raise InternalError with the cause; a fresh guide starts with fresh limits."""
    monkeypatch.setattr(grammar_compiler, "LIMITS", grammar_compiler.LLParserLimits(max_lexer_states=3000, verbose_errors=False))
    grammar = _regex(Grammars(model.tokenizer, ENDS, model.vocab_size), "(.|\n)*a(.|\n){12}c")
    random = np.random.default_rng(0)

    def decode() -> None:
        guide = grammar.guide()
        for _ in range(2000):
            allowed = np.flatnonzero(model.allowed(guide)[3:]) + 3
            guide.advance(int(random.choice([*model.ids("a"), *model.ids("b"), int(random.choice(allowed))])))

    for _ in range(2):
        guide = grammar.guide()
        assert model.allowed(guide).any()
        with pytest.raises(InternalError, match="the grammar of the reply failed: lexer error: too many states"):
            decode()


def test_a_dead_end_says_so(grammars: Grammars, model: RandomModel) -> None:
    """A grammar that can't be finished from somewhere fails with its reason, within what a step may cost."""
    guide = _lark(grammars, 'start: "a" | "b" never\nnever: "c" never').guide()
    guide.advance(model.ids("b")[0])

    def follow() -> None:
        for _ in range(100_000):
            guide.advance(guide.forced()[0])

    with pytest.raises(InternalError, match="the grammar of the reply failed: parser error: Too many items"):
        follow()


def test_replies_are_the_same_with_and_without_drafts(grammars: Grammars, model: RandomModel) -> None:
    """A reader that takes forced tokens and drafts in pieces of any size ends with the reply of one that takes single tokens."""
    grammar = _call(grammars)
    for seed in range(5):
        reply = model.reply(grammar, seed)
        guide = grammar.guide()
        random = np.random.default_rng(seed)
        place = 0
        while place < len(reply):
            draft = reply[place : place + int(random.integers(1, 9))]
            assert len(draft) == guide.legal(draft)
            for token in draft:
                guide.advance(token)
            place += len(draft)
        json.loads(model.text(reply).removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
